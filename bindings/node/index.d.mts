import Mutex = require("./index.js")

type Hold = Mutex.Hold
type AcquireOptions = Mutex.AcquireOptions
type Status = Mutex.Status
type MutexError = Mutex.MutexError
type Code = Mutex.Code
declare const Hold: typeof Mutex.Hold

export { Hold, Mutex, type AcquireOptions, type Status, type MutexError, type Code }
export default Mutex
