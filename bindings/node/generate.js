"use strict"

// Writes loader.js, the loader of @napi-rs/cli, into a folder. It is kept, so that nothing needs that tool to build or install;
// `make packages` sees to it that it is what the tool writes.
//
//     node generate.js TOOLS FOLDER    TOOLS: a folder whose node_modules has @napi-rs/cli

const { createRequire } = require("node:module")
const path = require("node:path")

const { name, version } = require("./package.json")

const [tools, outputDir] = process.argv.slice(2).map((folder) => path.resolve(folder))
const { writeJsBinding } = createRequire(path.join(tools, "node_modules", "."))("@napi-rs/cli")

/*  Without a name it writes nothing. One is enough: index.js takes the addon as a whole.  */
const idents = ["Events"]

writeJsBinding({ platform: true, idents, jsBinding: "loader.js", binaryName: name, packageName: name, version, outputDir })
