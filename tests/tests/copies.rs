//! Several copies of the library in one process share one table of `spm:` locks.

use std::process::Command;

use ipcmutex_tests::artifacts;

/// The Python package has its own copy of the library, and `libipcmutex.so` is another.
const SCRIPT: &str = r#"
import ctypes, sys

def with_library(path):
    library = ctypes.CDLL(path)
    handle = ctypes.c_uint64()
    assert library.ipcmutex_open(b"spm:copies", ctypes.byref(handle)) == 0
    return library, handle

if sys.argv[2] == "python first":
    import ipcmutex
    mutex = ipcmutex.Mutex("spm:copies")
    library, handle = with_library(sys.argv[1])
else:
    library, handle = with_library(sys.argv[1])
    import ipcmutex
    mutex = ipcmutex.Mutex("spm:copies")

TIMEOUT = 1
last = 0
for _ in range(100):
    hold = mutex.hold()
    assert library.ipcmutex_try_acquire(handle) == TIMEOUT, "C took what Python holds"
    assert hold.token > last
    hold.release()
    assert library.ipcmutex_acquire(handle) == 0
    assert not mutex.acquire(blocking=False), "Python took what C holds"
    token = ctypes.c_uint64()
    assert library.ipcmutex_token(handle, ctypes.byref(token)) == 0
    assert token.value > hold.token
    last = token.value
    assert library.ipcmutex_release(handle) == 0

# A waiter of the one copy is woken by a release of the other.
import threading
assert library.ipcmutex_acquire(handle) == 0
served = []
waiter = threading.Thread(target=lambda: served.append(mutex.acquire(timeout=20)))
waiter.start()
while mutex.status().waiters != 1:
    pass
assert library.ipcmutex_release(handle) == 0
waiter.join()
assert served == [True]
assert library.ipcmutex_try_acquire(handle) == TIMEOUT
mutex.release()
"#;

#[test]
fn k8_python_and_c_in_one_process_exclude_each_other() {
    for order in ["python first", "c first"] {
        let output = Command::new(artifacts::python())
            .args(["-c", SCRIPT])
            .arg(artifacts::program("libipcmutex.so"))
            .arg(order)
            .output()
            .expect("python runs");
        assert!(output.status.success(), "{order}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
