#!/bin/sh
# Runs the simulator: SEED=n replays one seed, SEEDS=A..B a range, neither the first hundred; TRACE=1 prints the whole story,
# GROUPS=1 is about consumer groups.
# The profile is the one of the tests, so that a seed that failed there fails here, debug assertions included.
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

set --
[ -z "${SEED:-}" ] || set -- "$@" --seed "$SEED"
[ -z "${SEEDS:-}" ] || set -- "$@" --seeds "$SEEDS"
[ -z "${GROUPS:-}" ] || set -- "$@" --groups
[ -z "${TRACE:-}" ] || set -- "$@" --trace
sh deploy/tools/prerequisites.sh
cargo run --locked --quiet -p corelog-sim --bin corelog-sim -- "$@"
