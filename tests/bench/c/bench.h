/* What the parts of the C worker share. A task prints one JSON object on one line and nothing else. */
#ifndef BENCH_H
#define BENCH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

/* One way to lock. A place is the path of a lock file, or a URL; each process opens it for itself. */
typedef struct {
    const char *name;
    const char *place; /* with {file}, {id}, {socket}, {port} and {ttl} to be filled in */
    void (*prepare)(const char *place); /* makes it; before the first open */
    void *(*open)(const char *place);
    void (*acquire)(void *lock);
    void (*release)(void *lock);
    void (*close)(void *lock);
    const char *alone; /* why processes cannot share it, or NULL */
    bool ours;         /* goes through libipcmutex.so */
} kind_t;

const kind_t *kind_named(const char *name);
const char *place_of(const kind_t *kind, int which); /* many locks have many places; the first is 0 */

/* The command line: TASK KIND key=value... */
const char *text(const char *key, const char *otherwise);
int64_t number(const char *key, int64_t otherwise);

int64_t now_ns(void);
void sleep_ns(int64_t ns);
void pin(int process); /* to a CPU of its own as far as there are any, if pin=1 was asked for */
void *shared(size_t bytes);
int64_t resident(void); /* bytes of this process in memory */
pid_t child(void);           /* fork; dies with its parent */
void await_children(int n);  /* and fails if one failed */
void await_asleep(pid_t pid, _Atomic int64_t *entered);
void print_samples(const char *name, int64_t *samples, int n);
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        if (!(call)) fail("%s: %m", #call);                                                                            \
    } while (0)

void task_pair(const kind_t *kind);
void task_opening(const kind_t *kind);
void task_contend(const kind_t *kind);
void task_handover(const kind_t *kind);
void task_recovery(const kind_t *kind);
void task_many(const kind_t *kind);
void task_line(const kind_t *kind);
void task_async(const kind_t *kind);
void task_hold(const kind_t *kind);
void task_wait(const kind_t *kind);

#endif
