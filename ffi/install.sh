#!/bin/sh
# Installs what was built: header, libraries, pkg-config and CMake files, the `ipcmutex` command with its manual
# and completions, other man pages if there are any.
#
#   cargo build --release -p ipcmutex-ffi -p ipcmutex-cli && PREFIX=/usr/local DESTDIR= ffi/install.sh
#
# PREFIX   where it will live (/usr/local)
# LIBDIR   where the libraries will live ($PREFIX/lib)
# DESTDIR  put before every path that is written, for packagers (empty)
# BUILD    where cargo put what it built (${CARGO_TARGET_DIR:-target}/release)
#
# Where root installs into a folder that ldconfig looks through, it is run: a program finds a library that is new in
# /usr/local/lib through its cache alone.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
PREFIX=${PREFIX:-/usr/local}
LIBDIR=${LIBDIR:-$PREFIX/lib}
DESTDIR=${DESTDIR:-}
BUILD=${BUILD:-${CARGO_TARGET_DIR:-$root/target}/release}

for path in "$PREFIX" "$LIBDIR"; do
    case $path in
        /*) ;;
        *) echo "install.sh: $path must be an absolute path" >&2; exit 64 ;;
    esac
done

version=$(sed -n 's/^#define IPCMUTEX_VERSION "\(.*\)"$/\1/p' "$root/include/ipcmutex.h")
abi=$(sed -n 's/^#define IPCMUTEX_ABI_VERSION \(.*\)$/\1/p' "$root/include/ipcmutex.h")
# What Rust's standard library wants of a static link on Linux (rustc --print native-static-libs).
system_libs="-pthread -lgcc_s -lutil -lrt -lm -ldl -lc"
# From <libdir>/cmake/ipcmutex to the headers, so that an installed tree may be moved.
include_from_here=$(realpath -m --relative-to="$LIBDIR/cmake/ipcmutex" "$PREFIX/include")

fill() { # template, target
    sed -e "s|@PREFIX@|$PREFIX|g" -e "s|@LIBDIR@|$LIBDIR|g" -e "s|@VERSION@|$version|g" -e "s|@ABI@|$abi|g" \
        -e "s|@SYSTEM_LIBS@|$system_libs|g" -e "s|@INCLUDE_FROM_HERE@|$include_from_here|g" "$1" > "$2"
    chmod 644 "$2"
}

lib=$DESTDIR$LIBDIR
install -d "$DESTDIR$PREFIX/include" "$DESTDIR$PREFIX/bin" "$lib/pkgconfig" "$lib/cmake/ipcmutex"
install -m 644 "$root/include/ipcmutex.h" "$DESTDIR$PREFIX/include/"
install -m 755 "$BUILD/libipcmutex.so" "$lib/libipcmutex.so.$version"
ln -sf "libipcmutex.so.$version" "$lib/libipcmutex.so.$abi"
ln -sf "libipcmutex.so.$abi" "$lib/libipcmutex.so"
install -m 644 "$BUILD/libipcmutex.a" "$lib/"
fill "$here/ipcmutex.pc.in" "$lib/pkgconfig/ipcmutex.pc"
fill "$here/ipcmutex-config.cmake.in" "$lib/cmake/ipcmutex/ipcmutex-config.cmake"
fill "$here/ipcmutex-config-version.cmake.in" "$lib/cmake/ipcmutex/ipcmutex-config-version.cmake"
install -m 755 "$BUILD/ipcmutex" "$DESTDIR$PREFIX/bin/"
# The command knows its own manual and completions.
told() { # where, what it is asked
    share=$DESTDIR$PREFIX/share/$1
    shift
    install -d "$(dirname "$share")"
    "$BUILD/ipcmutex" "$@" > "$share"
    chmod 644 "$share"
}
told man/man1/ipcmutex.1 man
told bash-completion/completions/ipcmutex completions bash
told zsh/site-functions/_ipcmutex completions zsh
told fish/vendor_completions.d/ipcmutex.fish completions fish
install -d "$DESTDIR$PREFIX/share/man/man3"
awk -f "$here/manual.awk" "$root/include/ipcmutex.h" > "$DESTDIR$PREFIX/share/man/man3/ipcmutex.3"
chmod 644 "$DESTDIR$PREFIX/share/man/man3/ipcmutex.3"
# Debian leaves /sbin out of the PATH of `su`.
if [ -z "$DESTDIR" ] && [ "$(id -u)" -eq 0 ] && ldconfig=$(PATH=$PATH:/usr/sbin:/sbin command -v ldconfig) &&
    "$ldconfig" -N -v 2>/dev/null | grep -qF "$LIBDIR:"; then
    "$ldconfig" || echo "install.sh: $ldconfig failed: programs may not find $LIBDIR/libipcmutex.so.$abi" >&2
fi
