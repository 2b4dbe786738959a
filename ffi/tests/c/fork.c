/* What a forked child has of its parent's handles. */
#include "check.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
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

static ipcmutex_t named;

/* A name means the lock that it meant when the mutex was opened, whatever the child has become. */
static void in_other_surroundings(void) {
  CHECK(setenv("IPCMUTEX_DIR", "/nowhere/at-all", 1) == 0);
  EXPECT(ipcmutex_try_acquire(named), IPCMUTEX_TIMEOUT);
}

static void as_another_user(void) {
  CHECK(unsetenv("IPCMUTEX_DIR") == 0 && unsetenv("XDG_RUNTIME_DIR") == 0);
  CHECK(setgid(65534) == 0 && setuid(65534) == 0);
  EXPECT(ipcmutex_try_acquire(named), IPCMUTEX_PERMISSION);
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

/* The words of the command at `at`, and what stands behind it. */
static char *command(char *at, char *words[], int *count) {
  int i;
  *count = (int)strtol(at + 1, &at, 10);
  for (i = 0; i < *count; i++) {
    long length = strtol(at + 3, &at, 10); /* behind the end of a line and a dollar */
    words[i] = at + 2;
    at += 2 + length;
  }
  at += 2;
  for (i = 0; i < *count; i++) words[i][strcspn(words[i], "\r")] = 0;
  return at;
}

static pthread_t who_asks;

/* A server of which everybody gets the lock, and is disturbed while it asks for it or gives it back. */
static void *serve(void *listener) {
  static char asked[65536];
  char *words[64], answer[128];
  int count, client = accept(*(int *)listener, NULL, NULL);
  ssize_t length;
  CHECK(client >= 0);
  while ((length = read(client, asked, sizeof asked - 1)) > 0) {
    char *at = asked;
    asked[length] = 0;
    while (at < asked + length) {
      at = command(at, words, &count);
      if (strncmp(words[0], "EVAL", 4) == 0) CHECK(pthread_kill(who_asks, SIGUSR1) == 0);
      if (strncmp(words[0], "EVAL", 4) == 0 && count == 12) { /* a take */
        snprintf(answer, sizeof answer, "*5\r\n:1\r\n$1\r\n7\r\n:0\r\n:0\r\n$%zu\r\n%s\r\n", strlen(words[6]), words[6]);
      } else {
        strcpy(answer, strncmp(words[0], "EVAL", 4) == 0 ? ":1\r\n" : "+OK\r\n");
      }
      CHECK(write(client, answer, strlen(answer)) == (ssize_t)strlen(answer));
    }
  }
  return NULL;
}

/* Takes one more connection, and says nothing on it. */
static void *take_in(void *listener) {
  CHECK(accept(*(int *)listener, NULL, NULL) >= 0);
  CHECK(pthread_kill(who_asks, SIGUSR1) == 0);
  return NULL;
}

static volatile pid_t forked;

static void fork_here(int number) {
  (void)number;
  forked = fork();
  if (forked == 0) alarm(30); /* for a child that hangs */
}

static ipcmutex_hold_t remote_hold;

static int acquire_for_a_second(ipcmutex_t lock) { return ipcmutex_acquire_timeout(lock, 1000); }
static int hold_it(ipcmutex_t lock) { return ipcmutex_hold(lock, -1, &remote_hold); }
static int extend_it(ipcmutex_t lock) { return (void)lock, ipcmutex_hold_extend(remote_hold, 60000); }
static int release_it(ipcmutex_t lock) { return (void)lock, ipcmutex_hold_release(remote_hold); }

/* A signal's handler forks while `way` goes on: the answer is the parent's alone. */
static void forked_in(int (*way)(ipcmutex_t), ipcmutex_t lock, int expected) {
  int code, status;
  forked = -1;
  code = way(lock);
  if (forked == 0) {
    EXPECT(code, IPCMUTEX_FORKED);
    _exit(7);
  }
  EXPECT(code, expected);
  CHECK(forked > 0 && waitpid(forked, &status, 0) == forked);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static void forked_while_it_asks(void) {
  int (*const ways[])(ipcmutex_t) = {ipcmutex_acquire, ipcmutex_try_acquire, acquire_for_a_second};
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  struct sigaction action = {.sa_handler = fork_here};
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  char url[160];
  pthread_t server, silent;
  ipcmutex_t remote;
  size_t i;
  CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0);
  CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
  CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
  who_asks = pthread_self();
  CHECK(pthread_create(&server, NULL, serve, &listener) == 0);
  snprintf(url, sizeof url, "rpm+redis://127.0.0.1:%d/fork?policy=any&ttl=60s&renew=off&connect_timeout=1s",
           ntohs(address.sin_port));
  OK(ipcmutex_open(url, &remote));
  for (i = 0; i < sizeof ways / sizeof *ways; i++) {
    forked_in(ways[i], remote, IPCMUTEX_OK);
    forked_in(ipcmutex_release, remote, IPCMUTEX_OK);
  }
  /* A renewal goes by way of a thread that the child does not have, on a connection of its own. */
  forked_in(hold_it, remote, IPCMUTEX_OK);
  CHECK(pthread_create(&silent, NULL, take_in, &listener) == 0);
  forked_in(extend_it, remote, IPCMUTEX_UNAVAILABLE);
  forked_in(release_it, remote, IPCMUTEX_OK);
  OK(ipcmutex_close(remote));
  close(listener);
}

static ipcmutex_hold_t in_the_way;

static volatile int asked;

/* Answers a take when who queues behind it has been disturbed. */
static void *serve_late(void *listener) {
  static char said[65536];
  char *words[64], answer[128];
  int count, client = accept(*(int *)listener, NULL, NULL);
  ssize_t length;
  CHECK(client >= 0);
  while ((length = read(client, said, sizeof said - 1)) > 0) {
    char *at = said;
    said[length] = 0;
    while (at < said + length) {
      at = command(at, words, &count);
      strcpy(answer, strncmp(words[0], "EVAL", 4) == 0 ? ":1\r\n" : "+OK\r\n");
      if (strncmp(words[0], "EVAL", 4) == 0 && count == 12) { /* a take */
        asked = 1;
        while (forked <= 0) usleep(200);
        snprintf(answer, sizeof answer, "*5\r\n:1\r\n$1\r\n7\r\n:0\r\n:0\r\n$%zu\r\n%s\r\n", strlen(words[6]), words[6]);
      }
      CHECK(write(client, answer, strlen(answer)) == (ssize_t)strlen(answer));
    }
  }
  return NULL;
}

static void *goes_ahead(void *lock) {
  OK(ipcmutex_try_acquire(*(ipcmutex_t *)lock));
  OK(ipcmutex_release(*(ipcmutex_t *)lock));
  return NULL;
}

/* Has `who_asks`, the main thread, fork once it sleeps, and lets it go on then. */
static void *disturb(void *lock) {
  long call = -1;
  if (lock) wait_for_line(*(ipcmutex_t *)lock, 1);
  do {
    FILE *file = fopen("/proc/self/syscall", "r");
    usleep(200);
    CHECK(file != NULL);
    if (fscanf(file, "%ld", &call) != 1) call = -1; /* it runs */
    fclose(file);
  } while (call != SYS_futex);
  CHECK(pthread_kill(who_asks, SIGUSR1) == 0);
  while (forked <= 0) usleep(200);
  if (lock) OK(ipcmutex_hold_release(in_the_way));
  return NULL;
}

/* As signal() has it: a call of the system that can be, is begun anew, in the child as well. */
static void forked_while_it_sleeps(void) {
  static const char *const names[] = {"spm:fork-sleeps", "mpm:fork-sleeps"};
  struct sigaction action = {.sa_handler = fork_here, .sa_flags = SA_RESTART};
  size_t i;
  who_asks = pthread_self();
  CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
  for (i = 0; i < sizeof names / sizeof *names; i++) {
    pthread_t thread;
    ipcmutex_t lock;
    OK(ipcmutex_open(names[i], &lock));
    OK(ipcmutex_hold(lock, 0, &in_the_way));
    CHECK(pthread_create(&thread, NULL, disturb, &lock) == 0);
    forked_in(ipcmutex_acquire, lock, IPCMUTEX_OK);
    CHECK(pthread_join(thread, NULL) == 0);
    OK(ipcmutex_close(lock));
  }
}

/* One asks the server at a time; the thread that does is its parent's. */
static void forked_while_it_queues(void) {
  int (*const ways[])(ipcmutex_t) = {ipcmutex_acquire, ipcmutex_try_acquire, acquire_for_a_second, release_it};
  struct sigaction action = {.sa_handler = fork_here};
  size_t i;
  who_asks = pthread_self();
  CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
  for (i = 0; i < sizeof ways / sizeof *ways; i++) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    pthread_t server, ahead, disturber;
    ipcmutex_t lock, other;
    char url[160];
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    CHECK(pthread_create(&server, NULL, serve_late, &listener) == 0);
    snprintf(url, sizeof url, "rpm+redis://127.0.0.1:%d/a?policy=any&ttl=60s&renew=off", ntohs(address.sin_port));
    OK(ipcmutex_open(url, &lock));
    snprintf(url, sizeof url, "rpm+redis://127.0.0.1:%d/b?policy=any&ttl=60s&renew=off", ntohs(address.sin_port));
    OK(ipcmutex_open(url, &other));
    forked = 1;
    if (ways[i] == release_it) OK(ipcmutex_hold(lock, 0, &remote_hold));
    forked = asked = 0;
    CHECK(pthread_create(&ahead, NULL, goes_ahead, &other) == 0);
    while (!asked) usleep(200);
    CHECK(pthread_create(&disturber, NULL, disturb, NULL) == 0);
    forked_in(ways[i], lock, IPCMUTEX_OK);
    CHECK(pthread_join(disturber, NULL) == 0 && pthread_join(ahead, NULL) == 0);
    OK(ipcmutex_close(lock));
    OK(ipcmutex_close(other));
    CHECK(pthread_join(server, NULL) == 0);
    close(listener);
  }
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

  OK(ipcmutex_open("mpm:fork-named", &named));
  OK(ipcmutex_acquire(named));
  in_a_child(in_other_surroundings);
  if (geteuid() == 0) in_a_child(as_another_user);
  OK(ipcmutex_close(named));

  /* Forks while other threads are in the middle of calls. */
  for (i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, busy, i ? "spm:fork-x" : "spm:fork-y") == 0);
  for (i = 0; i < 100; i++) in_a_child(at_once);
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  for (i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  OK(ipcmutex_close(unheld));
  forked_while_it_asks();
  forked_while_it_sleeps();
  forked_while_it_queues();
  return 0;
}
