/* A participant of the chaos runs in C; ../src/chaos/record.rs says what it tells, and README.md what all of them do. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <ipcmutex.h>

enum { ASKED = 1, ENTERED, CHECKED, LEFT, RELEASED, GAVE_UP, DID };
enum { FORK = 1, CLOSE, CANCEL };
enum { ENTRANTS = 3, CHILD = 0x8000 };

static const char *url;
static volatile uint64_t *cell;
static int log_file, fence = -1;
static uint64_t instance;
static pid_t driver; /* nobody goes on without it */
static pthread_mutex_t fencing = PTHREAD_MUTEX_INITIALIZER;

struct entrant {
    uint64_t who;
    uint64_t random;
    ipcmutex_t mutex;
    pid_t *child; /* the last one that it forked; 0 is none */
};

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t below(struct entrant *me, uint64_t bound) {
    me->random = me->random * 6364136223846793005u + 1442695040888963407u;
    return (me->random >> 33) % bound;
}

static void pause_us(uint64_t us) {
    struct timespec time = {(time_t)(us / 1000000), (long)(us % 1000000 * 1000)};
    nanosleep(&time, NULL);
}

static void tell(struct entrant *me, uint64_t kind, uint64_t at, uint64_t token, uint64_t a, uint64_t b, uint64_t c) {
    uint64_t record[8] = {kind, at, me->who, token, a, b, c, 0};
    if (write(log_file, record, sizeof record) != sizeof record) abort();
}

static void fatal(const char *what) {
    fprintf(stderr, "%s: %s\n", what, ipcmutex_last_error());
    exit(3);
}

/* Writes to the resource that refuses old tokens. */
static void write_behind_the_fence(struct entrant *me, uint64_t token) {
    if (fence < 0) return;
    uint64_t words[2] = {token, me->who};
    char answer;
    pthread_mutex_lock(&fencing);
    if (write(fence, words, sizeof words) != sizeof words || read(fence, &answer, 1) != 1) abort();
    pthread_mutex_unlock(&fencing);
}

static void child(struct entrant *parent);

/* With a hold, until it is released. `forking`: a child is forked in the middle. */
static void visit(struct entrant *me, ipcmutex_hold_t hold, int forking, int closing) {
    uint64_t entered = now();
    ipcmutex_hold_info_t info = {.size = sizeof info};
    if (ipcmutex_hold_info(hold, &info) != IPCMUTEX_OK) fatal("hold_info");
    uint64_t met = cell[0];
    cell[0] = me->who;
    uint64_t seen = cell[1];
    tell(me, ENTERED, entered, info.token, info.abandoned, met, seen);
    uint64_t at = now();
    tell(me, CHECKED, at, 0, (uint64_t)ipcmutex_hold_check(hold), 0, 0);
    write_behind_the_fence(me, info.token);
    if (forking) child(me);
    if (below(me, 4) == 0) pause_us(below(me, 1500));
    cell[1] = seen + 1;
    write_behind_the_fence(me, info.token);
    at = now();
    uint64_t code = (uint64_t)ipcmutex_hold_check(hold);
    uint64_t stood = cell[0];
    cell[0] = 0;
    tell(me, LEFT, at, 0, code, stood, 0);
    code = (uint64_t)(closing ? ipcmutex_close(me->mutex) : ipcmutex_hold_release(hold));
    tell(me, RELEASED, now(), 0, code, 0, 0);
}

static void acquire(struct entrant *me, int64_t timeout_ms, int forking, int closing) {
    ipcmutex_hold_t hold;
    tell(me, ASKED, now(), 0, 0, 0, 0);
    int code = ipcmutex_hold(me->mutex, timeout_ms, &hold);
    if (code == IPCMUTEX_OK)
        visit(me, hold, forking, closing);
    else
        tell(me, GAVE_UP, now(), 0, (uint64_t)code, 0, 0);
}

/* A forked child is a participant of its own for one acquisition; its parent goes on and reaps it later. */
static void child(struct entrant *parent) {
    /* One at a time: they share a name. */
    if (*parent->child > 0 && waitpid(*parent->child, NULL, 0) != *parent->child) abort();
    tell(parent, DID, now(), 0, FORK, 0, 0);
    pid_t pid = *parent->child = fork();
    if (pid < 0) abort();
    if (pid > 0) return;
    fence = -1; /* the parent's connection */
    struct entrant me = {parent->who | CHILD, parent->random ^ 1, parent->mutex, NULL};
    acquire(&me, 50, 0, 0);
    _exit(0);
}

struct outcome {
    pthread_mutex_t lock;
    pthread_cond_t told;
    int done, code;
    ipcmutex_hold_t hold;
};

static void acquired(int code, ipcmutex_hold_t hold, void *user) {
    struct outcome *outcome = user;
    pthread_mutex_lock(&outcome->lock);
    outcome->done = 1;
    outcome->code = code;
    outcome->hold = hold;
    pthread_cond_signal(&outcome->told);
    pthread_mutex_unlock(&outcome->lock);
}

/* Waits with a callback, and cancels the wait or closes the mutex if it takes too long. */
static void impatient(struct entrant *me, int closing) {
    struct outcome outcome = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0};
    ipcmutex_wait_t wait;
    tell(me, ASKED, now(), 0, 0, 0, 0);
    int code = ipcmutex_hold_async(me->mutex, -1, acquired, &outcome, &wait);
    if (code != IPCMUTEX_OK) {
        tell(me, GAVE_UP, now(), 0, (uint64_t)code, 0, 0);
        return;
    }
    pause_us(below(me, 5000));
    pthread_mutex_lock(&outcome.lock);
    int closed = closing && !outcome.done;
    int cancelled = !closing && !outcome.done;
    pthread_mutex_unlock(&outcome.lock);
    if (closed) {
        tell(me, DID, now(), 0, CLOSE, 0, 0);
        if (ipcmutex_close(me->mutex) != IPCMUTEX_OK) fatal("close");
    } else if (cancelled) {
        tell(me, DID, now(), 0, CANCEL, 0, 0);
        code = ipcmutex_cancel(wait);
        if (code != IPCMUTEX_OK && code != IPCMUTEX_BAD_HANDLE) fatal("cancel");
    }
    pthread_mutex_lock(&outcome.lock);
    while (!outcome.done) pthread_cond_wait(&outcome.told, &outcome.lock);
    pthread_mutex_unlock(&outcome.lock);
    if (outcome.code != IPCMUTEX_OK) {
        tell(me, GAVE_UP, now(), 0, (uint64_t)outcome.code, 0, 0);
    } else if (closed) {
        /* It was granted in the same moment: what close left of it is released here. */
        code = ipcmutex_hold_release(outcome.hold);
        if (code != IPCMUTEX_OK && code != IPCMUTEX_NOT_OWNER && code != IPCMUTEX_BAD_HANDLE && code != IPCMUTEX_LOST)
            fatal("release after close");
        tell(me, GAVE_UP, now(), 0, IPCMUTEX_CLOSED, 0, 0);
    } else {
        visit(me, outcome.hold, 0, 0);
    }
}

static void open_mutex(struct entrant *me) {
    int code;
    while ((code = ipcmutex_open(url, &me->mutex)) != IPCMUTEX_OK) {
        if (code != IPCMUTEX_UNAVAILABLE) fatal("open");
        tell(me, ASKED, now(), 0, 0, 0, 0);
        tell(me, GAVE_UP, now(), 0, (uint64_t)code, 0, 0);
        pause_us(20000);
    }
}

static void *enter(void *of) {
    struct entrant *me = of;
    open_mutex(me);
    while (!cell[2] && getppid() == driver) {
        pause_us(below(me, 3000));
        uint64_t how = below(me, 100);
        if (how < 50) {
            acquire(me, -1, 0, 0);
        } else if (how < 65) {
            acquire(me, (int64_t)below(me, 30) + 1, 0, 0);
        } else if (how < 75) {
            acquire(me, 0, 0, 0);
        } else if (how < 87) {
            impatient(me, 0);
        } else if (how < 90) {
            /* A mutex of its own, so that nobody else's wait is closed. */
            struct entrant own = *me;
            open_mutex(&own);
            impatient(&own, 1);
            int code = ipcmutex_close(own.mutex);
            if (code != IPCMUTEX_OK && code != IPCMUTEX_BAD_HANDLE) fatal("close");
        } else if (how < 93) {
            struct entrant own = *me;
            open_mutex(&own);
            tell(me, DID, now(), 0, CLOSE, 0, 0);
            acquire(&own, 30, 0, 1);
            int code = ipcmutex_close(own.mutex);
            if (code != IPCMUTEX_OK && code != IPCMUTEX_BAD_HANDLE) fatal("close");
        } else if (how < 95) {
            child(me);
        } else if (how < 97) {
            acquire(me, -1, 1, 0);
        } else {
            acquire(me, -1, 0, 0);
        }
    }
    if (*me->child > 0 && waitpid(*me->child, NULL, 0) != *me->child) abort();
    return NULL;
}

int main(void) {
    driver = getppid();
    url = getenv("CHAOS_URL");
    instance = strtoull(getenv("CHAOS_INSTANCE"), NULL, 10);
    log_file = open(getenv("CHAOS_LOG"), O_WRONLY | O_APPEND | O_CLOEXEC);
    int file = open(getenv("CHAOS_CELL"), O_RDWR | O_CLOEXEC);
    cell = mmap(NULL, 32, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (log_file < 0 || file < 0 || cell == MAP_FAILED) abort();
    if (getenv("CHAOS_FENCE")) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        snprintf(address.sun_path, sizeof address.sun_path, "%s", getenv("CHAOS_FENCE"));
        fence = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fence < 0 || connect(fence, (struct sockaddr *)&address, sizeof address) != 0) abort();
    }
    uint64_t seed = strtoull(getenv("CHAOS_SEED"), NULL, 10);
    struct entrant entrants[ENTRANTS];
    pid_t children[ENTRANTS] = {0};
    pthread_t threads[ENTRANTS];
    for (uint64_t at = 0; at < ENTRANTS; at++) {
        entrants[at] = (struct entrant){instance << 16 | (at + 1), seed ^ (at + 1) << 40, 0, &children[at]};
        if (pthread_create(&threads[at], NULL, enter, &entrants[at]) != 0) abort();
    }
    for (int at = 0; at < ENTRANTS; at++) pthread_join(threads[at], NULL);
    return 0;
}
