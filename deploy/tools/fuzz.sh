#!/bin/sh
# Every fuzz target for FUZZ_SECONDS (300) each; fails at the end if one of them had a finding. The seeds checked in
# (corpus/) are only read; what the fuzzer finds on its way goes to corpus-work/, which git ignores.
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

sh deploy/tools/prerequisites.sh fuzz
install_tool cargo-fuzz cargo-fuzz 0.13.2

found=''
# Without a sanitizer the stable compiler will do, and our code has next to no unsafe for one to watch.
for package in wire broker client; do
    [ -f "$package/fuzz/Cargo.toml" ] || continue
    for target in $(cargo fuzz list --fuzz-dir "$package/fuzz"); do
        say "== $package: $target"
        (
            cd "$package/fuzz"
            mkdir -p "corpus-work/$target" "corpus/$target"
            cargo fuzz run --fuzz-dir . --sanitizer none "$target" "corpus-work/$target" "corpus/$target" -- \
                -max_total_time="${FUZZ_SECONDS:-300}" -timeout=10 -rss_limit_mb=2048
        ) || found="$found $package/$target"
    done
done
[ -z "$found" ] || fail "findings in$found; the inputs are in the artifacts folders, how to replay one is said above"
say "== no finding"
