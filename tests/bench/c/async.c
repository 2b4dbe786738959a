/* Waiters of ours without a thread each, in one process or in several. */
#include "bench.h"

#include <ipcmutex.h>
#include <unistd.h>

typedef struct {
    _Alignas(64) volatile uint64_t counter; /* under the lock alone */
    _Alignas(64) atomic_int queued, left, stop;
    _Alignas(64) _Atomic int64_t bytes;
} board_t;

typedef struct {
    board_t *board;
    ipcmutex_t mutex;
} waiter_t;

static void queue(waiter_t *waiter);

static void served(int code, ipcmutex_hold_t hold, void *user) {
    waiter_t *waiter = user;
    if (code != IPCMUTEX_OK) fail("%s", ipcmutex_last_error());
    waiter->board->counter = waiter->board->counter + 1;
    bool again = !atomic_load_explicit(&waiter->board->stop, memory_order_relaxed);
    if (ipcmutex_hold_release(hold) != IPCMUTEX_OK) fail("%s", ipcmutex_last_error());
    if (again)
        queue(waiter);
    else
        atomic_fetch_sub(&waiter->board->left, 1);
}

static void queue(waiter_t *waiter) {
    if (ipcmutex_hold_async(waiter->mutex, -1, served, waiter, NULL) != IPCMUTEX_OK) fail("%s", ipcmutex_last_error());
}

static void wait_in_line(waiter_t *waiter, const char *place, int n) {
    if (ipcmutex_open(place, &waiter->mutex) != IPCMUTEX_OK) fail("%s", ipcmutex_last_error());
    int64_t before = resident();
    for (int i = 0; i < n; i++) queue(waiter);
    atomic_fetch_add(&waiter->board->bytes, resident() - before);
    atomic_fetch_add(&waiter->board->queued, n);
}

/* As task_line: `ns` from one owner to the next, `bytes` for each waiter. */
void task_async(const kind_t *kind) {
    if (!kind->ours) fail("only ours");
    int n = (int)number("waiters", 1), processes = (int)number("processes", 1);
    int64_t wanted = (int64_t)(atof(text("seconds", "0.1")) * 1e9);
    const char *place = place_of(kind, 0);
    board_t *board = shared(sizeof *board);
    kind->prepare(place);
    atomic_store(&board->left, n);
    void *lock = kind->open(place);
    kind->acquire(lock);
    waiter_t waiter = {board, 0};
    for (int i = 0; i < processes; i++) {
        int mine = n / processes + (i < n % processes);
        if (processes == 1)
            wait_in_line(&waiter, place, mine);
        else if (child() == 0) {
            wait_in_line(&waiter, place, mine);
            while (atomic_load(&board->left) > 0) sleep_ns(1000000);
            _exit(0);
        }
    }
    while (atomic_load(&board->queued) < n) sleep_ns(1000000);
    if (board->counter) fail("not exclusive: a waiter came in while it was held");
    kind->release(lock);
    sleep_ns(wanted / 10);
    int64_t start = now_ns();
    uint64_t counted = board->counter;
    sleep_ns(wanted);
    counted = board->counter - counted;
    int64_t end = now_ns();
    atomic_store(&board->stop, 1);
    while (atomic_load(&board->left) > 0) sleep_ns(1000000);
    if (processes > 1) await_children(processes);
    if (!counted) fail("nobody came in within %s s", text("seconds", "0.1"));
    printf("{\"ns\": %.3f, \"bytes\": %.0f}\n", (double)(end - start) / counted, (double)atomic_load(&board->bytes) / n);
}
