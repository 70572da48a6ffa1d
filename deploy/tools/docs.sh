#!/bin/sh
# The book (docs/book/index.html) and the API documentation (target/doc).
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

sh deploy/tools/prerequisites.sh
install_tool mdbook mdbook 0.5.4
mdbook build docs
cargo doc --locked --workspace --no-deps
say "The book: docs/book/index.html; the API: $target_dir/doc/corelog_client/index.html"
