/* The C agent: see README.md. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <ipcmutex.h>

#include "faults.h"

enum { MANY = 2048 };
static ipcmutex_t locks[MANY];
static ipcmutex_hold_t holds[MANY];
static ipcmutex_wait_t waits[MANY];

static const char *const names[] = {"OK", "TIMEOUT", "CANCELED", "LOST", "NOT_OWNER", "CLOSED", "FORKED", "BAD_HANDLE",
    "INVALID", "PERMISSION", "UNSAFE", "NO_SPACE", "RESOURCE", "IO", "UNAVAILABLE", "AUTH", "CONFIG", "PROTOCOL",
    "UNSUPPORTED", "PANIC"};

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void say(const char *number, int code, const char *fields) {
    if (code == IPCMUTEX_OK)
        printf("%s OK %s\n", number, fields);
    else
        printf("%s %s %s | %s\n", number, names[code], fields, ipcmutex_last_error());
}

static int64_t timeout_of(const char *text) { return strcmp(text, "forever") ? strtoll(text, NULL, 10) : -1; }

static char *unhex(const char *text) {
    size_t length = strcmp(text, "-") ? strlen(text) / 2 : 0;
    char *bytes = calloc(length + 1, 1);
    for (size_t at = 0; at < length; at++) {
        char pair[3] = {text[2 * at], text[2 * at + 1], 0};
        bytes[at] = (char)strtol(pair, NULL, 16);
    }
    return bytes;
}

static void about(char *fields, size_t size, ipcmutex_hold_t hold, uint64_t from) {
    uint64_t to = now();
    ipcmutex_hold_info_t info = {.size = sizeof info};
    int code = ipcmutex_hold_info(hold, &info);
    if (code != IPCMUTEX_OK) {
        fprintf(stderr, "hold_info: %s\n", ipcmutex_last_error());
        abort();
    }
    snprintf(fields, size, "token=%" PRIu64 " abandoned=%" PRIu32 " from=%" PRIu64 " to=%" PRIu64, info.token,
        info.abandoned, from, to);
}

struct told {
    char number[24];
    int hold;
    uint64_t from;
};

static void acquired(int code, ipcmutex_hold_t hold, void *user) {
    struct told *told = user;
    char fields[200] = "";
    if (code == IPCMUTEX_OK) {
        holds[told->hold] = hold;
        about(fields, sizeof fields, hold, told->from);
    }
    say(told->number, code, fields);
    free(told);
}

static void lost(int reason, void *user) {
    struct told *told = user;
    say(told->number, reason, "");
    free(told);
}

static int in_child(ipcmutex_t lock, ipcmutex_hold_t hold, char *fields, size_t size) {
    int ends[2], status;
    if (pipe(ends) != 0) abort();
    pid_t child = fork();
    if (child == 0) {
        int release = ipcmutex_release(lock), end = ipcmutex_hold_release(hold), try = ipcmutex_try_acquire(lock);
        dprintf(ends[1], "release=%s end=%s try=%s", names[release], names[end], names[try]);
        _exit(0);
    }
    close(ends[1]);
    ssize_t length = read(ends[0], fields, size - 1);
    fields[length > 0 ? length : 0] = 0;
    close(ends[0]);
    return waitpid(child, &status, 0) == child && status == 0 ? IPCMUTEX_OK : IPCMUTEX_PANIC;
}

/* As ../src/occupancy.rs has it. "none" takes no lock; "unlink" takes one that is known to be broken. */
static int hammer(ipcmutex_t lock, char **word, char *fields, size_t size) {
    static uint64_t entrants;
    const char *mode = word[5];
    uint64_t until = now() + (uint64_t)strtoll(word[4], NULL, 10) * 1000000u, count = 0, overlaps = 0;
    uint64_t me = (uint64_t)getpid() << 16 | __atomic_add_fetch(&entrants, 1, __ATOMIC_RELAXED);
    int file = open(word[2], O_RDWR | O_CLOEXEC), broken = -1, code;
    volatile uint64_t *cell = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    FILE *records = fopen(word[3], "w");
    char path[4096];
    snprintf(path, sizeof path, "%s.unlink", word[2]);
    if (cell == MAP_FAILED || !records) abort();
    while (now() < until) {
        uint64_t token = 0;
        if (!strcmp(mode, "lock")) {
            if ((code = ipcmutex_acquire(lock)) != IPCMUTEX_OK) return code;
            if ((code = ipcmutex_token(lock, &token)) != IPCMUTEX_OK) return code;
        } else if (!strcmp(mode, "unlink")) {
            broken = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
            if (broken < 0 || flock(broken, LOCK_EX) != 0) abort();
        }
        uint64_t entered = now();
        int someone = cell[0] != 0;
        cell[0] = me;
        uint64_t seen = cell[1];
        sched_yield();
        cell[1] = seen + 1;
        overlaps += (uint64_t)someone + (cell[0] != me);
        cell[0] = 0;
        uint64_t record[3] = {entered, now(), token};
        fwrite(record, sizeof record, 1, records);
        count++;
        if (!strcmp(mode, "lock")) {
            if ((code = ipcmutex_release(lock)) != IPCMUTEX_OK) return code;
        } else if (!strcmp(mode, "unlink")) {
            unlink(path);
            close(broken);
        }
    }
    if (fclose(records) != 0) abort();
    snprintf(fields, size, "count=%" PRIu64 " overlaps=%" PRIu64, count, overlaps);
    return IPCMUTEX_OK;
}

static void answer(const char *number, char *command) {
    char *word[8] = {0}, fields[400] = "", *rest = command;
    for (int at = 0; at < 8 && (word[at] = strtok_r(rest, " ", &rest)); at++) {}
    const char *verb = word[0];
    int one = word[1] ? atoi(word[1]) : 0, two = word[2] ? atoi(word[2]) : 0, code;
    uint64_t from = now();
    if (!strcmp(verb, "open")) {
        char *url = strcmp(word[2], "null") ? unhex(word[2]) : NULL;
        code = ipcmutex_open(url, &locks[one]);
        free(url);
    } else if (!strcmp(verb, "close")) {
        code = ipcmutex_close(locks[one]);
    } else if (!strcmp(verb, "acquire")) {
        int64_t limit = timeout_of(word[2]);
        code = limit < 0    ? ipcmutex_acquire(locks[one])
               : limit == 0 ? ipcmutex_try_acquire(locks[one])
                            : ipcmutex_acquire_timeout(locks[one], limit);
        snprintf(fields, sizeof fields, "from=%" PRIu64 " to=%" PRIu64, from, now());
    } else if (!strcmp(verb, "release")) {
        code = ipcmutex_release(locks[one]);
    } else if (!strcmp(verb, "hold")) {
        code = ipcmutex_hold(locks[one], timeout_of(word[3]), &holds[two]);
        if (code == IPCMUTEX_OK) about(fields, sizeof fields, holds[two], from);
    } else if (!strcmp(verb, "async")) {
        struct told *told = calloc(1, sizeof *told);
        snprintf(told->number, sizeof told->number, "%s", number);
        told->hold = two;
        told->from = from;
        code = ipcmutex_hold_async(locks[one], timeout_of(word[3]), acquired, told, &waits[atoi(word[4])]);
        if (code == IPCMUTEX_OK) return;
    } else if (!strcmp(verb, "cancel")) {
        code = ipcmutex_cancel(waits[one]);
    } else if (!strcmp(verb, "end")) {
        code = ipcmutex_hold_release(holds[one]);
    } else if (!strcmp(verb, "check")) {
        code = ipcmutex_hold_check(holds[one]);
    } else if (!strcmp(verb, "extend")) {
        code = ipcmutex_hold_extend(holds[one], strtoll(word[2], NULL, 10));
    } else if (!strcmp(verb, "lost")) {
        struct told *told = calloc(1, sizeof *told);
        snprintf(told->number, sizeof told->number, "%s", number);
        code = ipcmutex_hold_on_lost(holds[one], lost, told);
        if (code == IPCMUTEX_OK) return;
    } else if (!strcmp(verb, "token")) {
        uint64_t token = 0;
        code = ipcmutex_token(locks[one], &token);
        snprintf(fields, sizeof fields, "token=%" PRIu64, token);
    } else if (!strcmp(verb, "status")) {
        static const char *const states[] = {"free", "held", "abandoned"};
        ipcmutex_status_t status = {.size = sizeof status};
        code = ipcmutex_status(locks[one], &status);
        snprintf(fields, sizeof fields,
            "state=%s token=%" PRIu64 " waiters=%" PRIu32 " owner_pid=%" PRIu32 " owner_host=%s owner_label=%s held_ms=%" PRId64,
            states[status.state % 3], status.token, status.waiters, status.owner_pid, status.owner_host,
            status.owner_label, status.held_ms);
    } else if (!strcmp(verb, "break")) {
        code = ipcmutex_break(locks[one]);
    } else if (!strcmp(verb, "fork")) {
        code = in_child(locks[one], holds[two], fields, sizeof fields);
    } else if (!strcmp(verb, "hammer")) {
        code = hammer(locks[one], word, fields, sizeof fields);
    } else if (!strcmp(verb, "show")) {
        code = IPCMUTEX_OK; /* a handle is a number: nothing to show */
    } else if (fault(word, fields, sizeof fields)) {
        code = IPCMUTEX_OK;
    } else {
        fprintf(stderr, "unknown command %s\n", verb);
        abort();
    }
    say(number, code, code == IPCMUTEX_OK ? fields : "");
}

static void *threaded(void *line) {
    char *rest = line, *number = strtok_r(rest, " ", &rest);
    answer(number, rest + 1);
    free(line);
    return NULL;
}

/* The agent's own input and output are readv and writev, which the library does not call: who lets the library's n-th read
   fail does not hit these. A signal does not end the input. */
static ssize_t take(void *file, char *bytes, size_t size) {
    struct iovec whole = {bytes, size};
    ssize_t got;
    while ((got = readv((int)(intptr_t)file, &whole, 1)) < 0 && errno == EINTR) {}
    return got;
}

static ssize_t give(void *file, const char *bytes, size_t size) {
    struct iovec whole = {(char *)bytes, size};
    ssize_t given;
    while ((given = writev((int)(intptr_t)file, &whole, 1)) < 0 && errno == EINTR) {}
    return given < 0 ? 0 : given;
}

int main(void) {
    char *line = NULL;
    size_t size = 0;
    FILE *input = fopencookie((void *)(intptr_t)STDIN_FILENO, "r", (cookie_io_functions_t){.read = take});
    stdout = fopencookie((void *)(intptr_t)STDOUT_FILENO, "w", (cookie_io_functions_t){.write = give});
    if (!input || !stdout) abort();
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (getline(&line, &size, input) > 0) {
        line[strcspn(line, "\n")] = 0;
        char *rest = line, *command = strchr(line, ' ') + 1;
        if (*command == '&') {
            pthread_t thread;
            if (pthread_create(&thread, NULL, threaded, strdup(line)) != 0) abort();
            pthread_detach(thread);
        } else {
            char *number = strtok_r(rest, " ", &rest);
            answer(number, rest);
        }
    }
    free(line);
    fclose(input);
    return 0;
}
