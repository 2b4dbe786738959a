/* What a forked child has of its parent's handles. */
#include "check.h"

#include <sys/wait.h>

static pid_t parent;
static flag_t parent_told = FLAG;

static void closed_in_the_parent(int code, ipcmutex_hold_t hold, void *user) {
  (void)hold, (void)user;
  CHECK(getpid() == parent); /* a callback of the parent does not run in the child */
  EXPECT(code, IPCMUTEX_CLOSED);
  flag_raise(&parent_told);
}

static void told(int code, ipcmutex_hold_t hold, void *user) {
  OK(code);
  OK(ipcmutex_hold_release(hold));
  flag_raise(user);
}

static void in_a_child(void (*body)(void)) {
  int status;
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    body();
    _exit(7);
  }
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static ipcmutex_t mutex, unheld;
static ipcmutex_hold_t hold;
static ipcmutex_wait_t wait_handle;

static void inherited(void) {
  static flag_t flag = FLAG;
  ipcmutex_hold_info_t info;
  ipcmutex_hold_t mine;
  uint64_t token;
  info.size = sizeof info;
  EXPECT(ipcmutex_hold_check(hold), IPCMUTEX_FORKED);
  EXPECT(ipcmutex_hold_info(hold, &info), IPCMUTEX_FORKED);
  EXPECT(ipcmutex_hold_extend(hold, 1000), IPCMUTEX_FORKED);
  EXPECT(ipcmutex_hold_release(hold), IPCMUTEX_FORKED);
  EXPECT(ipcmutex_hold_release(hold), IPCMUTEX_FORKED); /* it stays the parent's, however often */
  EXPECT(ipcmutex_release(mutex), IPCMUTEX_FORKED);
  EXPECT(ipcmutex_token(mutex, &token), IPCMUTEX_FORKED);
  EXPECT(ipcmutex_release(unheld), IPCMUTEX_NOT_OWNER);
  EXPECT(ipcmutex_cancel(wait_handle), IPCMUTEX_BAD_HANDLE);

  /* The mutex works, with a process of its own: spm is per process, so it is free here. */
  OK(ipcmutex_hold(mutex, 0, &mine));
  OK(ipcmutex_hold_check(mine));
  OK(ipcmutex_hold_release(mine));
  EXPECT(ipcmutex_release(mutex), IPCMUTEX_NOT_OWNER);
  OK(ipcmutex_hold_async(mutex, -1, told, &flag, NULL));
  flag_wait(&flag, 1);
  OK(ipcmutex_close(mutex));
  EXPECT(ipcmutex_close(mutex), IPCMUTEX_BAD_HANDLE);
}

static int stop;

static void *busy(void *url) {
  while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
    ipcmutex_t own;
    ipcmutex_hold_t held;
    OK(ipcmutex_open(url, &own));
    OK(ipcmutex_hold(own, -1, &held));
    OK(ipcmutex_hold_release(held));
    OK(ipcmutex_close(own));
    if (ipcmutex_try_acquire(unheld) == IPCMUTEX_OK) OK(ipcmutex_release(unheld));
  }
  return NULL;
}

static void at_once(void) {
  ipcmutex_t own;
  ipcmutex_hold_t held;
  OK(ipcmutex_acquire(unheld));
  OK(ipcmutex_release(unheld));
  OK(ipcmutex_open("spm:fork-new", &own));
  OK(ipcmutex_hold(own, -1, &held));
  OK(ipcmutex_hold_release(held));
  OK(ipcmutex_close(own));
  OK(ipcmutex_close(unheld));
}

int main(void) {
  pthread_t threads[2];
  int i;
  parent = getpid();
  OK(ipcmutex_open("spm:fork", &mutex));
  OK(ipcmutex_open("spm:fork-unheld", &unheld));
  OK(ipcmutex_hold(mutex, 0, &hold));
  OK(ipcmutex_hold_async(mutex, -1, closed_in_the_parent, NULL, &wait_handle));
  in_a_child(inherited);
  OK(ipcmutex_hold_check(hold)); /* nothing of that touched the parent */
  OK(ipcmutex_close(mutex));
  flag_wait(&parent_told, 1);
  EXPECT(ipcmutex_hold_release(hold), IPCMUTEX_NOT_OWNER);

  /* Forks while other threads are in the middle of calls. */
  for (i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, busy, i ? "spm:fork-x" : "spm:fork-y") == 0);
  for (i = 0; i < 100; i++) in_a_child(at_once);
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  for (i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  OK(ipcmutex_close(unheld));
  return 0;
}
