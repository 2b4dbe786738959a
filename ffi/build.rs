//! Link arguments that cargo does not set by itself.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // The number is the ABI's; `IPCMUTEX_ABI_VERSION` and `ipcmutex_abi_version` say the same, and a test compares.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libipcmutex.so.0");
        // A thread of the library, a fork handler or the shared lock table may outlive a dlclose: the code must stay.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
