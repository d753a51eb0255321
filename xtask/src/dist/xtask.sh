#!/bin/sh
# What `cargo xtask` is in a checkout.
here=$(dirname -- "$(readlink -f -- "$0")") || exit 1
exec "$here/target/release/xtask" "$@"
