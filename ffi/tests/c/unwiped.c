/* (engine) A kernel, or an emulator of one, that says yes to MADV_WIPEONFORK and wipes nothing. */
#define _GNU_SOURCE
#include "check.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

int madvise(void *start, size_t length, int advice) {
  return advice == MADV_WIPEONFORK ? 0 : (int)syscall(SYS_madvise, start, length, advice);
}

int main(int count, char **words) {
  if (count > 1) engine = words[1];
  ipcmutex_t mutex = open_lock("unwiped");
  for (int round = 0; round < 3; round++) {
    int status;
    OK(ipcmutex_acquire(mutex));
    pid_t child = fork();
    if (child == 0) {
      alarm(20);
      EXPECT(ipcmutex_release(mutex), IPCMUTEX_FORKED);
      OK(ipcmutex_close(open_lock("another")));
      _exit(7);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 7 << 8);
    OK(ipcmutex_release(mutex));
  }
  return 0;
}
