/* The C worker: bench-c TASK KIND file=... [socket= port= id= ttl=] [seconds=] [processes=] [pin=1] ... */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char **arguments;

const char *text(const char *key, const char *otherwise) {
    size_t length = strlen(key);
    for (char **at = arguments; *at; at++)
        if (strncmp(*at, key, length) == 0 && (*at)[length] == '=') return *at + length + 1;
    return otherwise;
}

int64_t number(const char *key, int64_t otherwise) {
    const char *found = text(key, NULL);
    return found ? atoll(found) : otherwise;
}

void fail(const char *format, ...) {
    char words[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(words, sizeof words, format, list);
    va_end(list);
    for (char *at = words; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ') *at = '\'';
    printf("{\"failed\": \"%s\"}\n", words);
    fflush(stdout);
    _exit(1);
}

int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

void sleep_ns(int64_t ns) {
    struct timespec left = {ns / 1000000000, ns % 1000000000};
    while (nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
}

void pin(int process) {
    if (!number("pin", 0)) return;
    cpu_set_t allowed, one;
    CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
    int wanted = process % CPU_COUNT(&allowed);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && wanted-- == 0) CPU_SET(cpu, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
}

void *shared(size_t bytes) {
    void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    return page;
}

pid_t child(void) {
    pid_t parent = getpid(), pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
        if (getppid() != parent) _exit(1);
    }
    return pid;
}

void await_children(int n) {
    while (n-- > 0) {
        int status;
        CHECK(wait(&status) > 0);
        /* A child that failed has printed its words. */
        if (status != 0) _exit(1);
    }
}

/* Until the waiter sleeps in the kernel, and has done so for a moment: a handshake, so that a wake-up is measured and not a race.
 * It must not have entered meanwhile. */
void await_asleep(pid_t pid, _Atomic int64_t *entered) {
    char path[64], stat[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    int64_t dwell = number("dwell_us", 100) * 1000, since = 0;
    for (;;) {
        if (atomic_load(entered)) fail("not exclusive: the waiter came in while it was held");
        ssize_t got = pread(fd, stat, sizeof stat - 1, 0);
        CHECK(got > 0);
        stat[got] = 0;
        char *state = strrchr(stat, ')');
        if (state && state[2] == 'S') {
            int64_t now = now_ns();
            if (!since) since = now;
            if (now - since >= dwell) break;
        } else {
            since = 0;
            sched_yield();
        }
    }
    close(fd);
}

void print_samples(const char *name, int64_t *samples, int n) {
    printf("\"%s\": [", name);
    for (int i = 0; i < n; i++) printf("%s%lld", i ? ", " : "", (long long)samples[i]);
    printf("]");
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(const kind_t *kind);
    } tasks[] = {
        {"pair", task_pair},         {"opening", task_opening},   {"contend", task_contend},
        {"handover", task_handover}, {"recovery", task_recovery}, {"many", task_many},
        {"line", task_line},         {"hold", task_hold},         {"wait", task_wait},
#ifdef WITH_ASYNC
        {"async", task_async},
#endif
    };
    arguments = argv + (argc < 3 ? argc : 3);
    if (argc < 3) fail("usage: bench-c TASK KIND key=value...");
    const kind_t *kind = kind_named(argv[2]);
    if (!kind) fail("no kind %s", argv[2]);
    /* Many peers need a descriptor per lock. */
    struct rlimit files;
    CHECK(getrlimit(RLIMIT_NOFILE, &files) == 0);
    files.rlim_cur = files.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &files) == 0);
    for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++)
        if (strcmp(tasks[i].name, argv[1]) == 0) {
            tasks[i].run(kind);
            fflush(stdout);
            return 0;
        }
    fail("no task %s", argv[1]);
}
