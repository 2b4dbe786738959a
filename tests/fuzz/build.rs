//! The sequences of C calls are written in C.

fn main() {
    let (calls, headers) = ("../../ffi/tests/c/calls.c", ["../../include", "../../ffi/tests/c"]);
    for file in [calls, "../../include/ipcmutex.h", "../../ffi/tests/c/check.h"] {
        println!("cargo:rerun-if-changed={file}");
    }
    cc::Build::new().file(calls).includes(headers).define("FUZZED", None).std("gnu11").compile("calls");
}
