#!/bin/sh
# The load generator on a broker of its own, both in the release profile. ARGS replace what it is told to do, which is to
# run all of bench/workloads; ARGS="run --help" lists what there is.
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

sh deploy/tools/prerequisites.sh
say "Building broker and load generator (release profile; the first time takes some minutes)"
cargo build --locked --release --quiet -p corelog-broker -p corelog-bench
# shellcheck disable=SC2086 # a list of words
"$target_dir/release/corelog-bench" ${ARGS:-run bench/workloads/*.toml}
