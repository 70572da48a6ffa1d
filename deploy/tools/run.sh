#!/bin/sh
# Builds the broker, starts it in the background, sends a file through it and compares what comes out byte for byte.
# Leaves the broker running. The release profile is used because this broker stays: what the user tries next, and any
# figure he reads off it, should be the real thing.
#
#   FILE        the file to send (README.md)     PORT, ADMIN_PORT   where to listen (9640, 9644)
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

file="${FILE:-README.md}"
port="${PORT:-9640}"
admin_port="${ADMIN_PORT:-9644}"
topic="first-run"
corelog="$target_dir/release/corelog"
export CORELOG_BOOTSTRAP="127.0.0.1:$port"

# "name (process id)" of whoever listens on TCP port $1; nothing if nobody does.
listener() {
    hex="$(printf '%04X' "$1")"
    inodes="$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v port=":$hex" '$4 == "0A" && substr($2, length($2) - 4) == port { print $10 }')"
    for inode in $inodes; do
        for descriptor in /proc/[0-9]*/fd/*; do
            [ "$(readlink "$descriptor" 2>/dev/null)" = "socket:[$inode]" ] || continue
            process="${descriptor#/proc/}" process="${process%%/*}"
            printf '%s (process %s)' "$(cat "/proc/$process/comm")" "$process"
            return
        done
        printf 'a process of another user'
        return
    done
}

require_free() { # require_free PORT NAME
    by="$(listener "$1")"
    [ -z "$by" ] || fail "port $1 is taken by $by" \
        "end it, or choose another: make run $2=$(($1 + 10))"
}

# True if process $1 is this very build (not one that has been replaced on disk since) on the ports asked for.
as_asked() {
    [ "$(readlink "/proc/$1/exe")" = "$(readlink -f "$corelog")" ] || return 1
    case "$(tr '\0' ' ' <"/proc/$1/cmdline")" in *"--port $port --admin-port $admin_port "*) ;; *) return 1 ;; esac
}

start() {
    require_free "$port" PORT
    require_free "$admin_port" ADMIN_PORT
    mkdir -p "$run_data"
    setsid "$corelog" dev --data-dir "$run_data" --port "$port" --admin-port "$admin_port" </dev/null >"$run_log" 2>&1 &
    pid=$!
    printf '%s\n' "$pid" >"$run_pid"

    wait_ready "$pid" "$run_data" "$run_log" || {
        rm -f "$run_pid"
        exit 1
    }
}

[ -r "$file" ] || fail "cannot read the file to send: $file"

sh deploy/tools/prerequisites.sh
say "Building the broker (release profile; the first time takes some minutes)"
cargo build --locked --release --quiet -p corelog-broker --bin corelog

pid="$(written_pid)"
if corelog_alive "$pid" && as_asked "$pid"; then
    say "The broker of an earlier 'make run' is still running (process $pid)"
else
    if corelog_alive "$pid"; then sh deploy/tools/stop.sh; fi
    start
    say "Broker started (process $pid), data in $run_data, log in $run_log"
fi

# The topic may hold records of an earlier run: what this run wrote starts at the offset of its first acknowledgement.
acks="$run_dir/acknowledged.json"
output="$run_dir/consumed"
"$corelog" produce "$topic" --file "$file" --output json >"$acks"
records="$(wc -l <"$acks")"
first="$(sed -n '1s/.*"offset": *\([0-9]*\).*/\1/p' "$acks")"
[ -n "$first" ] || fail "nothing was acknowledged for $file; is it empty?" "the broker's log: $run_log"
"$corelog" consume "$topic" --from "$first" --count "$records" >"$output"
cmp "$file" "$output" || fail "what was consumed differs from what was produced: $file and $output"
say "$file: $(wc -c <"$file") bytes in $records records, produced, flushed, consumed, identical (topic $topic, offsets $first to $((first + records - 1)))"

option=''
[ "$port" = 9640 ] || option=" --bootstrap 127.0.0.1:$port"
cat <<END

Next:
  echo 'hello, log' | $corelog produce greetings$option
  $corelog consume greetings --from earliest$option
  $corelog topic describe $topic$option

The broker goes on running; 'make stop' ends it. Metrics: http://127.0.0.1:$admin_port/metrics
END
