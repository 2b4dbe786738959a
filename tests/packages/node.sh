#!/usr/bin/env bash
# The npm tarballs, installed with npm into empty projects: prebuilt without scripts, and built from source by the script.
#
#   node.sh TOOLS    a folder whose node_modules has typescript, @types/node and @napi-rs/cli
. "$(dirname "$0")/common.sh"

tools=$1
export npm_config_audit=false npm_config_fund=false npm_config_update_notifier=false npm_config_offline=true
export npm_config_cache=$work/cache # empty, so that nothing comes from elsewhere

example js >example.cjs
sed 's/^const Mutex = require("ipcmutex")/import Mutex from "ipcmutex"/' example.cjs >example.mjs
grep -q '^import' example.mjs
example sh >example.sh
check "the tarballs" node "$root/bindings/node/pack.js" tarballs
main=$(echo "$work"/tarballs/ipcmutex-[0-9]*.tgz)
prebuilt=$(echo "$work"/tarballs/ipcmutex-linux-*.tgz)

project() { # name
    mkdir "$1"
    echo '{ "name": "project", "version": "1.0.0", "private": true }' >"$1/package.json"
    cp example.* "$1"
}

use() { # project
    check "$1: CommonJS" node "$1/example.cjs"
    check "$1: ESM" node "$1/example.mjs"
    check "$1: the command" env PATH="$work/$1/node_modules/.bin:$PATH" sh -eu example.sh
    check "$1: the command, by npx" env -C "$1" npx --no-install ipcmutex run -n npx -- true
    check "$1: the command is the installed one" env PATH="$work/$1/node_modules/.bin:$PATH" \
        sh -c "[ \$(command -v ipcmutex) = $work/$1/node_modules/.bin/ipcmutex ]"
}

project prebuilt
check "npm install, without scripts" npm --prefix prebuilt install --ignore-scripts "$main" "$prebuilt"
use prebuilt
check "the loader is what @napi-rs/cli writes (make loader)" eval \
    'node "$root/bindings/node/generate.js" "$tools" . && diff -u "$root/bindings/node/loader.js" loader.js'
check "nothing was built" eval '! find prebuilt/node_modules/ipcmutex -name "*.node" | grep .'

# TypeScript, strict, in both module systems; `await using` as TypeScript compiles it for this Node.
ln -s "$tools"/node_modules/* "$tools"/node_modules/@* prebuilt/node_modules/ 2>/dev/null || true
cp "$root"/tests/packages/{module.mts,module.cts} prebuilt/
cat >prebuilt/tsconfig.json <<'JSON'
{ "compilerOptions": { "strict": true, "exactOptionalPropertyTypes": true, "noUncheckedIndexedAccess": true,
    "module": "nodenext", "target": "es2022", "types": ["node"] }, "files": ["module.mts", "module.cts"] }
JSON
check "TypeScript compiles it, strict" "$tools/node_modules/.bin/tsc" -p prebuilt
check "TypeScript: ESM runs" node prebuilt/module.mjs
check "TypeScript: CommonJS runs" node prebuilt/module.cjs

# A package of each name that the main one asks for, on a machine that looks as if it were its own.
for package in $(node -p 'Object.keys(require("./prebuilt/node_modules/ipcmutex/package.json").optionalDependencies).join(" ")'); do
    IFS=- read -r _ _ arch libc <<<"$package"
    project "$package"
    mkdir -p "$package/node_modules/$package" && cp -r prebuilt/node_modules/ipcmutex "$package/node_modules/"
    echo '{ "version": "0.0.0", "main": "main.js" }' >"$package/node_modules/$package/package.json"
    echo "module.exports = { name: '$package' }" >"$package/node_modules/$package/main.js"
    cat >"$package/machine.js" <<JS
Object.defineProperty(process, "arch", { value: "$arch" })
const fs = require("node:fs"), { readFileSync } = fs
fs.readFileSync = (file, ...rest) => file === "/usr/bin/ldd" ? "$libc" : readFileSync(file, ...rest)
JS
    check "$package is found where it belongs" node -r "./$package/machine.js" -e \
        "require('node:assert').equal(require('./$package/node_modules/ipcmutex/native.js').load().name, '$package')"
done

# Where no prebuilt package fits: it says so, and its script builds it with cargo alone.
project source
check "npm install of the main package alone, without scripts" npm --prefix source install --ignore-scripts "$main"
check "it says what is missing" eval '! node source/example.cjs 2>missing && grep -q "npm rebuild ipcmutex" missing'
export IPCMUTEX_PROFILE=dev # which needs no second build of all dependencies
check "npm rebuild builds it" npm --prefix source rebuild --foreground-scripts ipcmutex
use source

echo "$passed passed, 0 failed"
