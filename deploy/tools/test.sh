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

# A test holds thousands of connections at once, and the usual limit is 1,024 descriptors. Every sh of a Linux can.
# shellcheck disable=SC3045
descriptors="$(ulimit -Hn)"
# shellcheck disable=SC3045
if (ulimit -n "$descriptors") 2>/dev/null; then ulimit -n "$descriptors"; fi
# Direct I/O needs a disk, which /tmp may not be.
if [ "$(stat -f -c %T "${TMPDIR:-/tmp}")" = tmpfs ]; then
    mkdir -p "$target_dir/tmp"
    TMPDIR="$(cd "$target_dir/tmp" && pwd)"
    export TMPDIR
fi

step sh deploy/tools/prerequisites.sh test
step cargo fmt --all --check
step cargo clippy --locked --quiet --workspace --all-targets --features "$test_features" -- -D warnings
step env RUSTDOCFLAGS='-D warnings' cargo doc --locked --quiet --workspace --no-deps
step cargo test --locked --workspace --features "$test_features"
step sh deploy/tools/examples.sh
say "== everything passed in $(($(date +%s) - started)) s"
