#!/bin/sh
# What a release build does on this machine, one line per figure. Ends with 1 if a figure misses its target, after all of them.
#
#   arguments, ACCEPTANCE_FILES    files, and a folder of files, to send through it beside the host's own log
#   ACCEPTANCE_PARTS               which parts, of "dev files mixed kill hostile recovery idle" (all)
#   ACCEPTANCE_DIR                 in which brokers keep their data meanwhile, in a folder that is removed at the end
#                                  (.corelog/acceptance; the parts that are tests, mixed, kill and hostile, use target/tmp)
#   ACCEPTANCE_STARTS              starts on an empty directory (20)
#   ROUND_TRIP_BYTES               mixed binary lines in each round trip (1 GiB)
#   KILL_CYCLES                    kills under load (200)
#   RECOVERY_MIB, RECOVERY_PARTITIONS    what the recovered broker holds (10240, 1000); the disk needs half as much again
#   IDLE_PARTITIONS, IDLE_SECONDS  what an idle broker holds, and how long its processor time is counted (10000, 20)
#   ACCEPTANCE_SECONDS             no step may take longer (3600)
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

corelog="$target_dir/release/corelog"
work="${ACCEPTANCE_DIR:-$run_dir/acceptance}/corelog-acceptance.$$"
parts=" ${ACCEPTANCE_PARTS:-dev files mixed kill hostile recovery idle} "
starts="${ACCEPTANCE_STARTS:-20}"
recovery_mib="${RECOVERY_MIB:-10240}"
recovery_partitions="${RECOVERY_PARTITIONS:-1000}"
idle_partitions="${IDLE_PARTITIONS:-10000}"
idle_seconds="${IDLE_SECONDS:-20}"
seconds_max="${ACCEPTANCE_SECONDS:-3600}"
export ROUND_TRIP_BYTES="${ROUND_TRIP_BYTES:-1073741824}"
export KILL_CYCLES="${KILL_CYCLES:-200}"
codecs='none gzip snappy lz4 zstd'
pid=''
missed=0

# What an ended script leaves behind: no process, no data.
clean_up() {
    [ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# figure WHETHER TEXT: a line of the report.
figure() {
    if [ "$1" -eq 0 ]; then
        say "  ok      $2"
    else
        say "  MISSED  $2"
        missed=1
    fi
}

# holds EXPRESSION: a comparison of numbers, by awk; prints 0 if it holds.
holds() {
    awk "BEGIN { print ($1) ? 0 : 1 }"
}

bounded() {
    timeout --kill-after=30 "$seconds_max" "$@"
}

now_ns() {
    date +%s%N
}

# start ARGUMENT...: a broker whose data is in $work/data and whose words are in $work/log, ready. Sets pid, ready_ms (from just
# before the process to the moment at which ready.json was written) and its own figure, said_ms.
start() {
    rm -f "$work/data/ready.json"
    began="$(now_ns)"
    "$corelog" "$@" </dev/null >"$work/log" 2>&1 &
    pid=$!
    wait_ready "$pid" "$work/data" "$work/log" || fail "no broker"
    written="$(stat -c %.9Y "$work/data/ready.json" | tr -d .)"
    ready_ms="$(awk "BEGIN { printf \"%.1f\", ($written - $began) / 1000000 }")"
    said_ms="$(awk '/ ready in / { sub(/.* ready in /, ""); print $1; exit }' "$work/log")"
    address="$(sed -n 's/.*"address": *"\([^"]*\)".*/\1/p' "$work/data/ready.json")"
    export CORELOG_BOOTSTRAP="$address"
}

start_dev() {
    start dev --data-dir "$work/data" --port 0 --admin-port 0
}

# The end of the broker, by signal $1. Sets code and ended_ms.
end() {
    began="$(now_ns)"
    kill "-$1" "$pid"
    code=0
    wait "$pid" 2>/dev/null || code=$?
    ended_ms="$(awk "BEGIN { printf \"%.0f\", ($(now_ns) - $began) / 1000000 }")"
    pid=''
}

fresh() {
    rm -rf "$work"
    mkdir -p "$work"
}

# median FILE, largest FILE: of one number a line.
median() {
    sort -n "$1" | awk '{ number[NR] = $1 } END { print number[int((NR + 1) / 2)] }'
}

largest() {
    sort -n "$1" | tail -n 1
}

# What process $1 listens on, by TCP, that is not of this host alone: hexadecimal addresses, or nothing.
listens_elsewhere() {
    for descriptor in /proc/"$1"/fd/*; do readlink "$descriptor" || true; done |
        sed -n 's/^socket:\[\([0-9]*\)\]$/\1/p' >"$work/sockets"
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        awk -v sockets="$work/sockets" 'BEGIN { while ((getline inode < sockets) > 0) ours[inode] = 1 }
            $4 == "0A" && ($10 in ours) && $2 !~ /^(0100007F|00000000000000000000000001000000):/ { print $2 }'
}

dev_part() {
    say "corelog dev"
    fresh
    run=0
    while [ "$run" -lt "$starts" ]; do
        rm -rf "$work/data"
        start_dev
        say "$ready_ms" >>"$work/ready"
        say "$said_ms" >>"$work/said"
        run=$((run + 1))
        [ "$run" -eq "$starts" ] || end INT
    done
    figure "$(holds "$(median "$work/ready") <= 150")" \
        "ready on an empty directory, $starts starts: median $(median "$work/ready") ms, longest $(largest "$work/ready") ms from the start of the process (150 wanted); it says $(median "$work/said") and $(largest "$work/said")"
    # What is measured is a broker that has been idle for this long.
    sleep 2
    resident="$(awk '/^VmRSS:/ { print $2 * 1024 }' "/proc/$pid/status")"
    figure "$(holds "$resident <= 60000000")" "resident after 2 s idle, one shard: $resident bytes (60000000 wanted)"
    elsewhere="$(listens_elsewhere "$pid")"
    figure "$(holds "\"$elsewhere\" == \"\"")" "listens on loopback only ($address)${elsewhere:+, but for $elsewhere}"
    printf 'one\ntwo\n' | "$corelog" produce greetings
    end INT
    figure "$code" "Ctrl-C: exit code $code after $ended_ms ms"
    start_dev
    recovered="$(sed -n 's/^ *\(recovered.*\)/\1/p' "$work/log" | head -n 1)"
    figure "$(holds "\"$recovered\" != \"\"")" "the second start says: ${recovered:-nothing} (ready after $ready_ms ms)"
    end INT
}

# round_trip FILE NAME: as lines, with each codec, in one partition.
round_trip() {
    for codec in $codecs; do
        topic="trip-$trips-$codec"
        bounded "$corelog" produce "$topic" --file "$1" --compression "$codec"
        same=0
        bounded "$corelog" consume "$topic" --from earliest --until-end | cmp - "$1" || same=1
        "$corelog" topic delete "$topic" >/dev/null
        [ "$same" -eq 0 ] || break
    done
    trips=$((trips + 1))
    figure "$same" "byte for byte, codecs $codecs: $2, $(wc -c <"$1") bytes"
}

files_part() {
    say "files"
    fresh
    start_dev
    trips=0
    own=/var/log/dpkg.log
    # shellcheck disable=SC2012 # names of logs, of which the newest that may be read and holds something is wanted
    [ -s "$own" ] || own="$(ls -t /var/log/* 2>/dev/null | while read -r log; do
        if [ -f "$log" ] && [ -r "$log" ] && [ -s "$log" ]; then
            say "$log"
            break
        fi
    done)"
    for file in ${own:+"$own"} "$@" ${ACCEPTANCE_FILES:+"$ACCEPTANCE_FILES"/*}; do
        if [ ! -f "$file" ]; then continue; fi
        # A log that is still written to would not be the same twice.
        cp "$file" "$work/input"
        round_trip "$work/input" "$file"
    done
    end INT
}

# A test of broker/tests, in the release profile: its figures, then whether it passed.
test_part() { # test_part PROGRAM NAME DESCRIPTION
    say "$2"
    fresh
    passed=0
    bounded cargo test --locked --quiet --release -p corelog-broker --test "$1" -- --nocapture --test-threads=1 "$2::" >"$work/test" 2>&1 ||
        passed=$?
    grep -E '^(keyed-|round |  +[0-9]+ connections|  +resident|[0-9]+ records)' "$work/test" | sed 's/^ */          /' || true
    grep -q '^test result: ok. [1-9]' "$work/test" || passed=1
    # The rest, mostly a backtrace, is of no use to a report.
    [ "$passed" -eq 0 ] || grep -A 5 -E 'panicked at|^error' "$work/test" >&2 || tail -n 30 "$work/test" >&2
    figure "$passed" "$3"
}

mixed_part() {
    test_part process round_trip "byte for byte, $ROUND_TRIP_BYTES bytes of mixed binary lines, each codec, 1, 3 and 64 partitions, order by partition and key; records to 4 MiB with other delimiters"
}

kill_part() {
    test_part process kill "kill -9 under load, $KILL_CYCLES times: every acknowledged record once, in order, at its offset, by the producer's history file"
}

hostile_part() {
    test_part hostile hostile "hostile clients: no end of the broker, memory within its budget, typed errors, a healthy client's 99th percentile within twice"
}

recovery_part() {
    say "recovery"
    fresh
    available="$(df -Pm "$work" | awk 'NR == 2 { print $4 }')"
    # A segment of the smallest size is left when the next batch does not fit: up to a third of each stays empty.
    needed=$((recovery_mib + recovery_mib / 2 + 2048))
    [ "$available" -ge "$needed" ] || fail "recovery of $recovery_mib MiB needs $needed MiB in $work, $available are there" \
        "choose another place with ACCEPTANCE_DIR, or less with RECOVERY_MIB"
    cat >"$work/corelog.toml" <<END
[broker]
data_dir = "$(cd "$work" && pwd)/data"
shards = 1
[listen]
address = "127.0.0.1:0"
admin = "127.0.0.1:0"
[storage]
disk_bytes_max = "$((needed))MiB"
END
    mkdir -p "$work/data"
    start serve --config "$work/corelog.toml"
    # The smallest segments, so that there are as many of them as there can be.
    "$corelog" topic create many --partitions "$recovery_partitions" --config segment_bytes=1MiB \
        --config batch_bytes_max=512KiB --config record_bytes_max=256KiB >/dev/null
    line="$(awk 'BEGIN { while (length(text) < 1000) text = text "recovery "; print substr(text, 1, 1023) }')"
    began="$(now_ns)"
    # `yes` is ended by the pipe.
    { yes "$line" || true; } | head -c "${recovery_mib}M" | bounded "$corelog" produce many --batch-bytes 262144
    took="$(awk "BEGIN { printf \"%.1f\", ($(now_ns) - $began) / 1000000000 }")"
    end 9
    # Looked at when nobody changes it any more.
    say "          $recovery_mib MiB produced in $took s; $(find "$work/data/topics" -name '*.log' | wc -l) segments in $recovery_partitions partitions, $(du -sm "$work/data/topics" | awk '{ print $1 }') MiB of files"
    start serve --config "$work/corelog.toml"
    recovered="$(sed -n 's/^ *\(recovered.*\)/\1/p' "$work/log" | head -n 1)"
    say "          ${recovered:-it does not say what it recovered}"
    figure "$(holds "$ready_ms <= 1000")" "ready $ready_ms ms after a kill -9 (1000 wanted); it says $said_ms"
    bounded "$corelog" consume many --from earliest --until-end | wc -c >"$work/bytes"
    figure "$(holds "$(cat "$work/bytes") == $recovery_mib * 1048576")" "all of it is there: $(cat "$work/bytes") bytes"
    end INT
}

# Processor time of the broker since it started, in ticks of a hundredth of a second.
ticks() {
    sed 's/.*) //' "/proc/$pid/stat" | awk '{ print $12 + $13 }'
}

# share SECONDS: percent of one processor that the broker takes in so many seconds.
share() {
    before="$(ticks)"
    # Time is what is measured here.
    sleep "$1"
    awk "BEGIN { printf \"%.2f\", ($(ticks) - $before) / $1 }"
}

idle_part() {
    say "idle"
    fresh
    start_dev
    taken="$(share "$idle_seconds")"
    figure "$(holds "$taken <= 2")" "an idle broker without topics takes $taken% of a processor (2 wanted)"
    left="$idle_partitions"
    while [ "$left" -gt 0 ]; do
        some="$((left > 1000 ? 1000 : left))"
        "$corelog" topic create "idle-$left" --partitions "$some" >/dev/null
        left=$((left - some))
    done
    sleep 2
    resident="$(awk '/^VmRSS:/ { print $2 * 1024 }' "/proc/$pid/status")"
    taken="$(share "$idle_seconds")"
    figure "$(holds "$resident <= 150000000")" "$idle_partitions idle partitions: $resident bytes resident (150000000 wanted)"
    figure "$(holds "$taken <= 2")" "$idle_partitions idle partitions: $taken% of a processor (2 wanted)"
    end 9
    start_dev
    figure "$(holds "$ready_ms <= 1000")" "$idle_partitions partitions: ready $ready_ms ms after a kill -9 (1000 wanted)"
    end INT
}

sh deploy/tools/prerequisites.sh
say "Building broker and tests (release profile; the first time takes some minutes)"
cargo build --locked --release --quiet -p corelog-broker --bin corelog
case "$parts" in
*' mixed '* | *' kill '* | *' hostile '*)
    cargo test --locked --release --quiet -p corelog-broker --test process --test hostile --no-run
    ;;
esac
say "$(uname -sr), $(nproc) processors, $(git rev-parse --short HEAD 2>/dev/null || say 'no revision')"

for part in $parts; do
    case "$part" in
    dev) dev_part ;;
    files) files_part "$@" ;;
    mixed) mixed_part ;;
    kill) kill_part ;;
    hostile) hostile_part ;;
    recovery) recovery_part ;;
    idle) idle_part ;;
    *) fail "there is no part $part" "the parts: dev files mixed kill hostile recovery idle" ;;
    esac
done
[ "$missed" -eq 0 ] || fail "a figure missed its target, see MISSED above"
say "every target was met"
