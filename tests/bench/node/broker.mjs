// live-mutex's server, until its parent's worker ends.
import { createRequire } from "node:module"

const { Broker } = createRequire(import.meta.url)("live-mutex")
await new Broker({ udsPath: process.argv[2] }).ensure()
process.send("ready")
