#!/usr/bin/env bash
# make install, as a packager runs it; then pkg-config and CMake users, shared and static, in C99 and C++.
. "$(dirname "$0")/common.sh"

stage=$work/stage
prefix=/opt/ipcmutex
check "make install" make -C "$root" install PREFIX=$prefix DESTDIR="$stage"
installed=$stage$prefix

# What a system has that links it statically alone.
static=$work/static
cp -r "$stage" "$static"
rm "$static$prefix"/lib/libipcmutex.so*

example c >example.c
{ echo '#include <ipcmutex.h>'; cat example.c; } >twice.c
cp example.c example.cpp
cp twice.c twice.cpp
strict="-Wall -Wextra -pedantic -Werror"

# Whether PROGRAM loads the shared library, as it should: yes or no.
loads() { # program, yes or no
    readelf -dW "$1" >dynamic
    grep -q 'libipcmutex\.so\.0' dynamic && [ "$2" = yes ] || { ! grep -q libipcmutex dynamic && [ "$2" = no ]; }
}

run() { # program
    LD_LIBRARY_PATH=$installed/lib "$1"
}

with_pkg_config() { # linking, compiler and standard, source
    local sysroot=$stage flags=--libs shared=yes
    [ "$1" = shared ] || { sysroot=$static flags="--static --libs" shared=no; }
    # shellcheck disable=SC2046,SC2086
    $2 $strict "$3" -o program $(PKG_CONFIG_SYSROOT_DIR=$sysroot PKG_CONFIG_PATH=$sysroot$prefix/lib/pkgconfig \
        pkg-config --cflags $flags ipcmutex) && loads program $shared && run ./program
}
for linking in shared static; do
    for source in example twice; do
        check "pkg-config, $linking, C99, $source" with_pkg_config $linking "gcc -std=c99" $source.c
        check "pkg-config, $linking, C++11, $source" with_pkg_config $linking "g++ -std=c++11" $source.cpp
    done
done

# The tree is where its prefix does not say: the files must find their way from where they are.
mkdir cmake
cat >cmake/CMakeLists.txt <<CMAKE
cmake_minimum_required(VERSION 3.16)
project(consumer C CXX)
set(CMAKE_C_STANDARD 99)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_STANDARD 11)
find_package(ipcmutex $("$installed/bin/ipcmutex" --version | cut -d' ' -f2) REQUIRED)
add_compile_options(-Wall -Wextra -pedantic -Werror)
foreach(source example.c example.cpp twice.c twice.cpp)
  add_executable(shared_\${source} $work/\${source})
  target_link_libraries(shared_\${source} ipcmutex::ipcmutex)
  add_executable(static_\${source} $work/\${source})
  target_link_libraries(static_\${source} ipcmutex::static)
endforeach()
CMAKE
check "CMake configures" cmake -S cmake -B built -DCMAKE_PREFIX_PATH="$installed"
check "CMake builds" cmake --build built -j2
for source in example.c example.cpp twice.c twice.cpp; do
    check "CMake, shared, $source" eval "loads built/shared_$source yes && run built/shared_$source"
    check "CMake, static, $source" eval "loads built/static_$source no && run built/static_$source"
done
sed -i 's/find_package(ipcmutex [^ ]*/find_package(ipcmutex 99.0/' cmake/CMakeLists.txt
check "CMake refuses another version" eval "! cmake -S cmake -B other -DCMAKE_PREFIX_PATH=$installed"

example sh >example.sh
check "the command" env PATH="$installed/bin:/usr/bin:/bin" sh -eu example.sh

echo "$passed passed, 0 failed"
