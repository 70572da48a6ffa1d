#!/bin/sh
# Makes sure that what the build needs is there, and installs what is missing. Usage: prerequisites.sh [test] [fuzz]
#
#   always  a C compiler with the headers of libc and of the kernel: two dependencies are partly C (liburing inside
#           glommio, zstd). No pkg-config, cmake, C++ or protobuf compiler is needed.
#           And the certificates by which cargo trusts its registry.
#   test    the cargo components rustfmt and clippy.
#   fuzz    a C++ compiler: libFuzzer is C++.
set -eu
cd "$(dirname "$0")/../.."
. deploy/tools/common.sh

compiles() { # compiles COMPILER LANGUAGE HEADER...
    compiler=$1 language=$2
    shift 2
    command -v "$compiler" >/dev/null || return 1
    { printf '#include <%s>\n' "$@" && printf 'int main(void) { return 0; }\n'; } |
        "$compiler" -x "$language" -fsyntax-only - 2>/dev/null
}

install_packages() {
    command -v apt-get >/dev/null || fail "this needs $*, and apt-get is not here to install it" \
        "install a C compiler (for fuzzing also C++) and the libc headers with this system's package manager"
    sudo=''
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "this needs the packages $*, and this user has no sudo" \
            "as root: apt-get install --no-install-recommends $*"
        sudo=sudo
    fi
    say "Installing with apt: $*"
    log="$(mktemp)"
    if ! { $sudo apt-get update && $sudo env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "apt could not install $*; all of its output: $log" "by hand, as root: apt-get install --no-install-recommends $*"
    fi
    rm -f "$log"
}

command -v cargo >/dev/null || fail "cargo was not found, neither on PATH nor in ~/.cargo/bin" \
    "install Rust as https://rustup.rs says, then repeat this"

needed="$(sed -n 's/^rust-version = "\([0-9.]*\)"/\1/p' Cargo.toml)"
present="$(cargo --version | sed 's/^cargo \([0-9]*\.[0-9]*\).*/\1/')"
[ "$(printf '%s\n' "$needed" "$present" | sort -V | head -n 1)" = "$needed" ] ||
    fail "Rust $needed or newer is needed, this is $present" "rustup update stable"

packages=''
compiles cc c stdlib.h linux/time_types.h || packages='gcc libc6-dev'
[ -n "${CARGO_HTTP_CAINFO:-}${SSL_CERT_FILE:-}" ] || [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/cert.pem ] ||
    packages="$packages ca-certificates"
case " $* " in *' fuzz '*) compiles c++ c++ vector || packages="$packages g++" ;; esac
# shellcheck disable=SC2086 # a list of words
[ -z "$packages" ] || install_packages $packages

case " $* " in *' test '*)
    for component in rustfmt clippy; do
        cargo "${component#rust}" --version >/dev/null 2>&1 && continue
        say "Adding the cargo component $component"
        rustup component add "$component" || fail "$component is missing and rustup could not add it"
    done
    ;;
esac
