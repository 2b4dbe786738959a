/* (engine) The program's own fork handlers use the library: those that it had before the library's, and later ones. */
#include "check.h"

#include <sys/wait.h>

static ipcmutex_t kept; /* open in parent and child */
static int ready, child_took;

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
  if (ready && child_took++ == 0) OK(ipcmutex_acquire(kept));
}

int main(int count, char **words) {
  if (count > 1) engine = words[1];
  CHECK(pthread_atfork(prepare, parent, child) == 0);
  kept = open_lock("kept"); /* the library's own handlers come with it */
  CHECK(pthread_atfork(prepare, parent, child) == 0);
  ready = 1;
  for (int round = 0; round < 20; round++) {
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
  return 0;
}
