/* Handles that are dead, made up or of another kind; calls in every order.
 *
 * FAULTS: C2, C3, C7 */
#include "check.h"

#include <sys/mman.h>

/* xorshift64: the same calls in each run. */
static uint64_t seed = 0x9e3779b97f4a7c15u;
static uint64_t next(void) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return seed;
}

static void dead(void) {
  ipcmutex_t mutex, again;
  ipcmutex_hold_t hold;
  ipcmutex_wait_t none;
  int bit;
  OK(ipcmutex_open("spm:misuse-dead", &mutex));
  OK(ipcmutex_hold(mutex, 0, &hold));
  /* One kind is not another. */
  EXPECT(ipcmutex_acquire(hold), IPCMUTEX_BAD_HANDLE);
  EXPECT(ipcmutex_close(hold), IPCMUTEX_BAD_HANDLE);
  EXPECT(ipcmutex_hold_release(mutex), IPCMUTEX_BAD_HANDLE);
  EXPECT(ipcmutex_cancel(mutex), IPCMUTEX_BAD_HANDLE);
  EXPECT(ipcmutex_cancel(hold), IPCMUTEX_BAD_HANDLE);
  for (bit = 0; bit < 64; bit++) {
    EXPECT(ipcmutex_release(mutex ^ (UINT64_C(1) << bit)), IPCMUTEX_BAD_HANDLE);
    EXPECT(ipcmutex_hold_release(hold ^ (UINT64_C(1) << bit)), IPCMUTEX_BAD_HANDLE);
  }
  OK(ipcmutex_hold_check(hold));
  OK(ipcmutex_hold_release(hold));
  OK(ipcmutex_close(mutex));
  OK(ipcmutex_open("spm:misuse-dead", &again));
  CHECK(again != mutex); /* a number does not come back */
  EXPECT(ipcmutex_close(mutex), IPCMUTEX_BAD_HANDLE);
  EXPECT(ipcmutex_acquire(mutex), IPCMUTEX_BAD_HANDLE);
  none = next();
  EXPECT(ipcmutex_cancel(none), IPCMUTEX_BAD_HANDLE);
  OK(ipcmutex_close(again));
}

/* FAULTS: C7. URLs that end right before memory that must not be read, that never end, and that are no text. */
static void urls(void) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), size = 4 * page, room;
  char *memory = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ipcmutex_t mutex = 0;
  CHECK(memory != MAP_FAILED && mprotect(memory + size, page, PROT_NONE) == 0);
  for (room = 1; room <= 12; room++) {
    char *url = memory + size - room;
    memcpy(url, "spm:guarded", room - 1); /* the NUL is the last byte that may be read */
    url[room - 1] = 0;
    if (room <= 5) {
      EXPECT(ipcmutex_open(url, &mutex), IPCMUTEX_INVALID);
    } else {
      OK(ipcmutex_open(url, &mutex));
      OK(ipcmutex_close(mutex));
    }
  }
  memset(memory, 'a', size); /* without any NUL, and longer than a URL can be */
  EXPECT(ipcmutex_open(memory, &mutex), IPCMUTEX_INVALID);
  EXPECT(ipcmutex_open("spm:\xff\xfe", &mutex), IPCMUTEX_INVALID);
  CHECK(munmap(memory, size + page) == 0);
}

static ipcmutex_t shared;
static int closed;

static void *close_it(void *unused) {
  (void)unused;
  int code = ipcmutex_close(shared);
  if (code == IPCMUTEX_OK) __atomic_add_fetch(&closed, 1, __ATOMIC_SEQ_CST);
  else EXPECT(code, IPCMUTEX_BAD_HANDLE);
  return NULL;
}

static void *use_it(void *unused) {
  int code;
  (void)unused;
  do {
    code = ipcmutex_acquire_timeout(shared, 1);
    CHECK(code == IPCMUTEX_OK || code == IPCMUTEX_TIMEOUT || code == IPCMUTEX_CLOSED || code == IPCMUTEX_BAD_HANDLE);
    if (code == IPCMUTEX_OK) {
      code = ipcmutex_release(shared);
      CHECK(code == IPCMUTEX_OK || code == IPCMUTEX_NOT_OWNER || code == IPCMUTEX_CLOSED ||
            code == IPCMUTEX_BAD_HANDLE);
    }
  } while (code != IPCMUTEX_BAD_HANDLE);
  return NULL;
}

/* Many threads close one handle while others use it: one close wins, and nobody touches freed memory. */
static void closed_once(void) {
  enum { THREADS = 6 };
  int round, i;
  for (round = 0; round < 50; round++) {
    pthread_t threads[THREADS];
    closed = 0;
    OK(ipcmutex_open("spm:misuse-once", &shared));
    for (i = 0; i < THREADS; i++)
      CHECK(pthread_create(&threads[i], NULL, i % 2 ? close_it : use_it, NULL) == 0);
    for (i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(closed == 1);
  }
}

static void ignore_code(int code, ipcmutex_hold_t hold, void *user) {
  (void)user;
  if (code == IPCMUTEX_OK) {
    code = ipcmutex_hold_release(hold);
    CHECK(code == IPCMUTEX_OK || code == IPCMUTEX_NOT_OWNER || code == IPCMUTEX_LOST || code == IPCMUTEX_BAD_HANDLE);
  }
}

static void ignore_loss(int reason, void *user) {
  (void)user;
  CHECK(reason == IPCMUTEX_LOST);
}

/* Numbers that were handles, are handles, or never were. All threads use and replace them. */
enum { KNOWN = 24 };
static uint64_t known[KNOWN];

static uint64_t any(uint64_t place) {
  return __atomic_load_n(&known[place % KNOWN], __ATOMIC_RELAXED);
}

static void *fuzz(void *start) {
  static const char *const urls[] = {"spm:fuzz-a", "spm:fuzz-b?fair=strict", "spm:fuzz-c?label=x", "spm:", "x", ""};
  uint64_t state = (uint64_t)(size_t)start, place;
  long round;
  for (round = 0; round < 8000; round++) {
    ipcmutex_status_t status;
    ipcmutex_hold_info_t info;
    int64_t ms = (int64_t)(state >> 33) % 3; /* a fuzz that waits for ever finds nothing */
    int code = 0;
    uint64_t made = 0;
    state = state * 6364136223846793005u + 1442695040888963407u;
    place = state >> 35;
    status.size = (uint32_t)(state >> 50) % 300;
    info.size = (uint32_t)(state >> 52) % 60;
    switch (state >> 59) {
      case 0: case 1: case 2: code = ipcmutex_open(urls[place % 6], &made); break;
      case 3: case 4: code = ipcmutex_try_acquire(any(place)); break;
      case 5: code = ipcmutex_acquire_timeout(any(place), ms); break;
      case 6: case 7: code = ipcmutex_release(any(place)); break;
      case 8: code = ipcmutex_close(any(place)); break;
      case 9: case 10: case 11: code = ipcmutex_hold(any(place), ms, &made); break;
      case 12: case 13: code = ipcmutex_hold_release(any(place)); break;
      case 14: code = ipcmutex_hold_check(any(place)); break;
      case 15: code = ipcmutex_hold_extend(any(place), (int64_t)state); break;
      case 16: code = ipcmutex_hold_info(any(place), &info); break;
      case 17: code = ipcmutex_hold_on_lost(any(place), ignore_loss, NULL); break;
      case 18: case 19: code = ipcmutex_hold_async(any(place), ms, ignore_code, NULL, &made); break;
      case 20: code = ipcmutex_hold_async(any(place), ms, ignore_code, NULL, NULL); break;
      case 21: case 22: code = ipcmutex_cancel(any(place)); break;
      case 23: code = ipcmutex_token(any(place), &made); made = 0; break;
      case 24: code = ipcmutex_status(any(place), &status); break;
      case 25: code = ipcmutex_break(any(place)); break;
      case 26: code = ipcmutex_release(state); break;
      case 27: code = ipcmutex_close(any(place) ^ (UINT64_C(1) << (place >> 8) % 64)); break;
      case 28: code = ipcmutex_hold_release(any(place) + 1); break;
      case 29: code = ipcmutex_cancel(state); break;
      case 30: code = ipcmutex_hold(any(place), 0, NULL); break;
      default: code = ipcmutex_open(NULL, &made); break;
    }
    CHECK(code >= IPCMUTEX_OK && code < IPCMUTEX_PANIC);
    if (made) __atomic_store_n(&known[(place >> 5) % KNOWN], made, __ATOMIC_RELAXED);
  }
  return NULL;
}

int main(void) {
  pthread_t threads[3];
  int i;
  dead();
  urls();
  closed_once();
  for (i = 0; i < KNOWN; i++) known[i] = next();
  fuzz((void *)(size_t)1); /* alone: the same calls in each run */
  for (i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, fuzz, (void *)(size_t)(i + 2)) == 0);
  for (i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  return 0;
}
