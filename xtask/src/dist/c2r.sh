#!/bin/sh
# Runs c2r on the libtorch that `./xtask setup` finds and links to .libtorch.
here=$(dirname -- "$(readlink -f -- "$0")") || exit 1
link=$here/.libtorch
if [ ! -e "$link/lib" ] || { [ -n "$LIBTORCH" ] && [ "$(readlink "$link")" != "$LIBTORCH" ]; }; then
    "$here/xtask" setup || exit
fi
LD_LIBRARY_PATH=$link/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$here/target/release/c2r" "$@"
