/* The ways to lock. Each is used as its own manual says, with no more checks than a program needs. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <ipcmutex.h>
#include <linux/futex.h>
#include <netdb.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- ipcmutex ---- */

static void *ours_open(const char *place) {
    ipcmutex_t mutex;
    if (ipcmutex_open(place, &mutex) != IPCMUTEX_OK) fail("%s", ipcmutex_last_error());
    return (void *)(uintptr_t)mutex;
}
static void ours_acquire(void *lock) {
    if (ipcmutex_acquire((uintptr_t)lock) != IPCMUTEX_OK) fail("%s", ipcmutex_last_error());
}
static void ours_release(void *lock) {
    if (ipcmutex_release((uintptr_t)lock) != IPCMUTEX_OK) fail("%s", ipcmutex_last_error());
}
static void ours_close(void *lock) {
    if (ipcmutex_close((uintptr_t)lock) != IPCMUTEX_OK) fail("%s", ipcmutex_last_error());
}
/* The lock exists before it is measured, as those of the peers do. */
static void ours_prepare(const char *place) {
    void *lock = ours_open(place);
    ours_acquire(lock);
    ours_release(lock);
    ours_close(lock);
}

/* ---- files ---- */

static void *file_open(const char *place) {
    int fd = open(place, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    return (void *)(intptr_t)fd;
}
static void file_prepare(const char *place) {
    int fd = open(place, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && close(fd) == 0);
}
static void file_close(void *lock) { CHECK(close((intptr_t)lock) == 0); }

static void flock_acquire(void *lock) { CHECK(flock((intptr_t)lock, LOCK_EX) == 0); }
static void flock_release(void *lock) { CHECK(flock((intptr_t)lock, LOCK_UN) == 0); }

static void ofd(void *lock, short type) {
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    CHECK(fcntl((intptr_t)lock, F_OFD_SETLKW, &range) == 0);
}
static void ofd_acquire(void *lock) { ofd(lock, F_WRLCK); }
static void ofd_release(void *lock) { ofd(lock, F_UNLCK); }

/* ---- words in a mapped file ---- */

static void *map_open(const char *place) {
    int fd = open(place, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(page != MAP_FAILED && close(fd) == 0);
    return page;
}
static void map_close(void *lock) { CHECK(munmap(lock, 4096) == 0); }
static void *map_new(const char *place) {
    int fd = open(place, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0 && close(fd) == 0);
    return map_open(place);
}

static void mutex_prepare(const char *place, int robustness) {
    pthread_mutexattr_t attributes;
    CHECK(pthread_mutexattr_init(&attributes) == 0);
    CHECK(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
    CHECK(pthread_mutexattr_setrobust(&attributes, robustness) == 0);
    void *page = map_new(place);
    CHECK(pthread_mutex_init(page, &attributes) == 0);
    map_close(page);
}
static void pthread_prepare(const char *place) { mutex_prepare(place, PTHREAD_MUTEX_STALLED); }
static void robust_prepare(const char *place) { mutex_prepare(place, PTHREAD_MUTEX_ROBUST); }
static void mutex_acquire(void *lock) {
    int code = pthread_mutex_lock(lock);
    if (code == EOWNERDEAD) code = pthread_mutex_consistent(lock);
    CHECK(code == 0);
}
static void mutex_release(void *lock) { CHECK(pthread_mutex_unlock(lock) == 0); }

/* The bare wake-up, to compare hand-overs with: a word, FUTEX_WAIT and FUTEX_WAKE, and nothing else. */
static void futex_prepare(const char *place) {
    _Atomic uint32_t *word = map_new(place);
    atomic_store(word, 1);
    map_close((void *)word);
}
static void futex_acquire(void *lock) {
    _Atomic uint32_t *word = lock;
    while (!atomic_exchange(word, 0)) syscall(SYS_futex, word, FUTEX_WAIT, 0, NULL, NULL, 0);
}
static void futex_release(void *lock) {
    _Atomic uint32_t *word = lock;
    atomic_store(word, 1);
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* ---- POSIX named semaphore: its name is the file's, with the folder's in front ---- */

static const char *semaphore_name(const char *place) {
    static _Thread_local char name[256];
    const char *slash = strrchr(place, '/'), *folder = slash;
    while (folder > place && folder[-1] != '/') folder--;
    snprintf(name, sizeof name, "/%.*s.%s", (int)(slash - folder), folder, slash + 1);
    return name;
}
static void semaphore_prepare(const char *place) {
    sem_t *semaphore = sem_open(semaphore_name(place), O_CREAT | O_EXCL, 0600, 1);
    CHECK(semaphore != SEM_FAILED && sem_close(semaphore) == 0);
}
static void *semaphore_open(const char *place) {
    sem_t *semaphore = sem_open(semaphore_name(place), 0);
    CHECK(semaphore != SEM_FAILED);
    return semaphore;
}
static void semaphore_acquire(void *lock) {
    while (sem_wait(lock) != 0) CHECK(errno == EINTR);
}
static void semaphore_release(void *lock) { CHECK(sem_post(lock) == 0); }
static void semaphore_close(void *lock) { CHECK(sem_close(lock) == 0); }

/* ---- a raw Redis round trip each way: what no lock can be faster than ---- */

static void nothing(const char *place) { (void)place; }
static void *ping_open(const char *place) {
    int fd;
    if (place[0] == '/') {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        snprintf(address.sun_path, sizeof address.sun_path, "%s", place);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    } else {
        struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
        CHECK(getaddrinfo("127.0.0.1", place, &hints, &found) == 0);
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) == 0);
        freeaddrinfo(found);
    }
    return (void *)(intptr_t)fd;
}
static void ping(void *lock) {
    char reply[64];
    size_t got = 0;
    CHECK(send((intptr_t)lock, "PING\r\n", 6, MSG_NOSIGNAL) == 6);
    while (got < 7) {
        ssize_t more = recv((intptr_t)lock, reply + got, sizeof reply - got, 0);
        CHECK(more > 0);
        got += more;
    }
    CHECK(got == 7 && memcmp(reply, "+PONG\r\n", 7) == 0);
}

/* ---- a lock that is none: the exclusion checks must find it out ---- */

static void *none_open(const char *place) { return (void *)place; }
static void none(void *lock) { (void)lock; }

static const char *const in_process = "its name is known in its own process alone";
static const char *const no_lock = "it is no lock";

static const kind_t kinds[] = {
    {"ipcmutex", "mpm:{file}", ours_prepare, ours_open, ours_acquire, ours_release, ours_close, NULL, true},
    {"ipcmutex-strict", "mpm:{file}?fair=strict", ours_prepare, ours_open, ours_acquire, ours_release, ours_close, NULL, true},
    {"ipcmutex-spm", "spm:{id}", ours_prepare, ours_open, ours_acquire, ours_release, ours_close, in_process, true},
    {"ipcmutex-unix", "rpm+redis+unix://{socket}?id={id}&ttl={ttl_ms}ms", ours_prepare, ours_open, ours_acquire, ours_release, ours_close,
     NULL, true},
    {"ipcmutex-tcp", "rpm+redis://127.0.0.1:{port}/{id}?ttl={ttl_ms}ms", ours_prepare, ours_open, ours_acquire, ours_release, ours_close,
     NULL, true},
    {"pthread", "{file}", pthread_prepare, map_open, mutex_acquire, mutex_release, map_close, NULL, false},
    {"robust", "{file}", robust_prepare, map_open, mutex_acquire, mutex_release, map_close, NULL, false},
    {"flock", "{file}", file_prepare, file_open, flock_acquire, flock_release, file_close, NULL, false},
    {"ofd", "{file}", file_prepare, file_open, ofd_acquire, ofd_release, file_close, NULL, false},
    {"semaphore", "{file}", semaphore_prepare, semaphore_open, semaphore_acquire, semaphore_release, semaphore_close, NULL, false},
    {"futex", "{file}", futex_prepare, map_open, futex_acquire, futex_release, map_close, NULL, false},
    {"ping-unix", "{socket}", nothing, ping_open, ping, ping, file_close, no_lock, false},
    {"ping-tcp", "{port}", nothing, ping_open, ping, ping, file_close, no_lock, false},
    {"none", "{file}", nothing, none_open, none, none, none, NULL, false},
};

const kind_t *kind_named(const char *name) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0) return &kinds[i];
    return NULL;
}
