/*
 * ipcmutex: one lock for C, Rust, Python, Node and shell programs, named by a URL.
 *
 *   spm:jobs                    threads of this process
 *   mpm:jobs  mpm:/path/lock    processes of this host
 *   rpm+redis://host/jobs       hosts, through Redis
 *
 *   ipcmutex_t jobs;
 *   if (ipcmutex_open("mpm:jobs", &jobs) != IPCMUTEX_OK ||
 *       ipcmutex_acquire(jobs) != IPCMUTEX_OK) {
 *       fprintf(stderr, "%s\n", ipcmutex_last_error());
 *       exit(1);
 *   }
 *   ...                                    // one at a time, over all programs that open it
 *   if (ipcmutex_release(jobs) != IPCMUTEX_OK)
 *       fprintf(stderr, "%s\n", ipcmutex_last_error());   // LOST: it was not one at a time
 *   ipcmutex_close(jobs);
 *
 * Build: cc main.c $(pkg-config --cflags --libs ipcmutex)
 *
 * All of it came with version 0.1.0, unless a function says otherwise.
 *
 * CAVEATS, before anything else
 *
 *   - The lock keeps out who asks for it, and nobody else. It is not recursive.
 *   - A hold of an rpm lock is a lease. It is renewed by itself, but a process that was stopped or cut
 *     off for longer than the lease has lost it, and may run on without knowing for as long as it does
 *     not look. Look (ipcmutex_hold_check), be told (ipcmutex_hold_on_lost), check what
 *     ipcmutex_release returns, and hand the token to what the lock protects.
 *   - Likewise a hold is lost if somebody breaks the lock, or removes or replaces the lock file.
 *   - A holder that dies frees the lock at once (rpm: when the lease ends). The next hold is told that the
 *     lock was `abandoned`.
 *   - mpm is for local file systems, and for Linux. On a network file system opening is refused.
 *
 * URLS
 *
 *   spm:<id>                                        mpm:<id>  mpm:/path  mpm:./path  file:/path
 *   rpm+redis://[user:secret@]host[:port][/<id>]    rpm+rediss://... (TLS)
 *   rpm+redis+unix:///path/redis.sock?id=<id>       rpm+redis+sentinel://h1,h2/<master>/<id>
 *   rpm+redis+cluster://h1,h2/<id>                  rpm+redlock://h1,h2,h3/<id>
 *
 *   All: ?fair=strict|eventual, label=<text>. mpm: mode=0660, remotefs=1. Redis: ttl=10s, renew=off, db=,
 *   prefix=, redis_key=, replicas=, connect_timeout=, policy=any, protocol=2|3, tls=on, ca= crt= key=; of
 *   Sentinels sentinel_user= sentinel_password=. An id is 1 to 200 bytes of A-Z a-z 0-9 . _ - (Redis: also
 *   / and :), but no .. and not . alone. Everything may be percent-encoded.
 *
 * CONVENTIONS
 *
 *   - A function that can fail returns IPCMUTEX_OK (0) or a positive code. Below, codes are written without
 *     their prefix. Beside those listed, any function may return BAD_HANDLE for a number that is not a live
 *     handle of the right kind, INVALID for NULL where it is not allowed, RESOURCE and PANIC.
 *   - ipcmutex_last_error() has the whole story of this thread's last failure; it never shows a password.
 *   - What a function gives back through a pointer is written only if it returns OK.
 *   - Handles are numbers, never addresses. A handle that was closed, closed twice or made up, in whatever
 *     thread, is BAD_HANDLE; its number does not come back.
 *   - A struct begins with `size`, which the caller sets to sizeof. As much of it is filled as both
 *     sides know, so that programs and libraries of different age fit.
 *   - Times are milliseconds. A timeout that is negative or INT64_MAX is for ever, 0 is a try.
 *   - Texts are UTF-8 and end with a NUL.
 *
 * THREADS
 *
 *   All functions may be called from any thread, also on one handle at the same time. A hold belongs to no
 *   thread. Through one handle, as through two, one at a time holds: the second waits. A library thread
 *   exists only while somebody waits asynchronously, a callback runs, an mpm hold is to tell of its loss
 *   (ipcmutex_hold_on_lost), a line of waiters is served or a lease is renewed; it blocks all signals. Loading
 *   the library starts none.
 *
 * FORK
 *
 *   A mutex that was opened before fork() works in the child, which holds nothing. A hold of the parent is
 *   FORKED in the child and stays the parent's. execve() releases what is held. Waits of the parent
 *   (ipcmutex_hold_async) do not exist in the child. Callbacks never run there.
 *
 * SIGNALS
 *
 *   No function may be called from a signal handler. A handler that runs during a wait neither ends nor
 *   lengthens it; to end it, cancel (ipcmutex_hold_async) or close from another thread. The library
 *   installs no handler and changes no process-wide state.
 *
 * CANCELLATION, longjmp, C++
 *
 *   A thread must not be cancelled (pthread_cancel) in, and no callback may leave by longjmp or an exception
 *   through, a function of this library.
 *
 * Generated from ffi/src by ffi/tests/header.rs. Do not edit.
 */


#ifndef IPCMUTEX_H
#define IPCMUTEX_H

#include <stdint.h>

/** The version of this header. ipcmutex_version() tells the library's. */
#define IPCMUTEX_VERSION "0.1.0"
#define IPCMUTEX_VERSION_MAJOR 0
#define IPCMUTEX_VERSION_MINOR 1
#define IPCMUTEX_VERSION_PATCH 0
/** One number to compare: major * 1000000 + minor * 1000 + patch. */
#define IPCMUTEX_VERSION_NUMBER 1000
/** The number of the binary interface, as in libipcmutex.so.0. ipcmutex_abi_version() tells the library's. */
#define IPCMUTEX_ABI_VERSION 0

/** What functions return. A number keeps its meaning for ever. */
enum ipcmutex_code {
  IPCMUTEX_OK = 0,
  /** not acquired in time */
  IPCMUTEX_TIMEOUT = 1,
  /** the wait was cancelled */
  IPCMUTEX_CANCELED = 2,
  /** the hold was lost before its release */
  IPCMUTEX_LOST = 3,
  /** there is no hold to release or extend */
  IPCMUTEX_NOT_OWNER = 4,
  /** the mutex is closed */
  IPCMUTEX_CLOSED = 5,
  /** the hold belongs to the parent process */
  IPCMUTEX_FORKED = 6,
  /** not a live handle */
  IPCMUTEX_BAD_HANDLE = 7,
  /** invalid argument */
  IPCMUTEX_INVALID = 8,
  /** permission denied */
  IPCMUTEX_PERMISSION = 9,
  /** the path cannot be trusted with a lock */
  IPCMUTEX_UNSAFE = 10,
  /** no space left for the lock file */
  IPCMUTEX_NO_SPACE = 11,
  /** out of descriptors, memory, slots or threads */
  IPCMUTEX_RESOURCE = 12,
  /** an operating system error */
  IPCMUTEX_IO = 13,
  /** the server is not available */
  IPCMUTEX_UNAVAILABLE = 14,
  /** authentication failed */
  IPCMUTEX_AUTH = 15,
  /** the server or the key is not fit for a lock */
  IPCMUTEX_CONFIG = 16,
  /** another version or another protocol */
  IPCMUTEX_PROTOCOL = 17,
  /** not supported here */
  IPCMUTEX_UNSUPPORTED = 18,
  /** internal error */
  IPCMUTEX_PANIC = 19
};

/** The `state` of ipcmutex_status_t. */
enum ipcmutex_state {
  /** Nobody holds it. */
  IPCMUTEX_FREE = 0,
  /** Somebody holds it. */
  IPCMUTEX_HELD = 1,
  /** Nobody holds it, and the last hold ended without a release. */
  IPCMUTEX_ABANDONED = 2
};

/**
 * An open mutex. Any number of threads may use it at the same time. 0 is never one.
 */
typedef uint64_t ipcmutex_t;

/**
 * What ipcmutex_status() tells.
 */
typedef struct {
  /**
   * To be set to sizeof(ipcmutex_status_t) before the call.
   */
  uint32_t size;
  /**
   * IPCMUTEX_FREE, IPCMUTEX_HELD or IPCMUTEX_ABANDONED.
   */
  uint32_t state;
  /**
   * The token of the hold, or of the last one if there is none; 0 if that is not known.
   */
  uint64_t token;
  /**
   * How many acquisitions wait. It may count one that has just died.
   */
  uint32_t waiters;
  /**
   * The process id of the owner as the owner sees it; 0 if that is not known. Of an abandoned lock:
   * who held it. For display only: a process id says nothing across containers, and is used again.
   */
  uint32_t owner_pid;
  /**
   * For how many milliseconds it is held; -1 if it is not, or that is not known.
   */
  int64_t held_ms;
  /**
   * The owner's host, "" if not known. Written by the owner: escape it before a terminal shows it.
   */
  char owner_host[64];
  /**
   * The owner's label (`label=` of its URL, else its program's name), "" if not known. As
   * owner_host.
   */
  char owner_label[64];
  /**
   * How often it was acquired, with or without a wait: for `spm:` since it is open in this process,
   * for `mpm:` since its file was made, by whichever process; for Redis through this handle. The
   * same holds for the numbers that follow.
   */
  uint64_t acquisitions;
  /**
   * Acquisitions that had to wait: the sum of `waits`.
   */
  uint64_t contended;
  /**
   * Waits that ended without the lock: timed out, cancelled, closed.
   */
  uint64_t gave_up;
  /**
   * Holds that ended without a release: their process died, their lease ran out, they were broken.
   */
  uint64_t losses;
  /**
   * Slow looks that found what nobody had told: 0, or nearly, when all is well.
   */
  uint64_t rechecks;
  /**
   * Acquisitions that had to wait, by how long: shorter than 0.1 ms, 1 ms, 10 ms, 100 ms, 1 s, 10 s;
   * the last counts the longer ones.
   */
  uint64_t waits[7];
} ipcmutex_status_t;

/**
 * One hold: one acquisition, and the proof of it. It belongs to whoever has the number, not to a
 * thread. 0 is never one.
 */
typedef uint64_t ipcmutex_hold_t;

/**
 * What ipcmutex_hold_info() tells.
 */
typedef struct {
  /**
   * To be set to sizeof(ipcmutex_hold_info_t) before the call.
   */
  uint32_t size;
  /**
   * 1 if the previous hold ended without a release (its process died, its lease ran out, or it was
   * broken): what the lock protects may be half done. Else 0.
   */
  uint32_t abandoned;
  /**
   * The fencing token: never 0, and larger than that of every earlier hold of this name. Hand it to
   * what the lock protects, and let that refuse a smaller one than it has seen.
   */
  uint64_t token;
  /**
   * For how many milliseconds the hold stands for certain without a renewal; -1 if it has no lease.
   */
  int64_t valid_ms;
} ipcmutex_hold_info_t;

/**
 * Told that a hold is lost, exactly once, on a thread of the library. What is said of
 * ipcmutex_acquired_fn holds here too.
 *
 * - `reason`: LOST, or another code that says why. ipcmutex_last_error() called in here tells it
 *   in full.
 * - `user`: as it was given.
 */
typedef void (*ipcmutex_lost_fn)(int reason, void *user);

/**
 * Told the outcome of ipcmutex_hold_async(), exactly once, on a thread of the library.
 *
 * - `code`: OK; TIMEOUT, CANCELED or CLOSED if the wait was ended; else what ipcmutex_acquire()
 *   may return. ipcmutex_last_error() called in here tells it in full.
 * - `hold`: with OK the hold, to be released with ipcmutex_hold_release(), in here or later, on
 *   any thread; else 0.
 * - `user`: as it was given.
 *
 * It may call every function of the library. Callbacks run one after the other: one that blocks
 * keeps others waiting, and one that waits for a lock which another callback is to release waits
 * for ever. Where no thread can be started they run on the one that has something to tell, which may be
 * in a release or a cancel: a mutex of the program's that is held around such a call must not be
 * taken in here. It must not throw a C++ exception.
 */
typedef void (*ipcmutex_acquired_fn)(int code, ipcmutex_hold_t hold, void *user);

/**
 * A pending acquisition that was started with ipcmutex_hold_async(). 0 is never one.
 */
typedef uint64_t ipcmutex_wait_t;

/**
 * Told what the library does, see ipcmutex_set_log().
 *
 * - `level`: 1 error, 2 warning, 3 information, 4 debug, 5 trace.
 * - `text`: UTF-8, one sentence, without a secret; valid during the call. It may name what other
 *   processes wrote (labels, hosts): escape it before a terminal shows it.
 * - `user`: as it was given.
 *
 * It runs on whatever thread has something to tell, at any time, and on several at once. It must not
 * call a function of this library, nor throw a C++ exception.
 */
typedef void (*ipcmutex_log_fn)(int level, const char *text, void *user);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Opens the lock that `url` names. It is not acquired.
 *
 * - `url`: UTF-8, ended by a NUL, at most 8192 bytes. It is copied.
 * - `mutex`: where the handle is written. To be ended with ipcmutex_close().
 *
 * Returns OK; INVALID for a bad URL (the text says what is possible); for a lock file PERMISSION,
 * UNSAFE, NO_SPACE, RESOURCE, IO or PROTOCOL; for Redis UNAVAILABLE, AUTH, PERMISSION, CONFIG or
 * PROTOCOL, and for a file of `ca=`, `crt=` or `key=` also IO; UNSUPPORTED for an engine that is
 * not built in.
 *
 * Blocks only to connect to a server (`connect_timeout=`).
 */
int ipcmutex_open(const char *url, ipcmutex_t *mutex);

/**
 * Acquires, as long as it takes. The hold is the handle's: ipcmutex_release() ends it, from
 * whichever thread.
 *
 * The lock is not recursive: who holds it through this handle or any other and acquires again
 * waits for the release.
 *
 * Returns OK; CLOSED if the mutex was closed meanwhile; FORKED in a child that a signal's handler
 * forks meanwhile; UNAVAILABLE if the server has not served for 5 s, or for `connect_timeout=` if
 * that is longer (ipcmutex_acquire_timeout() waits for it in full); of what the operating system
 * or the server makes impossible, the other codes of ipcmutex_open().
 *
 * Blocks; first come, first served (see `fair=`).
 */
int ipcmutex_acquire(ipcmutex_t mutex);

/**
 * Acquires if that is possible at once.
 *
 * Returns OK; TIMEOUT if it is held (the text says by whom); else as ipcmutex_acquire().
 *
 * Does not wait for a holder.
 */
int ipcmutex_try_acquire(ipcmutex_t mutex);

/**
 * Acquires within `timeout_ms` milliseconds: negative or INT64_MAX for ever, 0 to try.
 *
 * Returns OK; TIMEOUT if that was not possible in time (the text says who holds it); else as
 * ipcmutex_acquire().
 *
 * Blocks up to the limit. Signals do not lengthen it.
 */
int ipcmutex_acquire_timeout(ipcmutex_t mutex, int64_t timeout_ms);

/**
 * Ends the hold that is current through this handle, however it was taken. Any thread may do so.
 *
 * Returns OK; NOT_OWNER if nothing is held through this handle; LOST if the hold was gone before
 * (nobody else's hold is touched); FORKED in a child whose parent holds; UNAVAILABLE if the server
 * does not answer, AUTH, PERMISSION, CONFIG or PROTOCOL if it refuses: then it ends with its
 * lease.
 *
 * Does not wait for others; Redis: one round trip.
 */
int ipcmutex_release(ipcmutex_t mutex);

/**
 * Ends the handle: releases a hold that was taken through it, and ends the waits on it with
 * CLOSED.
 *
 * Whatever it returns but BAD_HANDLE, the number is no handle any more. Calls under way in other
 * threads end in their own time and are safe. Numbers of holds taken through it stay until
 * ipcmutex_hold_release().
 *
 * Returns OK; LOST if the hold was gone before; UNAVAILABLE if the server does not answer, AUTH,
 * PERMISSION, CONFIG or PROTOCOL if it refuses: then the hold ends with its lease.
 *
 * Does not wait for others; Redis: one round trip if it is held.
 */
int ipcmutex_close(ipcmutex_t mutex);

/**
 * The fencing token of the hold that is current through this handle. See ipcmutex_hold_info_t.
 *
 * - `token`: where it is written.
 *
 * Returns OK; NOT_OWNER if nothing is held through this handle; FORKED in a child whose parent
 * holds.
 *
 * Does not block.
 */
int ipcmutex_token(ipcmutex_t mutex, uint64_t *token);

/**
 * Who holds the lock, in whatever process or host, and how many wait. It may have changed before
 * the call returns.
 *
 * - `status`: its `size` set by the caller. As much of it is filled as both sides know.
 *
 * Returns OK; INVALID for an impossible `size`; else what ipcmutex_acquire() returns of errors.
 *
 * Does not wait for others; Redis: one round trip.
 */
int ipcmutex_status(ipcmutex_t mutex, ipcmutex_status_t *status);

/**
 * Takes the lock away from whoever holds it, in whatever process or host. That hold is lost and
 * its token stale; the next one hears `abandoned`. For a person or a supervisor who knows that the
 * owner hangs: the owner goes on running until it notices.
 *
 * Returns OK, also if nobody held it; else what ipcmutex_acquire() returns of errors.
 *
 * Does not wait for others; Redis: one round trip.
 */
int ipcmutex_break(ipcmutex_t mutex);

/**
 * Acquires within `timeout_ms` milliseconds (negative or INT64_MAX for ever, 0 to try) and gives
 * the hold a number of its own.
 *
 * - `hold`: where it is written. To be ended with ipcmutex_hold_release(). It is also the hold
 *   that is current through the mutex, so ipcmutex_release() and ipcmutex_close() end it as well.
 *
 * Returns as ipcmutex_acquire_timeout().
 *
 * Blocks up to the limit.
 */
int ipcmutex_hold(ipcmutex_t mutex, int64_t timeout_ms, ipcmutex_hold_t *hold);

/**
 * Ends this hold, and no other, ever.
 *
 * Whatever it returns but FORKED, the number is no handle any more.
 *
 * Returns OK; LOST if the hold was gone before; NOT_OWNER if it was released already, through its
 * mutex; FORKED in a child of the process that holds: it stays the parent's; UNAVAILABLE if the
 * server does not answer, AUTH, PERMISSION, CONFIG or PROTOCOL if it refuses: then it ends with its
 * lease.
 *
 * Does not wait for others; Redis: one round trip.
 */
int ipcmutex_hold_release(ipcmutex_hold_t hold);

/**
 * Whether the hold still stands.
 *
 * Returns OK; LOST; NOT_OWNER if it was released through its mutex; FORKED in a child.
 *
 * Does not block, and does no input or output: call it as often as you like, and before each step
 * that must not run unlocked.
 */
int ipcmutex_hold_check(ipcmutex_hold_t hold);

/**
 * Renews the lease of a Redis hold, which then lasts `ttl_ms` milliseconds from now. Needed only
 * with `renew=off`.
 *
 * - `ttl_ms`: 100 ms to 24 hours.
 *
 * Returns OK; INVALID for another `ttl_ms`; UNSUPPORTED if the hold has no lease (it lasts until
 * it is released or its process ends); LOST; NOT_OWNER if it was released through its mutex;
 * FORKED in a child; UNAVAILABLE if the server does not answer, AUTH, PERMISSION, CONFIG or PROTOCOL
 * if it refuses.
 *
 * Blocks for one round trip.
 */
int ipcmutex_hold_extend(ipcmutex_hold_t hold,
                         int64_t ttl_ms);

/**
 * The token of the hold, whether the one before was abandoned, and how long it lasts. A lost hold
 * still tells.
 *
 * - `info`: its `size` set by the caller. As much of it is filled as both sides know.
 *
 * Returns OK; INVALID for an impossible `size`; NOT_OWNER if it was released through its mutex;
 * FORKED in a child.
 *
 * Does not block.
 */
int ipcmutex_hold_info(ipcmutex_hold_t hold, ipcmutex_hold_info_t *info);

/**
 * Calls `callback` once if the hold is lost; never if it is released. If it is lost already, that
 * is soon. Each callback that was given is called.
 *
 * - `callback`: not NULL.
 * - `user`: handed to it; NULL is fine. It must live until the callback ran or the hold was
 *   released. What ends the hold and returns LOST has not released it: the callback may still come.
 *
 * Of an mpm hold it is told up to a second late: a thread of the library looks once a second, for as
 * long as the hold lasts.
 *
 * Returns OK; NOT_OWNER if the hold was released through its mutex; FORKED in a child.
 *
 * Does not block.
 */
int ipcmutex_hold_on_lost(ipcmutex_hold_t hold,
                          ipcmutex_lost_fn callback,
                          void *user);

/**
 * Acquires without blocking the caller: `callback` gets the hold, or the reason why there is none.
 *
 * - `timeout_ms`: negative or INT64_MAX for ever, 0 to try.
 * - `callback`: not NULL. It may run before this call returns.
 * - `user`: handed to it; NULL is fine. It must live until the callback ran.
 * - `wait`: where the number to cancel with is written, perhaps after the callback ran; NULL if it
 *   is not wanted. It ends with the callback, and needs no freeing.
 *
 * Returns OK, and then the callback is called exactly once; any other code (as ipcmutex_acquire(),
 * but neither TIMEOUT nor CANCELED), and then never. In a forked child no callback of the parent's
 * waits is called.
 *
 * Does not block: a waiter costs memory, not a thread, and a lock in Redis is asked for by a
 * thread of the library. In a forked child the first call opens the lock anew, as ipcmutex_open().
 */
int ipcmutex_hold_async(ipcmutex_t mutex,
                        int64_t timeout_ms,
                        ipcmutex_acquired_fn callback,
                        void *user,
                        ipcmutex_wait_t *wait);

/**
 * Ends a pending acquisition: its callback is told CANCELED. A wait that has ended never takes the
 * lock.
 *
 * Returns OK; BAD_HANDLE if the wait has an outcome already, which its callback was told or soon
 * will be, and in a forked child.
 *
 * Does not block, and does not wait for the callback.
 */
int ipcmutex_cancel(ipcmutex_wait_t wait);

/**
 * Has what the library does told to `callback`, or written to stderr: waits and how they ended, dead
 * owners, lost holds, servers that are away. Nothing is told of an acquisition that need not wait.
 *
 * Without this call the environment variable IPCMUTEX_LOG (`error`, `warn`, `info`, `debug`, `trace`;
 * any other word is `debug`, but `off`, `0` and none at all are nothing) has it written to stderr;
 * without both nothing is told. The last call counts, for the whole process;
 * a forked child writes to stderr.
 *
 * - `level`: up to which it is told: 0 nothing, 1 error, 2 warning, 3 information, 4 debug, 5 trace.
 * - `callback`: NULL for stderr. It may still be running, or be called once more, when a later call
 *   has set another.
 * - `user`: handed to it; NULL is fine. It must live as long as the process.
 *
 * Returns OK; INVALID for another level.
 *
 * Does not block.
 */
int ipcmutex_set_log(int level,
                     ipcmutex_log_fn callback,
                     void *user);

/**
 * One sentence for a code. Static, never NULL, also for a number that is no code.
 */
const char *ipcmutex_strerror(int code);

/**
 * This thread's last failure in full: what was tried, on which URL (its secret shown as ***), what
 * was found, what can be done. "" if nothing has failed yet. Never NULL; valid until this thread's
 * next call of a function of this library, or its end. A success does not clear it.
 */
const char *ipcmutex_last_error(void);

/**
 * The version of the library at run time, such as "0.1.0". Static. Compare with IPCMUTEX_VERSION.
 */
const char *ipcmutex_version(void);

/**
 * The number of the binary interface at run time: that of the library's file name. Compare with
 * IPCMUTEX_ABI_VERSION.
 */
uint32_t ipcmutex_abi_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* IPCMUTEX_H */
