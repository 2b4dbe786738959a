#!/usr/bin/env bash
# The npm tarballs, installed with npm into empty projects: prebuilt without scripts, and built from source by the script.
#
#   node.sh TOOLS    a folder whose node_modules has typescript and @types/node
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
    check "$1: the command is the installed one" env PATH="$work/$1/node_modules/.bin:$PATH" \
        sh -c "[ \$(command -v ipcmutex) = $work/$1/node_modules/.bin/ipcmutex ]"
}

project prebuilt
check "npm install, without scripts" npm --prefix prebuilt install --ignore-scripts "$main" "$prebuilt"
use prebuilt
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

# Where no prebuilt package fits: it says so, and its script builds it with cargo alone.
project source
check "npm install of the main package alone, without scripts" npm --prefix source install --ignore-scripts "$main"
check "it says what is missing" eval '! node source/example.cjs 2>missing && grep -q "npm rebuild ipcmutex" missing'
export IPCMUTEX_PROFILE=dev # which needs no second build of all dependencies
check "npm rebuild builds it" npm --prefix source rebuild --foreground-scripts ipcmutex
use source

echo "$passed passed, 0 failed"
