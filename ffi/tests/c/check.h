/* What every C test needs: a check that says where it failed, and with what text. */
#ifndef CHECK_H
#define CHECK_H

#include <ipcmutex.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition,      \
              ipcmutex_last_error());                                                              \
      abort();                                                                                    \
    }                                                                                              \
  } while (0)

#define EXPECT(call, code)                                                                         \
  do {                                                                                             \
    int expect_got = (call);                                                                       \
    if (expect_got != (code)) {                                                                    \
      fprintf(stderr, "%s:%d: %s is %d (%s), not %s (last error: %s)\n", __FILE__, __LINE__, #call, \
              expect_got, ipcmutex_strerror(expect_got), #code, ipcmutex_last_error());            \
      abort();                                                                                    \
    }                                                                                              \
  } while (0)

#define OK(call) EXPECT(call, IPCMUTEX_OK)

/* The engine under test: the first argument of the program, or threads of one process. */
static const char *engine = "spm:";

/* Opens the lock of this name (and query) in the engine under test. */
static inline ipcmutex_t open_lock(const char *name) {
  char url[256];
  ipcmutex_t mutex = 0;
  snprintf(url, sizeof url, "%s%s", engine, name);
  OK(ipcmutex_open(url, &mutex));
  return mutex;
}

/* A flag that a thread or callback raises and another waits for. */
typedef struct {
  pthread_mutex_t lock;
  pthread_cond_t raised;
  int count;
} flag_t;

#define FLAG { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0 }

static inline void flag_raise(flag_t *flag) {
  pthread_mutex_lock(&flag->lock);
  flag->count++;
  pthread_cond_broadcast(&flag->raised);
  pthread_mutex_unlock(&flag->lock);
}

/* Waits until it was raised `count` times. The one who started the test ends it if that never comes. */
static inline void flag_wait(flag_t *flag, int count) {
  pthread_mutex_lock(&flag->lock);
  while (flag->count < count) pthread_cond_wait(&flag->raised, &flag->lock);
  pthread_mutex_unlock(&flag->lock);
}

/* Waits until `count` acquisitions stand in line. */
static inline void wait_for_line(ipcmutex_t mutex, uint32_t count) {
  ipcmutex_status_t status;
  status.size = sizeof status;
  do {
    OK(ipcmutex_status(mutex, &status));
    if (status.waiters < count) usleep(200);
  } while (status.waiters < count);
}

#endif
