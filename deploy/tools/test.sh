#!/bin/sh
# What must pass before a change is merged. Stops at the first thing that does not.
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh
started="$(date +%s)"

step() {
    say "== $*"
    "$@"
}

step sh deploy/tools/prerequisites.sh test
step cargo fmt --all --check
step cargo clippy --locked --quiet --workspace --all-targets -- -D warnings
step env RUSTDOCFLAGS='-D warnings' cargo doc --locked --quiet --workspace --no-deps
step cargo test --locked --workspace
say "== everything passed in $(($(date +%s) - started)) s"
