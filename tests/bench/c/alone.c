/* What one process does: an uncontended pair, and open to close. */
#include "bench.h"

/* Runs `body` for the asked time, after a tenth of it for warming up, and prints nanoseconds per turn. */
#define TIMED(batch, body)                                                                                             \
    do {                                                                                                               \
        int64_t wanted = (int64_t)(atof(text("seconds", "0.1")) * 1e9), many = (batch), turns = 0;                    \
        int64_t start = now_ns(), end;                                                                                \
        while (now_ns() - start < wanted / 10) { body; }                                                               \
        start = now_ns();                                                                                              \
        do {                                                                                                           \
            for (int in_batch = 0; in_batch < many; in_batch++) { body; }                                           \
            turns += many;                                                                                             \
        } while ((end = now_ns()) - start < wanted);                                                                   \
        printf("{\"ns\": %.3f, \"turns\": %lld}\n", (double)(end - start) / turns, (long long)turns);                  \
    } while (0)

void task_pair(const kind_t *kind) {
    const char *place = place_of(kind, 0);
    kind->prepare(place);
    pin(0);
    void *lock = kind->open(place);
    /* A counter under the lock, as in the contended runs, so that both measure the same. */
    volatile uint64_t *counter = shared(4096);
    TIMED(number("batch", 1000), {
        kind->acquire(lock);
        *counter = *counter + 1;
        kind->release(lock);
    });
    kind->close(lock);
}

void task_opening(const kind_t *kind) {
    const char *place = place_of(kind, 0);
    kind->prepare(place);
    pin(0);
    TIMED(20, {
        void *lock = kind->open(place);
        kind->acquire(lock);
        /* flock(2) is to be measured as open, flock, close: a close releases. */
        if (strcmp(kind->name, "flock") != 0 && strcmp(kind->name, "ofd") != 0) kind->release(lock);
        kind->close(lock);
    });
}
