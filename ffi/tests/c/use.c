/* Each function, used as the header says. */
#define _GNU_SOURCE
#include "check.h"

#include <sys/mman.h>

static void basics(void) {
  ipcmutex_t mutex = 0, other = 0;
  uint64_t first, second;
  mutex = open_lock("use-basics");
  other = open_lock("use-basics");
  CHECK(mutex != 0 && other != 0 && mutex != other);
  OK(ipcmutex_acquire(mutex));
  OK(ipcmutex_token(mutex, &first));
  EXPECT(ipcmutex_try_acquire(other), IPCMUTEX_TIMEOUT);
  CHECK(strstr(ipcmutex_last_error(), "use-basics") && strstr(ipcmutex_last_error(), "held by pid"));
  EXPECT(ipcmutex_acquire_timeout(other, 5), IPCMUTEX_TIMEOUT);
  EXPECT(ipcmutex_try_acquire(mutex), IPCMUTEX_TIMEOUT); /* not recursive */
  EXPECT(ipcmutex_release(other), IPCMUTEX_NOT_OWNER);
  EXPECT(ipcmutex_token(other, &second), IPCMUTEX_NOT_OWNER);
  OK(ipcmutex_release(mutex));
  EXPECT(ipcmutex_release(mutex), IPCMUTEX_NOT_OWNER);
  OK(ipcmutex_acquire_timeout(other, INT64_MAX));
  OK(ipcmutex_token(other, &second));
  CHECK(second > first);
  OK(ipcmutex_close(other)); /* releases */
  OK(ipcmutex_acquire_timeout(mutex, -1));
  OK(ipcmutex_release(mutex));
  OK(ipcmutex_close(mutex));
}

static void holds(void) {
  ipcmutex_t mutex;
  ipcmutex_hold_t hold = 0, again = 7;
  ipcmutex_hold_info_t info;
  uint64_t token;
  mutex = open_lock("use-holds");
  OK(ipcmutex_hold(mutex, -1, &hold));
  EXPECT(ipcmutex_hold(mutex, 0, &again), IPCMUTEX_TIMEOUT);
  CHECK(again == 7); /* written only on success */
  OK(ipcmutex_hold_check(hold));
  info.size = sizeof info;
  OK(ipcmutex_hold_info(hold, &info));
  OK(ipcmutex_token(mutex, &token));
  CHECK(info.size == sizeof info && info.token == token && info.abandoned == 0 && info.valid_ms == -1);
  EXPECT(ipcmutex_hold_extend(hold, 1000), IPCMUTEX_UNSUPPORTED);
  EXPECT(ipcmutex_hold_extend(hold, -1), IPCMUTEX_INVALID);
  OK(ipcmutex_hold_release(hold));
  EXPECT(ipcmutex_hold_release(hold), IPCMUTEX_BAD_HANDLE);
  EXPECT(ipcmutex_hold_check(hold), IPCMUTEX_BAD_HANDLE);

  /* Released through the mutex: the number tells so once, and then is dead. */
  OK(ipcmutex_hold(mutex, 0, &hold));
  OK(ipcmutex_release(mutex));
  OK(ipcmutex_hold(mutex, 0, &again));
  EXPECT(ipcmutex_hold_check(hold), IPCMUTEX_NOT_OWNER);
  EXPECT(ipcmutex_hold_info(hold, &info), IPCMUTEX_NOT_OWNER);
  EXPECT(ipcmutex_hold_release(hold), IPCMUTEX_NOT_OWNER);
  EXPECT(ipcmutex_hold_release(hold), IPCMUTEX_BAD_HANDLE);
  OK(ipcmutex_hold_check(again)); /* and nobody else's hold was touched */

  /* Closing the mutex releases its hold. */
  OK(ipcmutex_close(mutex));
  EXPECT(ipcmutex_hold_release(again), IPCMUTEX_NOT_OWNER);
  mutex = open_lock("use-holds");
  OK(ipcmutex_try_acquire(mutex));
  OK(ipcmutex_close(mutex));
}

static void broken(void) {
  ipcmutex_t mutex, other;
  ipcmutex_hold_t hold, next;
  ipcmutex_hold_info_t info;
  ipcmutex_status_t status;
  uint64_t token;
  mutex = open_lock("use-broken");
  other = open_lock("use-broken");
  OK(ipcmutex_break(other)); /* nobody holds it: fine */
  OK(ipcmutex_hold(mutex, 0, &hold));
  OK(ipcmutex_token(mutex, &token));
  OK(ipcmutex_break(other));
  EXPECT(ipcmutex_hold_check(hold), IPCMUTEX_LOST);
  info.size = sizeof info;
  OK(ipcmutex_hold_info(hold, &info)); /* a lost hold still tells its token */
  CHECK(info.token == token);
  status.size = sizeof status;
  OK(ipcmutex_status(other, &status));
  CHECK(status.state == IPCMUTEX_ABANDONED && status.token >= token);
  OK(ipcmutex_hold(other, 0, &next));
  OK(ipcmutex_hold_info(next, &info));
  CHECK(info.abandoned == 1 && info.token > token);
  EXPECT(ipcmutex_hold_release(hold), IPCMUTEX_LOST);
  OK(ipcmutex_hold_release(next));
  OK(ipcmutex_close(mutex));
  OK(ipcmutex_close(other));
}

static void status_and_sizes(void) {
  ipcmutex_t mutex;
  union {
    ipcmutex_status_t status;
    ipcmutex_hold_info_t info;
    unsigned char bytes[8192];
  } big;
  ipcmutex_hold_t hold;
  unsigned size;
  mutex = open_lock("use-status?label=the%20tester");
  big.status.size = sizeof big.status;
  OK(ipcmutex_status(mutex, &big.status));
  CHECK(big.status.state == IPCMUTEX_FREE && big.status.waiters == 0);
  CHECK(big.status.owner_pid == 0 && big.status.owner_label[0] == 0 && big.status.held_ms == -1);
  OK(ipcmutex_hold(mutex, 0, &hold));
  OK(ipcmutex_status(mutex, &big.status));
  CHECK(big.status.state == IPCMUTEX_HELD && big.status.owner_pid == (uint32_t)getpid());
  CHECK(strcmp(big.status.owner_label, "the tester") == 0 && big.status.owner_host[0] != 0);
  CHECK(big.status.held_ms >= 0 && big.status.token != 0);

  /* Whatever the caller's struct is large, nothing beyond it and nothing beyond ours is written. */
  for (size = 0; size <= sizeof big; size++) {
    int code, served = size >= 8 && size <= 4096;
    unsigned at, ours = size < sizeof big.status ? size : sizeof big.status;
    memset(big.bytes, 0xee, sizeof big);
    big.status.size = size;
    code = ipcmutex_status(mutex, &big.status);
    CHECK(code == (served ? IPCMUTEX_OK : IPCMUTEX_INVALID));
    for (at = served ? ours : 4; at < sizeof big; at++) CHECK(big.bytes[at] == 0xee);
    CHECK(big.status.size == size);

    ours = size < sizeof big.info ? size : sizeof big.info;
    memset(big.bytes, 0xee, sizeof big);
    big.info.size = size;
    code = ipcmutex_hold_info(hold, &big.info);
    CHECK(code == (served ? IPCMUTEX_OK : IPCMUTEX_INVALID));
    for (at = served ? ours : 4; at < sizeof big; at++) CHECK(big.bytes[at] == 0xee);
  }
  OK(ipcmutex_hold_release(hold));
  OK(ipcmutex_close(mutex));
}

static void urls(void) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), length = 5 * page;
  ipcmutex_t mutex = 7;
  char *text, *huge;
  EXPECT(ipcmutex_open("", &mutex), IPCMUTEX_INVALID);
  EXPECT(ipcmutex_open("nothing:x", &mutex), IPCMUTEX_INVALID);
  CHECK(strstr(ipcmutex_last_error(), "rpm+redis"));
  EXPECT(ipcmutex_open("spm:\xc3\x28", &mutex), IPCMUTEX_INVALID);
  EXPECT(ipcmutex_open("rpm+redis://u:canary@h/x?nonsense=1", &mutex), IPCMUTEX_INVALID);
  CHECK(!strstr(ipcmutex_last_error(), "canary"));

  /* The text ends where readable memory ends: with its NUL, and then without one. */
  text = mmap(NULL, length + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(text != MAP_FAILED);
  CHECK(mprotect(text + length, page, PROT_NONE) == 0);
  memcpy(text + length - 8, "spm:end", 8);
  OK(ipcmutex_open(text + length - 8, &mutex));
  OK(ipcmutex_close(mutex));
  memset(text, 'a', length);
  EXPECT(ipcmutex_open(text + length - 8193, &mutex), IPCMUTEX_INVALID);

  huge = malloc(1 << 20);
  CHECK(huge);
  memset(huge, 'a', 1 << 20);
  huge[(1 << 20) - 1] = 0;
  EXPECT(ipcmutex_open(huge, &mutex), IPCMUTEX_INVALID);
  CHECK(strlen(ipcmutex_last_error()) < 1000);
  free(huge);
  munmap(text, length + page);
}

static void *fail_elsewhere(void *unused) {
  ipcmutex_t mutex;
  (void)unused;
  CHECK(ipcmutex_last_error() && strcmp(ipcmutex_last_error(), "") == 0);
  EXPECT(ipcmutex_open("elsewhere:x", &mutex), IPCMUTEX_INVALID);
  CHECK(strstr(ipcmutex_last_error(), "elsewhere"));
  return NULL;
}

static void texts(void) {
  pthread_t thread;
  int code;
  EXPECT(ipcmutex_release(0), IPCMUTEX_BAD_HANDLE);
  CHECK(pthread_create(&thread, NULL, fail_elsewhere, NULL) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(strstr(ipcmutex_last_error(), "not a live mutex handle")); /* each thread has its own */
  for (code = -3; code <= IPCMUTEX_PANIC + 3; code++) {
    const char *text = ipcmutex_strerror(code);
    CHECK(text && *text);
    CHECK((strcmp(text, "unknown code") == 0) == (code < 0 || code > IPCMUTEX_PANIC));
  }
  CHECK(strcmp(ipcmutex_version(), IPCMUTEX_VERSION) == 0);
  CHECK(ipcmutex_abi_version() == IPCMUTEX_ABI_VERSION);
}

int main(int argc, char **argv) {
  if (argc > 1) engine = argv[1];
  CHECK(strcmp(ipcmutex_last_error(), "") == 0);
  basics();
  holds();
  broken();
  status_and_sizes();
  urls();
  texts();
  return 0;
}
