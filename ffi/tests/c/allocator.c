/* An allocator of the program's own, which a fork locks, as jemalloc and tcmalloc do: who opens a mutex calls it while a fork waits. */
#include "check.h"

#include <sys/wait.h>

extern void *__libc_malloc(size_t size);

static pthread_mutex_t arena = PTHREAD_MUTEX_INITIALIZER;
static int over;

static void lock(void) { pthread_mutex_lock(&arena); }
static void unlock(void) { pthread_mutex_unlock(&arena); }

void *malloc(size_t size) {
  lock();
  void *memory = __libc_malloc(size);
  unlock();
  return memory;
}

static void *open_often(void *none) {
  char name[32];
  for (int round = 0; !__atomic_load_n(&over, __ATOMIC_ACQUIRE); round++) {
    snprintf(name, sizeof name, "opened-%d", round % 64);
    OK(ipcmutex_close(open_lock(name)));
  }
  return none;
}

int main(void) {
  engine = "mpm:";
  CHECK(pthread_atfork(lock, unlock, unlock) == 0); /* it came with the program */
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, open_often, NULL) == 0);
  for (int round = 0; round < 2000; round++) {
    int status;
    pid_t child = fork();
    if (child == 0) _exit(7);
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 7 << 8);
  }
  __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
  CHECK(pthread_join(thread, NULL) == 0);
  return 0;
}
