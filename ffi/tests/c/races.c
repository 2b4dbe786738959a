/* Two threads at one handle, which one of them had to itself until then: who releases, and who closes, at the same moment.
 * Each round has a handle of its own, since a handle is taken from its first thread once.
 *
 * FAULTS: C4 */
#include "check.h"

#include <sched.h>
#include <stdatomic.h>

static enum { RELEASE, CLOSE, HELP, END } game;
static atomic_uint round_now, round_done;
static ipcmutex_t mutex;
static int partners_code;
static unsigned partners_delay, partners_releases;
static atomic_int over;

/* A step that takes from nothing to a few hundred nanoseconds. */
static void delay(unsigned steps) {
  for (volatile unsigned i = 0; i < steps; i++) {
  }
}

static void wait_until(atomic_uint *number, unsigned value) {
  for (unsigned tries = 0; atomic_load(number) != value; tries++)
    if (tries > 2000) sched_yield();
}

static void *partner(void *unused) {
  (void)unused;
  for (unsigned round = 1;; round++) {
    wait_until(&round_now, round);
    if (game == END) return NULL;
    delay(partners_delay);
    if (game == RELEASE) partners_code = ipcmutex_release(mutex);
    if (game == CLOSE) partners_code = ipcmutex_close(mutex);
    if (game == HELP) {
      partners_releases = 0;
      while (!atomic_load(&over)) {
        int code = ipcmutex_release(mutex);
        if (code == IPCMUTEX_OK) partners_releases++;
        else EXPECT(code, IPCMUTEX_NOT_OWNER);
      }
    }
    atomic_store(&round_done, round);
  }
}

static unsigned rounds, random_state = 1;

static unsigned dice(unsigned sides) {
  random_state = random_state * 1103515245 + 12345;
  return (random_state >> 16 & 0x7fff) % sides;
}

static void turn(void) {
  OK(ipcmutex_acquire(mutex));
  OK(ipcmutex_release(mutex));
}

static void begin(int which) {
  game = which;
  partners_delay = dice(200);
  atomic_store(&over, 0);
  atomic_store(&round_now, ++rounds);
}

/* One of them ended the hold, and the other one hears that there was none. */
static void both_release(void) {
  mutex = open_lock("races");
  turn();
  OK(ipcmutex_acquire(mutex));
  begin(RELEASE);
  delay(dice(200));
  int code = ipcmutex_release(mutex);
  wait_until(&round_done, rounds);
  CHECK((code == IPCMUTEX_OK && partners_code == IPCMUTEX_NOT_OWNER) ||
        (code == IPCMUTEX_NOT_OWNER && partners_code == IPCMUTEX_OK));
  OK(ipcmutex_close(mutex));
}

/* What was acquired while it was closed is held by nobody. */
static void one_closes(ipcmutex_t other) {
  mutex = open_lock("races");
  begin(CLOSE);
  int code;
  do {
    code = ipcmutex_acquire(mutex);
    if (code == IPCMUTEX_OK) code = ipcmutex_release(mutex);
  } while (code == IPCMUTEX_OK);
  CHECK(code == IPCMUTEX_CLOSED || code == IPCMUTEX_NOT_OWNER || code == IPCMUTEX_BAD_HANDLE);
  wait_until(&round_done, rounds);
  EXPECT(partners_code, IPCMUTEX_OK);
  OK(ipcmutex_try_acquire(other));
  OK(ipcmutex_release(other));
}

/* Each hold is ended once, by one of the two. */
static void one_helps(void) {
  enum { TURNS = 100 };
  unsigned mine = 0;
  mutex = open_lock("races");
  turn();
  begin(HELP);
  for (int i = 0; i < TURNS; i++) {
    OK(ipcmutex_acquire(mutex));
    delay(dice(50));
    int code = ipcmutex_release(mutex);
    if (code == IPCMUTEX_OK) mine++;
    else EXPECT(code, IPCMUTEX_NOT_OWNER);
  }
  atomic_store(&over, 1);
  wait_until(&round_done, rounds);
  CHECK(mine + partners_releases == TURNS);
  OK(ipcmutex_close(mutex));
}

int main(int count, char **arguments) {
  pthread_t thread;
  ipcmutex_t other;
  if (count > 1) engine = arguments[1];
  int each = count > 2 ? atoi(arguments[2]) : 1;
  other = open_lock("races"); /* before there is a second thread */
  CHECK(pthread_create(&thread, NULL, partner, NULL) == 0);
  for (int i = 0; i < each; i++) {
    both_release();
    one_closes(other);
    one_helps();
  }
  begin(END);
  CHECK(pthread_join(thread, NULL) == 0);
  OK(ipcmutex_close(other));
  return 0;
}
