/* Processes that want the same lock all the time. */
#include "bench.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

enum { MOST = 64, LOGGED = 1 << 16 };

typedef struct {
    _Alignas(64) volatile uint64_t entries;
    int64_t longest;
} process_t;

typedef struct {
    int64_t request, enter, exit;
} entry_t;

typedef struct {
    _Alignas(64) volatile uint64_t counter; /* changed under the lock alone, and not atomically: a broken lock loses turns */
    _Alignas(64) atomic_int ready, go, stop;
    process_t processes[MOST];
} board_t;

static void hammer(const kind_t *kind, const char *place, board_t *board, int me, bool stamps, entry_t *log) {
    pin(me);
    void *lock = kind->open(place);
    process_t *mine = &board->processes[me];
    atomic_fetch_add(&board->ready, 1);
    while (!atomic_load(&board->go)) sched_yield();
    while (!atomic_load_explicit(&board->stop, memory_order_relaxed)) {
        int64_t request = stamps ? now_ns() : 0;
        kind->acquire(lock);
        int64_t enter = stamps ? now_ns() : 0;
        uint64_t counter = board->counter, turn = mine->entries;
        if (stamps && enter - request > mine->longest) mine->longest = enter - request;
        mine->entries = turn + 1;
        if (log && turn < LOGGED) log[turn] = (entry_t){request, enter, now_ns()};
        board->counter = counter + 1;
        kind->release(lock);
    }
    kind->close(lock);
}

static uint64_t entries(board_t *board, int n, uint64_t *least, uint64_t *most) {
    uint64_t sum = 0;
    *least = UINT64_MAX;
    *most = 0;
    for (int i = 0; i < n; i++) {
        uint64_t mine = board->processes[i].entries;
        sum += mine;
        if (mine < *least) *least = mine;
        if (mine > *most) *most = mine;
    }
    return sum;
}

static void write_log(const char *place, int process, const entry_t *entries, uint64_t n) {
    char path[4096];
    snprintf(path, sizeof path, "%s.%d", place, process);
    FILE *file = fopen(path, "w");
    CHECK(file && fwrite(entries, sizeof *entries, n, file) == n && fclose(file) == 0);
}

/* stamps=1: the longest wait, which costs two looks at the clock per turn. logs=<file>: also each entry, for slow locks. */
void task_contend(const kind_t *kind) {
    const char *place = place_of(kind, 0);
    if (kind->alone) {
        printf("{\"cannot\": \"%s\"}\n", kind->alone);
        return;
    }
    int n = (int)number("processes", 2);
    const char *logs_at = text("logs", NULL);
    bool stamps = logs_at || number("stamps", 0);
    if (n > MOST) fail("too many processes");
    int64_t wanted = (int64_t)(atof(text("seconds", "0.2")) * 1e9);
    board_t *board = shared(sizeof *board);
    entry_t *logs = logs_at ? shared(sizeof(entry_t) * LOGGED * n) : NULL;
    kind->prepare(place);
    for (int i = 0; i < n; i++)
        if (child() == 0) {
            hammer(kind, place, board, i, stamps, logs ? logs + (size_t)i * LOGGED : NULL);
            _exit(0);
        }
    while (atomic_load(&board->ready) < n) sleep_ns(100000);
    atomic_store(&board->go, 1);
    sleep_ns(wanted / 10);
    uint64_t least, most, before = entries(board, n, &least, &most);
    int64_t start = now_ns();
    sleep_ns(wanted);
    uint64_t after = entries(board, n, &least, &most);
    int64_t end = now_ns();
    atomic_store(&board->stop, 1);
    await_children(n);
    uint64_t last_least, last_most, all = entries(board, n, &last_least, &last_most);
    if (all != board->counter)
        fail("not exclusive: %llu of %llu turns were lost", (unsigned long long)(all - board->counter), (unsigned long long)all);
    for (int i = 0; logs && i < n; i++) {
        uint64_t turns = board->processes[i].entries;
        write_log(logs_at, i, logs + (size_t)i * LOGGED, turns < LOGGED ? turns : LOGGED);
    }
    int64_t longest = 0;
    for (int i = 0; i < n; i++)
        if (board->processes[i].longest > longest) longest = board->processes[i].longest;
    printf("{\"per_second\": %.1f, \"least\": %llu, \"most\": %llu", (after - before) * 1e9 / (end - start),
           (unsigned long long)least, (unsigned long long)most);
    if (stamps) printf(", \"longest_ns\": %lld", (long long)longest);
    printf("}\n");
}
