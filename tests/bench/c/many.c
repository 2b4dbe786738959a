/* What many locks and many waiters cost: time for a pair, and memory for each. */
#include "bench.h"

#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

/* What this process has in memory, also of what it shares. */
int64_t resident(void) {
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    CHECK(file);
    char line[256];
    long long kib = -1;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "Rss: %lld kB", &kib) == 1) break;
    CHECK(fclose(file) == 0 && kib >= 0);
    return kib * 1024;
}

static double timed_pairs(const kind_t *kind, void **locks, int n, volatile uint64_t *counter) {
    int64_t wanted = (int64_t)(atof(text("seconds", "0.1")) * 1e9), start = now_ns(), end;
    uint64_t turns = 0;
    for (bool warm = true;; warm = false) {
        start = now_ns();
        turns = 0;
        do {
            for (int i = 0; i < 1000; i++, turns++) {
                void *lock = locks[turns % n];
                kind->acquire(lock);
                *counter = *counter + 1;
                kind->release(lock);
            }
        } while ((end = now_ns()) - start < (warm ? wanted / 10 : wanted));
        if (!warm) return (double)(end - start) / turns;
    }
}

/* `ns` is a pair on one of the n open locks, `each_ns` a pair when each takes its turn, `bytes` what each needs. */
void task_many(const kind_t *kind) {
    int n = (int)number("locks", 1);
    void **locks = calloc(n, sizeof *locks);
    const char **places = calloc(n, sizeof *places);
    CHECK(locks && places);
    for (int i = 0; i < n; i++) kind->prepare(places[i] = place_of(kind, i));
    volatile uint64_t *counter = shared(4096);
    *counter = 0;
    /* What the first one alone brings is not counted for each. */
    kind->prepare(place_of(kind, n));
    void *first = kind->open(place_of(kind, n));
    kind->acquire(first);
    kind->release(first);
    int64_t before = resident();
    for (int i = 0; i < n; i++) {
        locks[i] = kind->open(places[i]);
        kind->acquire(locks[i]);
        kind->release(locks[i]);
    }
    double bytes = (double)(resident() - before) / n;
    double one = timed_pairs(kind, locks + n / 2, 1, counter), each = timed_pairs(kind, locks, n, counter);
    for (int i = 0; i < n; i++) kind->close(locks[i]);
    kind->close(first);
    printf("{\"ns\": %.3f, \"each_ns\": %.3f, \"bytes\": %.0f}\n", one, each, bytes);
}

/* ---- a line of n waiters, each of which comes again as soon as it was served ---- */

typedef struct {
    _Alignas(64) volatile uint64_t counter; /* under the lock alone */
    _Alignas(64) atomic_int waiting, stop, ended;
} board_t;

typedef struct {
    const kind_t *kind;
    const char *place;
    board_t *board;
} waiter_t;

static void *wait_again(void *argument) {
    waiter_t *waiter = argument;
    void *lock = waiter->kind->open(waiter->place);
    atomic_fetch_add(&waiter->board->waiting, 1);
    while (!atomic_load_explicit(&waiter->board->stop, memory_order_relaxed)) {
        waiter->kind->acquire(lock);
        waiter->board->counter = waiter->board->counter + 1;
        waiter->kind->release(lock);
    }
    waiter->kind->close(lock);
    atomic_fetch_add(&waiter->board->ended, 1);
    return NULL;
}

/* A thread for each waiter: `ns` from one owner to the next, `bytes` for each waiter. */
void task_line(const kind_t *kind) {
    int n = (int)number("waiters", 1);
    int64_t wanted = (int64_t)(atof(text("seconds", "0.1")) * 1e9);
    waiter_t waiter = {kind, place_of(kind, 0), shared(sizeof(board_t))};
    board_t *board = waiter.board;
    kind->prepare(waiter.place);
    void *lock = kind->open(waiter.place);
    kind->acquire(lock);
    pthread_attr_t small;
    CHECK(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 128 * 1024) == 0);
    int64_t before = resident();
    pthread_t *threads = calloc(n, sizeof *threads);
    CHECK(threads);
    for (int i = 0; i < n; i++) CHECK(pthread_create(&threads[i], &small, wait_again, &waiter) == 0);
    while (atomic_load(&board->waiting) < n) sleep_ns(1000000);
    sleep_ns(20000000);
    double bytes = (double)(resident() - before) / n;
    if (board->counter) fail("not exclusive: a waiter came in while it was held");
    kind->release(lock);
    sleep_ns(wanted / 10);
    int64_t start = now_ns();
    uint64_t counted = board->counter;
    sleep_ns(wanted);
    counted = board->counter - counted;
    int64_t end = now_ns();
    atomic_store(&board->stop, 1);
    for (int i = 0; i < n; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    kind->close(lock);
    if (!counted) fail("nobody came in within %s s", text("seconds", "0.1"));
    printf("{\"ns\": %.3f, \"bytes\": %.0f}\n", (double)(end - start) / counted, bytes);
}

/* ---- Redis ---- */

/* Holds `locks` of them until it is killed. */
void task_hold(const kind_t *kind) {
    for (int i = 0; i < number("locks", 1); i++) kind->acquire(kind->open(place_of(kind, i)));
    printf("{}\n");
    fflush(stdout);
    for (;;) pause();
}

void task_wait(const kind_t *kind) {
    kind->acquire(kind->open(place_of(kind, 0)));
    fail("it came in while it was held");
}
