/* LIBRARY ENGINE: a program whose handler of `fork` was there before it loaded the library: in the child it acquires, and forks, all the same. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <ipcmutex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                       \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                  \
      abort();                                                                                 \
    }                                                                                          \
  } while (0)

static int (*open_url)(const char *, ipcmutex_t *);
static int (*acquire)(ipcmutex_t), (*release)(ipcmutex_t), (*end)(ipcmutex_t);
static ipcmutex_t kept;
static char often[64];
static int ready, took, over;

static void child(void) {
  if (!ready || took++) return;
  CHECK(acquire(kept) == IPCMUTEX_OK);
  int status;
  pid_t helper = fork();
  if (helper == 0) _exit(7);
  CHECK(helper > 0 && waitpid(helper, &status, 0) == helper && status == 7 << 8);
}

static void *open_often(void *none) {
  ipcmutex_t mutex;
  while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) CHECK(open_url(often, &mutex) == IPCMUTEX_OK && end(mutex) == IPCMUTEX_OK);
  return none;
}

/* Of those that the other thread opens: what its handler took may be open here. */
static void has_no_lock_file(void) {
  for (int file = 3; file < 64; file++) {
    char path[64], name[512] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    CHECK(readlink(path, name, sizeof name - 1) < 0 || !strstr(name, "/late-often"));
  }
}

int main(int count, char **words) {
  char url[64];
  CHECK(count == 3 && pthread_atfork(NULL, NULL, child) == 0);
  void *library = dlopen(words[1], RTLD_NOW);
  CHECK(library != NULL);
  *(void **)&open_url = dlsym(library, "ipcmutex_open");
  *(void **)&acquire = dlsym(library, "ipcmutex_acquire");
  *(void **)&release = dlsym(library, "ipcmutex_release");
  *(void **)&end = dlsym(library, "ipcmutex_close");
  snprintf(url, sizeof url, "%slate-kept", words[2]);
  snprintf(often, sizeof often, "%slate-often", words[2]);
  CHECK(open_url(url, &kept) == IPCMUTEX_OK);
  ready = 1;
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, open_often, NULL) == 0);
  for (int round = 0; round < 300; round++) {
    int status;
    pid_t process = fork();
    if (process == 0) {
      alarm(20);
      has_no_lock_file();
      /* What its handler took is its own. */
      _exit(release(kept) == IPCMUTEX_OK ? 7 : 8);
    }
    CHECK(process > 0 && waitpid(process, &status, 0) == process && status == 7 << 8);
  }
  __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
  CHECK(pthread_join(thread, NULL) == 0);
  return 0;
}
