/* From one process to the next: by a release, and by the owner's death. */
#include "bench.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
    _Alignas(64) atomic_int turn, arriving, done;
    _Alignas(64) _Atomic int64_t entered;
} board_t;

/* The holder releases only when the waiter sleeps, so that each sample is one wake-up: before release to after acquire. */
void task_handover(const kind_t *kind) {
    const char *place = place_of(kind, 0);
    if (kind->alone) {
        printf("{\"cannot\": \"%s\"}\n", kind->alone);
        return;
    }
    int rounds = (int)number("samples", 500), warming = 20;
    board_t *board = shared(sizeof *board);
    int64_t *samples = calloc(rounds, sizeof *samples);
    CHECK(samples);
    kind->prepare(place);
    pid_t waiter = child();
    if (waiter == 0) {
        pin(1);
        void *lock = kind->open(place);
        for (int round = 1; round <= rounds + warming; round++) {
            while (atomic_load(&board->turn) != round) sched_yield();
            atomic_store(&board->arriving, round);
            kind->acquire(lock);
            atomic_store(&board->entered, now_ns());
            kind->release(lock);
            atomic_store(&board->done, round);
        }
        kind->close(lock);
        _exit(0);
    }
    pin(0);
    void *lock = kind->open(place);
    for (int round = 1; round <= rounds + warming; round++) {
        kind->acquire(lock);
        atomic_store(&board->entered, 0);
        atomic_store(&board->turn, round);
        while (atomic_load(&board->arriving) != round) sched_yield();
        await_asleep(waiter, &board->entered);
        int64_t start = now_ns();
        kind->release(lock);
        while (atomic_load(&board->done) != round) sched_yield();
        if (round > warming) samples[round - warming - 1] = atomic_load(&board->entered) - start;
    }
    kind->close(lock);
    await_children(1);
    printf("{");
    print_samples("samples", samples, rounds);
    printf("}\n");
}

/* From the owner's death to the next owner. `exit` counts from when the parent was told of the death, `kill` from the kill. */
void task_recovery(const kind_t *kind) {
    const char *place = place_of(kind, 0);
    if (kind->alone) {
        printf("{\"cannot\": \"%s\"}\n", kind->alone);
        return;
    }
    int rounds = (int)number("samples", 20);
    int64_t limit = number("limit_ms", 3000) * 1000000;
    int64_t *from_exit = calloc(rounds, sizeof *from_exit), *from_kill = calloc(rounds, sizeof *from_kill);
    CHECK(from_exit && from_kill);
    board_t *board = shared(sizeof *board);
    kind->prepare(place);
    for (int round = 0; round < rounds; round++) {
        atomic_store(&board->turn, 0);
        atomic_store(&board->arriving, 0);
        atomic_store(&board->entered, 0);
        pid_t owner = child();
        if (owner == 0) {
            kind->acquire(kind->open(place));
            atomic_store(&board->turn, 1);
            for (;;) pause();
        }
        while (!atomic_load(&board->turn)) sleep_ns(50000);
        pid_t waiter = child();
        if (waiter == 0) {
            void *lock = kind->open(place);
            atomic_store(&board->arriving, 1);
            kind->acquire(lock);
            atomic_store(&board->entered, now_ns());
            kind->release(lock);
            kind->close(lock);
            _exit(0);
        }
        while (!atomic_load(&board->arriving)) sleep_ns(50000);
        await_asleep(waiter, &board->entered);
        int64_t start = now_ns();
        CHECK(kill(owner, SIGKILL) == 0 && waitpid(owner, NULL, 0) == owner);
        int64_t told = now_ns();
        while (!atomic_load(&board->entered) && now_ns() - told < limit) sleep_ns(20000);
        int64_t entered = atomic_load(&board->entered);
        if (!entered) {
            CHECK(kill(waiter, SIGKILL) == 0 && waitpid(waiter, NULL, 0) == waiter);
            printf("{\"never_ms\": %lld}\n", (long long)(limit / 1000000));
            return;
        }
        await_children(1);
        from_exit[round] = entered - told;
        from_kill[round] = entered - start;
    }
    printf("{");
    print_samples("samples", from_exit, rounds);
    printf(", ");
    print_samples("from_kill", from_kill, rounds);
    printf("}\n");
}
