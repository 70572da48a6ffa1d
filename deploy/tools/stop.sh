#!/bin/sh
# Ends the broker that run.sh left running, and waits until it has gone.
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

pid="$(written_pid)"
if ! corelog_alive "$pid"; then
    rm -f "$run_pid"
    say "No broker of 'make run' is running."
    exit 0
fi

kill -TERM "$pid" || fail "this user may not end process $pid: it belongs to user $(stat -c %U "/proc/$pid")"
tenths=0
while corelog_alive "$pid"; do
    [ "$tenths" -lt 300 ] || fail "the broker (process $pid) has not ended within 30 s" \
        "its log: $run_log; to end it the hard way (no acknowledged record is lost): kill -9 $pid"
    sleep 0.1
    tenths=$((tenths + 1))
done
rm -f "$run_pid"
say "The broker (process $pid) has ended. Its data stays in $run_data; 'make run' starts it again."
