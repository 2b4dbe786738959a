/* (engine) Forks at each allocation of the process's first open, while another thread makes it: the child opens all the same, and has
   nothing of what is open there. A fork does not wait meanwhile: it may have the allocator's locks. */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

extern void *__libc_malloc(size_t size);

static pid_t forker;
static int forked;  /* the fork is over */
static int reached; /* the allocation */
static int64_t left;
static __thread int opens;

/* Whether the thread that forks sleeps until this one is further. */
static int fork_waits(void) {
  char path[64], call[16] = "";
  snprintf(path, sizeof path, "/proc/self/task/%d/syscall", (int)forker);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  CHECK(file >= 0 && read(file, call, sizeof call - 1) > 0);
  close(file);
  return atoi(call) == SYS_futex;
}

void *malloc(size_t size) {
  if (opens && left-- == 0) {
    __atomic_store_n(&reached, 1, __ATOMIC_RELEASE);
    while (!__atomic_load_n(&forked, __ATOMIC_ACQUIRE)) {
      /* It may be over by now, and what is waited for this thread's end. */
      CHECK(!fork_waits() || __atomic_load_n(&forked, __ATOMIC_ACQUIRE));
      usleep(100);
    }
  }
  return __libc_malloc(size);
}

static void *open_first(void *done) {
  ipcmutex_t mutex;
  char url[64];
  snprintf(url, sizeof url, "%sparent", engine);
  opens = 1;
  int code = ipcmutex_open(url, &mutex);
  opens = 0;
  OK(code);
  __atomic_store_n((int *)done, 1, __ATOMIC_RELEASE);
  return NULL;
}

static void has_no_lock_file(void) {
  for (int file = 3; file < 64; file++) {
    char path[64], name[512] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    CHECK(readlink(path, name, sizeof name - 1) < 0 || !strstr(name, "/parent"));
  }
}

/* At the allocation with this number; false if there are not so many. */
static int forks_at(int64_t number) {
  pthread_t thread;
  int done = 0, status;
  left = number;
  forker = getpid();
  CHECK(pthread_create(&thread, NULL, open_first, &done) == 0);
  while (!__atomic_load_n(&reached, __ATOMIC_ACQUIRE) && !__atomic_load_n(&done, __ATOMIC_ACQUIRE)) usleep(100);
  int stands = __atomic_load_n(&reached, __ATOMIC_ACQUIRE);
  if (stands) {
    pid_t child = fork();
    if (child == 0) {
      ipcmutex_t mutex;
      char url[64];
      alarm(20);
      has_no_lock_file();
      snprintf(url, sizeof url, "%schild", engine);
      _exit(ipcmutex_open(url, &mutex));
    }
    __atomic_store_n(&forked, 1, __ATOMIC_RELEASE);
    CHECK(waitpid(child, &status, 0) == child);
    if (status != 0) fprintf(stderr, "forked at allocation %d, the child ended with %#x\n", (int)number, status);
    CHECK(status == 0);
  }
  CHECK(pthread_join(thread, NULL) == 0);
  return stands;
}

int main(int count, char **words) {
  int status = 0;
  if (count > 1) engine = words[1];
  for (int64_t number = 0; WEXITSTATUS(status) == 0; number++) {
    /* Each in a process that has opened nothing yet. */
    pid_t trial = fork();
    if (trial == 0) _exit(forks_at(number) ? 0 : 42);
    CHECK(waitpid(trial, &status, 0) == trial && WIFEXITED(status));
    if (WEXITSTATUS(status) == 42) CHECK(number > 10);
  }
  CHECK(WEXITSTATUS(status) == 42);
  return 0;
}
