/* A collector that stops the world, as some garbage collectors do: who collects has its lock and signals all threads; a fork waits for that
   lock. So a fork must not keep signals away, and who waits for a fork neither. */
#include "check.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/wait.h>

static pthread_mutex_t collects = PTHREAD_MUTEX_INITIALIZER;
static sem_t stopped;
static pthread_t threads[2];
static int over, collected;

static void stop(int number) {
  (void)number;
  int before = errno;
  sem_post(&stopped);
  errno = before;
}
static void prepare(void) { pthread_mutex_lock(&collects); }
static void unlock(void) { pthread_mutex_unlock(&collects); }

static void *collect(void *none) {
  while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
    pthread_mutex_lock(&collects);
    for (int i = 0; i < 2; i++) CHECK(pthread_kill(threads[i], SIGPWR) == 0);
    for (int i = 0; i < 2; i++)
      while (sem_wait(&stopped) != 0) CHECK(errno == EINTR);
    pthread_mutex_unlock(&collects);
    usleep(100);
  }
  return none;
}

/* What it opens waits for a fork that is under way. A thread that has ended is not stopped: it outlives who would wait for that. */
static void *open_often(void *none) {
  while (!__atomic_load_n(&collected, __ATOMIC_ACQUIRE)) OK(ipcmutex_close(open_lock("opened")));
  return none;
}

int main(void) {
  engine = "mpm:";
  struct sigaction action = {.sa_handler = stop, .sa_flags = SA_RESTART};
  CHECK(pthread_atfork(prepare, unlock, unlock) == 0);
  CHECK(sem_init(&stopped, 0, 0) == 0 && sigaction(SIGPWR, &action, NULL) == 0);
  OK(ipcmutex_close(open_lock("opened")));
  threads[0] = pthread_self();
  pthread_t collector;
  CHECK(pthread_create(&threads[1], NULL, open_often, NULL) == 0);
  CHECK(pthread_create(&collector, NULL, collect, NULL) == 0);
  for (int round = 0; round < 500; round++) {
    int status;
    pid_t child = fork();
    if (child == 0) _exit(7);
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 7 << 8);
  }
  __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
  CHECK(pthread_join(collector, NULL) == 0);
  __atomic_store_n(&collected, 1, __ATOMIC_RELEASE);
  CHECK(pthread_join(threads[1], NULL) == 0);
  return 0;
}
