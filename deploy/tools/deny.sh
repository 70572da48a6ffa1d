#!/bin/sh
# Licences, bans and sources of all dependencies, as deny.toml has them. `make deny` needs no network once the crates are there.
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

sh deploy/tools/prerequisites.sh
install_tool cargo-deny cargo-deny 0.20.2
cargo deny --locked --all-features check licenses bans sources
