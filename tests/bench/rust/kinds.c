/* The kinds of the Rust worker, which otherwise is the C worker. */
#include "../c/bench.h"

#include <fcntl.h>
#include <unistd.h>

void *rust_open(const char *name, const char *place);
void rust_acquire(void *lock);
void rust_release(void *lock);
void rust_close(void *lock);

static void file_prepare(const char *place) {
    int fd = open(place, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && close(fd) == 0);
}
static void nothing(const char *place) { (void)place; }

#define KIND(id, name, place, prepare, alone, ours)                                                                    \
    static void *id##_open(const char *where) { return rust_open(name, where); }                                      \
    static const kind_t id = {name, place, prepare, id##_open, rust_acquire, rust_release, rust_close, alone, ours};

static const char *const in_process = "it lives in the memory of one process";

KIND(ours, "ipcmutex", "mpm:{file}", nothing, NULL, true)
KIND(ours_unix, "ipcmutex-unix", "rpm+redis+unix://{socket}?id={id}&ttl={ttl_ms}ms", nothing, NULL, true)
KIND(fd_lock, "fd-lock", "{file}", file_prepare, NULL, false)
KIND(fslock, "fslock", "{file}", file_prepare, NULL, false)
KIND(named_lock, "named-lock", "{file}", file_prepare, NULL, false)
KIND(parking_lot, "parking_lot", "{id}", nothing, in_process, false)
KIND(rslock, "rslock", "redis+unix://{socket}#{id}#{ttl_ms}", nothing, NULL, false)

const kind_t *kind_named(const char *name) {
    const kind_t *const kinds[] = {&ours, &ours_unix, &fd_lock, &fslock, &named_lock, &parking_lot, &rslock};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i]->name, name) == 0) return kinds[i];
    return NULL;
}
