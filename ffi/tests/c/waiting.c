/* Waits: ended by close and cancel, in threads and without; callbacks that call back in; an exit with waiters.
 *
 * FAULTS: C4 (close_ends_waits), C5 (callbacks_release, loss), C9 (the end of main) */
#include "check.h"

typedef struct {
  ipcmutex_t mutex;
  int code;
} waiter_t;

static void *wait_in_a_thread(void *arg) {
  waiter_t *waiter = arg;
  waiter->code = ipcmutex_acquire(waiter->mutex);
  return NULL;
}

static void close_ends_waits(void) {
  enum { THREADS = 8 };
  pthread_t threads[THREADS];
  waiter_t waiters[THREADS];
  ipcmutex_t holder, mutex;
  int i;
  holder = open_lock("waiting-close");
  mutex = open_lock("waiting-close");
  OK(ipcmutex_acquire(holder));
  for (i = 0; i < THREADS; i++) {
    waiters[i].mutex = mutex;
    CHECK(pthread_create(&threads[i], NULL, wait_in_a_thread, &waiters[i]) == 0);
  }
  wait_for_line(holder, THREADS);
  OK(ipcmutex_close(mutex));
  for (i = 0; i < THREADS; i++) {
    CHECK(pthread_join(threads[i], NULL) == 0);
    EXPECT(waiters[i].code, IPCMUTEX_CLOSED);
  }
  EXPECT(ipcmutex_acquire(mutex), IPCMUTEX_BAD_HANDLE);
  OK(ipcmutex_release(holder));
  OK(ipcmutex_try_acquire(holder)); /* those whose wait ended took nothing */
  OK(ipcmutex_close(holder));
}

typedef struct {
  flag_t told;
  int code;
  ipcmutex_hold_t hold;
  ipcmutex_wait_t wait;
  int cancel_inside;
  int (*then)(ipcmutex_hold_t hold);
  int then_code;
} outcome_t;

static void told(int code, ipcmutex_hold_t hold, void *user) {
  outcome_t *outcome = user;
  outcome->code = code;
  outcome->hold = hold;
  CHECK((code == IPCMUTEX_OK) == (hold != 0));
  if (code != IPCMUTEX_OK) CHECK(strstr(ipcmutex_last_error(), "waiting"));
  if (outcome->wait) outcome->cancel_inside = ipcmutex_cancel(outcome->wait);
  if (outcome->then) outcome->then_code = outcome->then(hold);
  flag_raise(&outcome->told);
}

static const outcome_t NOT_TOLD = {FLAG, -1, 77, 0, -1, NULL, -1};

static void async(void) {
  outcome_t free_one = NOT_TOLD, tried = NOT_TOLD, timed = NOT_TOLD, canceled = NOT_TOLD, closed = NOT_TOLD,
            granted = NOT_TOLD;
  ipcmutex_t mutex, other;
  mutex = open_lock("waiting-async");
  other = open_lock("waiting-async");

  OK(ipcmutex_hold_async(mutex, -1, told, &free_one, NULL));
  flag_wait(&free_one.told, 1);
  OK(free_one.code);
  OK(ipcmutex_hold_check(free_one.hold));

  OK(ipcmutex_hold_async(mutex, 0, told, &tried, NULL));
  flag_wait(&tried.told, 1);
  EXPECT(tried.code, IPCMUTEX_TIMEOUT);

  OK(ipcmutex_hold_async(mutex, 10, told, &timed, NULL));
  flag_wait(&timed.told, 1);
  EXPECT(timed.code, IPCMUTEX_TIMEOUT);

  OK(ipcmutex_hold_async(mutex, -1, told, &canceled, &canceled.wait));
  OK(ipcmutex_cancel(canceled.wait));
  flag_wait(&canceled.told, 1);
  EXPECT(canceled.code, IPCMUTEX_CANCELED);
  EXPECT(canceled.cancel_inside, IPCMUTEX_BAD_HANDLE);
  EXPECT(ipcmutex_cancel(canceled.wait), IPCMUTEX_BAD_HANDLE);

  OK(ipcmutex_hold_async(other, -1, told, &closed, &closed.wait));
  OK(ipcmutex_hold_async(mutex, -1, told, &granted, NULL));
  wait_for_line(mutex, 2);
  OK(ipcmutex_close(other));
  flag_wait(&closed.told, 1);
  EXPECT(closed.code, IPCMUTEX_CLOSED);
  OK(ipcmutex_hold_release(free_one.hold));
  flag_wait(&granted.told, 1);
  OK(granted.code);
  OK(ipcmutex_hold_release(granted.hold));
  OK(ipcmutex_try_acquire(mutex));
  OK(ipcmutex_close(mutex));
}

/* Each callback releases, which lets the next one in: all of them run on the same library thread. */
static void callbacks_release(void) {
  enum { COUNT = 500 };
  static outcome_t outcomes[COUNT];
  ipcmutex_t mutex;
  int i;
  mutex = open_lock("waiting-chain");
  OK(ipcmutex_acquire(mutex));
  for (i = 0; i < COUNT; i++) {
    outcomes[i] = NOT_TOLD;
    outcomes[i].then = ipcmutex_hold_release;
    OK(ipcmutex_hold_async(mutex, -1, told, &outcomes[i], NULL));
  }
  wait_for_line(mutex, COUNT);
  OK(ipcmutex_release(mutex));
  for (i = 0; i < COUNT; i++) {
    flag_wait(&outcomes[i].told, 1);
    OK(outcomes[i].code);
    OK(outcomes[i].then_code);
    CHECK(outcomes[i].told.count == 1);
  }
  OK(ipcmutex_close(mutex));
}

typedef struct {
  flag_t told;
  int reason, check, release, close, mutex_release;
  ipcmutex_hold_t hold;
  ipcmutex_t mutex;
} loss_t;

static void lost(int reason, void *user) {
  loss_t *loss = user;
  CHECK(strstr(ipcmutex_last_error(), "waiting-loss"));
  loss->reason = reason;
  loss->check = ipcmutex_hold_check(loss->hold);
  loss->release = ipcmutex_hold_release(loss->hold);
  loss->mutex_release = ipcmutex_release(loss->mutex);
  loss->close = ipcmutex_close(loss->mutex);
  flag_raise(&loss->told);
}

static void loss(void) {
  loss_t told = {FLAG, 0, 0, 0, 0, 0, 0, 0}, never = {FLAG, 0, 0, 0, 0, 0, 0, 0};
  ipcmutex_t breaker;
  ipcmutex_hold_t released;
  told.mutex = open_lock("waiting-loss");
  breaker = open_lock("waiting-loss");

  /* A hold that is released is never lost. */
  OK(ipcmutex_hold(breaker, 0, &released));
  OK(ipcmutex_hold_on_lost(released, lost, &never));
  OK(ipcmutex_hold_release(released));

  OK(ipcmutex_hold(told.mutex, 0, &told.hold));
  OK(ipcmutex_hold_on_lost(told.hold, lost, &told));
  OK(ipcmutex_break(breaker));
  flag_wait(&told.told, 1);
  EXPECT(told.reason, IPCMUTEX_LOST);
  EXPECT(told.check, IPCMUTEX_LOST);
  EXPECT(told.release, IPCMUTEX_LOST);
  EXPECT(told.mutex_release, IPCMUTEX_NOT_OWNER);
  OK(told.close);
  EXPECT(ipcmutex_close(told.mutex), IPCMUTEX_BAD_HANDLE);
  CHECK(never.told.count == 0 && told.told.count == 1);
  OK(ipcmutex_close(breaker));
}

/* Cancel and grant race; whoever wins, the callback is told once, and the lock is neither leaked nor doubled. */
static void races(void) {
  ipcmutex_t mutex, holder;
  int round, granted = 0, canceled = 0;
  mutex = open_lock("waiting-race");
  holder = open_lock("waiting-race");
  for (round = 0; round < 300; round++) {
    outcome_t outcome = NOT_TOLD;
    ipcmutex_wait_t wait;
    pthread_t thread;
    waiter_t waiter;
    OK(ipcmutex_acquire(holder));
    OK(ipcmutex_hold_async(mutex, -1, told, &outcome, &wait));
    waiter.mutex = holder;
    CHECK(pthread_create(&thread, NULL, (void *(*)(void *))wait_in_a_thread, &waiter) == 0);
    OK(ipcmutex_release(holder));
    if (ipcmutex_cancel(wait) == IPCMUTEX_OK) canceled++;
    flag_wait(&outcome.told, 1);
    if (outcome.code == IPCMUTEX_OK) {
      granted++;
      OK(ipcmutex_hold_release(outcome.hold));
    } else {
      EXPECT(outcome.code, IPCMUTEX_CANCELED);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    OK(waiter.code);
    OK(ipcmutex_release(holder));
  }
  CHECK(granted + canceled == 300);
  OK(ipcmutex_close(mutex));
  OK(ipcmutex_close(holder));
}

int main(int argc, char **argv) {
  ipcmutex_t mutex;
  pthread_t thread;
  static waiter_t waiter;
  static outcome_t outcome;
  if (argc > 1) engine = argv[1];
  close_ends_waits();
  async();
  callbacks_release();
  loss();
  races();

  /* The program ends while it holds, a thread waits, and an asynchronous acquisition is pending. */
  mutex = open_lock("waiting-exit");
  OK(ipcmutex_acquire(mutex));
  waiter.mutex = mutex;
  CHECK(pthread_create(&thread, NULL, wait_in_a_thread, &waiter) == 0);
  outcome = NOT_TOLD;
  OK(ipcmutex_hold_async(mutex, 60000, told, &outcome, NULL));
  wait_for_line(mutex, 2);
  return 42;
}
