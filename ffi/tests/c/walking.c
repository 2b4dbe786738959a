/* A thread asks the loader what is loaded, as C++ exceptions and profilers do, when the process forks: no fork resets the loader's lock. */
#define _GNU_SOURCE
#include "check.h"

#include <link.h>
#include <sys/wait.h>

static int look(struct dl_phdr_info *info, size_t size, void *none) { return (void)info, (void)size, (void)none, 0; }

static void *walk(void *none) {
  for (;;) dl_iterate_phdr(look, NULL);
  return none;
}

int main(void) {
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, walk, NULL) == 0);
  for (int round = 0; round < 50; round++) {
    int status;
    pid_t child = fork();
    if (child == 0) {
      alarm(20);
      OK(ipcmutex_close(open_lock("first")));
      _exit(7);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    if (status != 7 << 8) fprintf(stderr, "the child ended with %#x\n", status);
    CHECK(status == 7 << 8);
  }
  _exit(0);
}
