//! Every name that programs are written against. `tests/surface.rs` fails on what is missing; there may be more.

/// The functions of `ipcmutex.h`, and that they are exported by the library.
pub const C_FUNCTIONS: &[&str] = &[
    "ipcmutex_open",
    "ipcmutex_acquire",
    "ipcmutex_try_acquire",
    "ipcmutex_acquire_timeout",
    "ipcmutex_release",
    "ipcmutex_close",
    "ipcmutex_hold",
    "ipcmutex_hold_release",
    "ipcmutex_hold_check",
    "ipcmutex_hold_extend",
    "ipcmutex_hold_info",
    "ipcmutex_hold_on_lost",
    "ipcmutex_hold_async",
    "ipcmutex_cancel",
    "ipcmutex_token",
    "ipcmutex_status",
    "ipcmutex_break",
    "ipcmutex_strerror",
    "ipcmutex_last_error",
    "ipcmutex_version",
    "ipcmutex_abi_version",
    "ipcmutex_set_log",
];

/// The declarations a C program leans on: it compiles only if each has exactly this type.
pub const C_TYPES: &str = r"
static int (*f01)(const char *, ipcmutex_t *) = ipcmutex_open;
static int (*f02)(ipcmutex_t) = ipcmutex_acquire;
static int (*f03)(ipcmutex_t) = ipcmutex_try_acquire;
static int (*f04)(ipcmutex_t, int64_t) = ipcmutex_acquire_timeout;
static int (*f05)(ipcmutex_t) = ipcmutex_release;
static int (*f06)(ipcmutex_t) = ipcmutex_close;
static int (*f07)(ipcmutex_t, int64_t, ipcmutex_hold_t *) = ipcmutex_hold;
static int (*f08)(ipcmutex_hold_t) = ipcmutex_hold_release;
static int (*f09)(ipcmutex_hold_t) = ipcmutex_hold_check;
static int (*f10)(ipcmutex_hold_t, int64_t) = ipcmutex_hold_extend;
static int (*f11)(ipcmutex_hold_t, ipcmutex_hold_info_t *) = ipcmutex_hold_info;
static int (*f12)(ipcmutex_hold_t, void (*)(int, void *), void *) = ipcmutex_hold_on_lost;
static int (*f13)(ipcmutex_t, int64_t, ipcmutex_acquired_fn, void *, ipcmutex_wait_t *) = ipcmutex_hold_async;
static int (*f14)(ipcmutex_wait_t) = ipcmutex_cancel;
static int (*f15)(ipcmutex_t, uint64_t *) = ipcmutex_token;
static int (*f16)(ipcmutex_t, ipcmutex_status_t *) = ipcmutex_status;
static int (*f17)(ipcmutex_t) = ipcmutex_break;
static const char *(*f18)(int) = ipcmutex_strerror;
static const char *(*f19)(void) = ipcmutex_last_error;
static const char *(*f20)(void) = ipcmutex_version;
static uint32_t (*f21)(void) = ipcmutex_abi_version;
static void acquired(int code, ipcmutex_hold_t hold, void *user) { (void)code; (void)hold; (void)user; }
static ipcmutex_acquired_fn f22 = acquired;
static ipcmutex_hold_info_t info = {.size = sizeof info, .abandoned = 0, .token = 0, .valid_ms = -1};
static ipcmutex_status_t status = {.size = sizeof status, .state = 0, .token = 0, .waiters = 0, .owner_pid = 0, .held_ms = 0};
int main(void) {
    ipcmutex_t handle = 0;
    uint64_t *same = &handle;
    (void)same, (void)info, (void)f22;
    (void)f01, (void)f02, (void)f03, (void)f04, (void)f05, (void)f06, (void)f07, (void)f08, (void)f09, (void)f10;
    int (*f23)(int, ipcmutex_log_fn, void *) = ipcmutex_set_log;
    (void)f23;
    (void)f11, (void)f12, (void)f13, (void)f14, (void)f15, (void)f16, (void)f17, (void)f21;
    (void)(status.acquisitions + status.contended + status.gave_up + status.losses + status.rechecks + status.waits[6]);
    if (sizeof status.owner_host != 64 || sizeof status.owner_label != 64) return 2;
    return f18(IPCMUTEX_LOST)[0] && f19() && f20()[0] ? 0 : 1;
}
";

/// The classes of the Python package and what each has.
pub const PYTHON: &[(&str, &[&str])] = &[
    (
        "Mutex",
        &[
            "open",
            "close",
            "acquire",
            "release",
            "locked",
            "hold",
            "status",
            "break_lock",
            "__enter__",
            "__exit__",
            "__call__",
        ],
    ),
    (
        "AsyncMutex",
        &[
            "open",
            "close",
            "acquire",
            "release",
            "locked",
            "hold",
            "status",
            "break_lock",
            "__aenter__",
            "__aexit__",
            "__call__",
        ],
    ),
    (
        "Hold",
        &["token", "abandoned", "lost", "valid_ms", "check", "extend", "on_lost", "release", "__enter__", "__exit__"],
    ),
    ("Status", &["state", "token", "waiters", "owner_pid", "owner_host", "owner_label", "held_ms"]),
    ("Status", &["acquisitions", "contended", "gave_up", "losses", "rechecks", "waits"]),
];

/// What the Python exceptions also are, beside `IpcMutexError`.
pub const PYTHON_BASES: &[(&str, &str)] = &[
    ("AcquireTimeout", "TimeoutError"),
    ("NotOwner", "RuntimeError"),
    ("InvalidArgument", "ValueError"),
    ("PermissionDenied", "PermissionError"),
    ("Unavailable", "ConnectionError"),
];

/// The methods of Node's `Mutex`.
pub const NODE_MUTEX: &[&str] = &[
    "open",
    "acquire",
    "release",
    "close",
    "tryAcquire",
    "execute",
    "status",
    "breakLock",
    "acquireSync",
    "releaseSync",
];

/// What a `Hold` of Node has.
pub const NODE_HOLD: &[&str] = &["token", "abandoned", "validMs", "signal", "check", "extend", "release"];

/// What Node's `status()` has while the lock is held.
pub const NODE_STATUS: &[&str] = &[
    "state",
    "token",
    "waiters",
    "ownerPid",
    "ownerHost",
    "ownerLabel",
    "heldMs",
    "acquisitions",
    "contended",
    "gaveUp",
    "losses",
    "rechecks",
    "waits",
];

/// What `status --json` has while the lock is held.
pub const JSON_STATUS: &[&str] = &[
    "state",
    "token",
    "waiters",
    "owner_pid",
    "owner_host",
    "owner_label",
    "held_ms",
    "acquisitions",
    "contended",
    "gave_up",
    "losses",
    "rechecks",
    "waits",
];

/// The subcommands of the command, each with options that its help names.
pub const COMMAND: &[(&str, &[&str])] = &[
    ("run", &["-n", "-w", "-E", "--ttl", "--kill-after"]),
    ("status", &["--json"]),
    ("ps", &["--json", "--url"]),
    ("wait", &["-w", "-E"]),
    ("break", &[]),
];

/// The codes of C with their values, from the contract; core's own table is compared with it.
pub const CODES: &[(&str, i32)] = &[
    ("OK", 0),
    ("TIMEOUT", 1),
    ("CANCELED", 2),
    ("LOST", 3),
    ("NOT_OWNER", 4),
    ("CLOSED", 5),
    ("FORKED", 6),
    ("BAD_HANDLE", 7),
    ("INVALID", 8),
    ("PERMISSION", 9),
    ("UNSAFE", 10),
    ("NO_SPACE", 11),
    ("RESOURCE", 12),
    ("IO", 13),
    ("UNAVAILABLE", 14),
    ("AUTH", 15),
    ("CONFIG", 16),
    ("PROTOCOL", 17),
    ("UNSUPPORTED", 18),
    ("PANIC", 19),
];
