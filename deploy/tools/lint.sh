#!/bin/sh
# The lints of the Rust code, and those of the shell scripts where shellcheck is installed.
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

sh deploy/tools/prerequisites.sh test
cargo clippy --locked --workspace --all-targets --features "$test_features" -- -D warnings
if command -v shellcheck >/dev/null; then
    shellcheck -x .ci/run deploy/tools/*.sh
else
    say "shellcheck is not installed: the shell scripts were not checked (apt install shellcheck)"
fi
