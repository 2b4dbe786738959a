#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ipcmutex_fuzz::page::run(data));
