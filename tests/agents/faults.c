/* See faults.h and README.md. Whatever fails here ends the agent: a fault that was not made shows nothing. */
#define _GNU_SOURCE
#include "faults.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ipcmutex.h>

extern char **environ;

static void must(int holds, const char *what) {
    if (!holds) {
        perror(what);
        abort();
    }
}

static void *mapped(const char *path, size_t *length) {
    struct stat about;
    int file = open(path, O_RDWR | O_CLOEXEC);
    must(file >= 0 && fstat(file, &about) == 0, path);
    void *start = mmap(NULL, (size_t)about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    must(start != MAP_FAILED, "mmap");
    close(file);
    *length = (size_t)about.st_size;
    return start;
}

static void *count_on(void *cell) {
    for (;;) __atomic_add_fetch((uint64_t *)cell, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void in_a_thread(void *(*body)(void *), void *argument) {
    pthread_t thread;
    must(pthread_create(&thread, NULL, body, argument) == 0, "pthread_create");
    pthread_detach(thread);
}

static void handled(int signal) { (void)signal; }

/* A signal every millisecond, and no system call is resumed after it. */
static void storm(void) {
    struct sigaction action = {.sa_handler = handled};
    struct itimerval often = {{0, 1000}, {0, 1000}};
    must(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0, "setitimer");
}

/* What a program that is started now finds of the lock at `path`: descriptors, mappings. */
static void started(const char *how, const char *path, char *fields, size_t size) {
    char script[2 * PATH_MAX];
    int ends[2], status = -1;
    must(pipe(ends) == 0, "pipe");
    snprintf(script, sizeof script,
        "exec 1>/proc/self/fd/%d; files=$(ls -l /proc/self/fd | grep -cE 'inotify|eventfd|%s'); maps=$(grep -c '%s' /proc/self/maps); "
        "echo files=$files maps=$maps", ends[1], path, path);
    char *arguments[] = {"sh", "-c", script, NULL};
    pid_t child;
    if (!strcmp(how, "system")) {
        status = system(script);
    } else if (!strcmp(how, "vfork")) {
        if ((child = vfork()) == 0) {
            execv("/bin/sh", arguments);
            _exit(127);
        }
        must(waitpid(child, &status, 0) == child, "waitpid");
    } else if (!strcmp(how, "posix_spawn")) {
        must(posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ) == 0, "posix_spawn");
        must(waitpid(child, &status, 0) == child, "waitpid");
    } else {
        if ((child = fork()) == 0) {
            execv("/bin/sh", arguments);
            _exit(127);
        }
        must(waitpid(child, &status, 0) == child, "waitpid");
    }
    must(status == 0, "sh");
    close(ends[1]);
    ssize_t length = read(ends[0], fields, size - 1);
    must(length > 0, "read");
    fields[length - 1] = 0;
    close(ends[0]);
}

struct busy {
    char url[PATH_MAX];
    int stop;
};

static void *busy(void *user) {
    struct busy *own = user;
    while (!__atomic_load_n(&own->stop, __ATOMIC_RELAXED)) {
        ipcmutex_t lock;
        // In an order of their own: the text is that of the call before.
        int code = ipcmutex_open(own->url, &lock);
        must(code == IPCMUTEX_OK, ipcmutex_last_error());
        code = ipcmutex_acquire_timeout(lock, 1);
        // With so short a wait a server that is late by 200 ms counts as unreachable.
        must(code == IPCMUTEX_OK || code == IPCMUTEX_TIMEOUT || code == IPCMUTEX_UNAVAILABLE, ipcmutex_last_error());
        ipcmutex_close(lock);
    }
    return NULL;
}

/* Forks `many` children while three threads open, take, wait for and close the lock `url`; each child uses a handle of its parent and one
   of its own, and takes `turns` turns at a lock that nobody else wants then, `url`-alone. How many did not end well: a child that hangs is
   ended by its own alarm. */
static int forks(int many, const char *url, int turns) {
    struct busy own = {.stop = 0};
    pthread_t threads[3];
    ipcmutex_t lock, other, alone = 0;
    int bad = 0;
    snprintf(own.url, sizeof own.url, "%s-alone", url);
    must(turns == 0 || ipcmutex_open(own.url, &alone) == IPCMUTEX_OK, ipcmutex_last_error());
    snprintf(own.url, sizeof own.url, "%s", url);
    must(ipcmutex_open(url, &lock) == IPCMUTEX_OK, ipcmutex_last_error());
    for (int at = 0; at < 3; at++) must(pthread_create(&threads[at], NULL, busy, &own) == 0, "pthread_create");
    for (int at = 0; at < many; at++) {
        pid_t child = fork();
        int status;
        if (child == 0) {
            alarm(20);
            int code = ipcmutex_acquire_timeout(lock, 10000);
            if (code == IPCMUTEX_OK) code = ipcmutex_release(lock);
            for (int turn = 0; turn < turns && code == IPCMUTEX_OK; turn++) {
                alarm(20);
                code = ipcmutex_acquire_timeout(alone, 10000);
                if (code == IPCMUTEX_OK) code = ipcmutex_release(alone);
            }
            if (code == IPCMUTEX_OK && at % 4 == 0) code = ipcmutex_open(url, &other);
            _exit(code);
        }
        must(child > 0 && waitpid(child, &status, 0) == child, "fork");
        if (status != 0) {
            fprintf(stderr, "child %d: status %#x\n", at, (unsigned)status);
            bad++;
        }
    }
    __atomic_store_n(&own.stop, 1, __ATOMIC_RELAXED);
    for (int at = 0; at < 3; at++) pthread_join(threads[at], NULL);
    must(ipcmutex_close(lock) == IPCMUTEX_OK, ipcmutex_last_error());
    must(turns == 0 || ipcmutex_close(alone) == IPCMUTEX_OK, ipcmutex_last_error());
    return bad;
}

static int impostor_stop;

/* Says to every waiter all the time that it is its turn: each cell awake, each bell rung. The places are those of layout.rs. */
static void *impostor(void *path) {
    size_t length;
    char *page = mapped(path, &length);
    while (!__atomic_load_n(&impostor_stop, __ATOMIC_RELAXED)) {
        for (int slot = 0; slot < 19; slot++) {
            __atomic_and_fetch((uint64_t *)(page + 256 + 8 * slot), ~(uint64_t)1, __ATOMIC_SEQ_CST);
            uint32_t *bell = (uint32_t *)(page + 448 + 192 * slot);
            __atomic_add_fetch(bell, 1, __ATOMIC_SEQ_CST);
            syscall(SYS_futex, bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        }
        usleep(20);
    }
    free(path);
    return NULL;
}

static int own[8];
static int own_are_events;

/* Closes every descriptor but the first three, and has its own under the same numbers at once: eventfds, or pipes with something in them. */
static void reuse(const char *kind) {
    own_are_events = !strcmp(kind, "events");
    must(syscall(SYS_close_range, 3, UINT_MAX, 0) == 0, "close_range");
    for (int at = 0; at < 8; at += 2) {
        if (own_are_events) {
            own[at] = eventfd(7, EFD_CLOEXEC | EFD_NONBLOCK);
            own[at + 1] = eventfd(7, EFD_CLOEXEC | EFD_NONBLOCK);
            must(own[at] >= 3 && own[at + 1] >= 3, "eventfd");
        } else {
            must(pipe2(own + at, O_CLOEXEC) == 0 && write(own[at + 1], "0123456789", 10) == 10, "pipe");
        }
    }
}

/* How many of those are still open and have exactly what was put into them. */
static int intact(void) {
    int count = 0;
    for (int at = 0; at < 8; at++) {
        if (own_are_events) {
            uint64_t value = 0;
            count += read(own[at], &value, sizeof value) == sizeof value && value == 7;
        } else {
            int waiting = 0;
            // Of a pipe either end says how much there is.
            count += ioctl(own[at], FIONREAD, &waiting) == 0 && waiting == 10;
        }
    }
    return count;
}

int fault(char **word, char *fields, size_t size) {
    const char *verb = word[0];
    if (!strcmp(verb, "fat")) {
        size_t bytes = (size_t)atoi(word[1]) << 20;
        char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        must(start != MAP_FAILED, "mmap");
        for (size_t at = 0; at < bytes; at += 4096) start[at] = (char)(at >> 12);
    } else if (!strcmp(verb, "dump")) {
        struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
        must(setrlimit(RLIMIT_CORE, &all) == 0 && chdir(word[1]) == 0, "setrlimit");
    } else if (!strcmp(verb, "count")) {
        size_t length;
        in_a_thread(count_on, mapped(word[1], &length));
    } else if (!strcmp(verb, "heir")) {
        pid_t child = fork();
        must(child >= 0, "fork");
        if (child == 0) {
            close(0), close(1), close(2);
            for (;;) pause();
        }
        snprintf(fields, size, "pid=%d", (int)child);
    } else if (!strcmp(verb, "started")) {
        started(word[1], word[2], fields, size);
    } else if (!strcmp(verb, "forks")) {
        snprintf(fields, size, "bad=%d", forks(atoi(word[1]), word[2], word[3] ? atoi(word[3]) : 0));
    } else if (!strcmp(verb, "storm")) {
        storm();
    } else if (!strcmp(verb, "closefrom")) {
        must(syscall(SYS_close_range, 3, UINT_MAX, 0) == 0, "close_range");
    } else if (!strcmp(verb, "reuse")) {
        reuse(word[1]);
    } else if (!strcmp(verb, "intact")) {
        snprintf(fields, size, "intact=%d", intact());
    } else if (!strcmp(verb, "drop")) {
        uid_t user = (uid_t)atoi(word[1]);
        must(setresuid(user, user, user) == 0, "setresuid");
    } else if (!strcmp(verb, "become")) {
        execlp("sleep", "sleep", word[1], NULL);
        must(0, "exec");
    } else if (!strcmp(verb, "impostor")) {
        in_a_thread(impostor, strdup(word[1]));
    } else if (!strcmp(verb, "honest")) {
        __atomic_store_n(&impostor_stop, 1, __ATOMIC_RELAXED);
    } else {
        return 0;
    }
    return 1;
}
