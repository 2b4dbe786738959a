/* (engine) The program's own fork handlers use the library, and fork, too, while another thread opens what they open; also those that are put
   in place before main begins. */
#include "check.h"

#include <sys/wait.h>

static ipcmutex_t kept; /* open in parent and child */
static int ready, child_took, over;

static void use(const char *when) {
  if (!ready) return;
  ipcmutex_t mutex = open_lock(when);
  OK(ipcmutex_acquire(mutex));
  OK(ipcmutex_release(mutex));
  OK(ipcmutex_close(mutex));
}

static void prepare(void) { use("prepare"); }
static void parent(void) { use("parent"); }
static void child(void) {
  use("child");
  if (!ready || child_took++) return;
  OK(ipcmutex_acquire(kept));
  /* A helper's fork leaves what is held here alone. */
  int status;
  pid_t helper = fork();
  if (helper == 0) _exit(7);
  CHECK(helper > 0 && waitpid(helper, &status, 0) == helper && status == 7 << 8);
}

static void *use_often(void *none) {
  while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) OK(ipcmutex_close(open_lock("often")));
  return none;
}

__attribute__((constructor)) static void begin(void) { CHECK(pthread_atfork(prepare, parent, child) == 0); }

int main(int count, char **words) {
  if (count > 1) engine = words[1];
  kept = open_lock("kept");
  CHECK(pthread_atfork(prepare, parent, child) == 0);
  ready = 1;
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, use_often, NULL) == 0);
  for (int round = 0; round < 1000; round++) {
    int status;
    pid_t process = fork();
    CHECK(process >= 0);
    if (process == 0) {
      /* What its handler took is its own. */
      OK(ipcmutex_release(kept));
      use("child");
      _exit(7);
    }
    CHECK(waitpid(process, &status, 0) == process);
    CHECK(status == 7 << 8);
    OK(ipcmutex_acquire(kept));
    OK(ipcmutex_release(kept));
  }
  __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
  CHECK(pthread_join(thread, NULL) == 0);
  return 0;
}
