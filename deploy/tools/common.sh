# shellcheck shell=sh disable=SC2034
# Sourced by the scripts beside it, from the top of the repository: finds cargo, names the folders, stops a script with a reason.

PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
export PATH

target_dir="${CARGO_TARGET_DIR:-target}"
# What is linted and tested beside the defaults: the client's second driver. One build holds both.
test_features=corelog-client/glommio
run_dir=.corelog
run_data="$run_dir/dev"
run_log="$run_dir/dev.log"
run_pid="$run_dir/dev.pid"

say() {
    printf '%s\n' "$*"
}

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

# True while process $1 runs; one that has ended and waits to be collected does not.
process_alive() {
    [ -n "$1" ] && awk '/^State:/ { state = $2 } END { exit !(state != "" && state != "Z") }' "/proc/$1/status" 2>/dev/null
}

# The same, of a corelog: a reused process id is not taken for ours.
corelog_alive() {
    process_alive "$1" && [ "$(cat "/proc/$1/comm" 2>/dev/null)" = corelog ]
}

# The process id that run.sh wrote down, or nothing.
written_pid() {
    [ ! -f "$run_pid" ] || tr -cd '0-9' <"$run_pid"
}

# wait_ready PROCESS DATA LOG: until ready.json says that this very process is ready. One that has ended is noticed at once;
# one that hangs is ended when the bound is over.
wait_ready() {
    tenths=0
    until grep -qs "\"pid\": *$1[,}]" "$2/ready.json"; do
        if ! process_alive "$1"; then
            tail -n 20 "$3" >&2
            say "error: the broker ended before it was ready; the end of its log is above, all of it in $3" >&2
            return 1
        fi
        if [ "$tenths" -ge 600 ]; then
            kill "$1"
            say "error: the broker was not ready after 60 s and has been told to end; its log: $3" >&2
            return 1
        fi
        sleep 0.1
        tenths=$((tenths + 1))
    done
}

# install_tool COMMAND CRATE VERSION: a cargo subcommand or tool that a target needs, once.
install_tool() {
    command -v "$1" >/dev/null || {
        say "Installing $2 $3 with cargo (once; some minutes)"
        cargo install --locked --quiet --version "$3" "$2"
    }
}
