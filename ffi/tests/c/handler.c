/* (engine) A signal comes while its thread forks, and its handler forks, too. */
#include "check.h"

#include <signal.h>
#include <sys/wait.h>

static int came;
static pid_t inner;

static void fork_too(int signal) {
  (void)signal;
  inner = fork();
  if (inner == 0) _exit(0);
}

/* Behind the library's own handler, which comes later: the gate is closed already. */
static void prepare(void) {
  if (came++ == 0) raise(SIGUSR1);
}

int main(int count, char **words) {
  int status;
  if (count > 1) engine = words[1];
  CHECK(signal(SIGUSR1, fork_too) != SIG_ERR);
  CHECK(pthread_atfork(prepare, NULL, NULL) == 0);
  ipcmutex_t mutex = open_lock("handler");
  alarm(20);
  pid_t outer = fork();
  if (outer == 0) {
    sigset_t now;
    CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0 && !sigismember(&now, SIGUSR1) && !sigismember(&now, SIGTERM));
    _exit(ipcmutex_close(mutex));
  }
  CHECK(outer > 0 && waitpid(outer, &status, 0) == outer && status == 0);
  CHECK(came == 2 && inner > 0 && waitpid(inner, &status, 0) == inner && status == 0);
  OK(ipcmutex_close(mutex));
  return 0;
}
