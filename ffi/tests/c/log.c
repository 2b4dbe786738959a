/* ipcmutex_set_log(): told of a wait that gives up, and of nothing on the free path; not any more when that is ended. */
#include "check.h"

static int told, waiting;

static void hear(int level, const char *text, void *user) {
  CHECK(user == &told && level >= 1 && level <= 5);
  told++;
  if (strstr(text, "acquire spm:log: waiting")) waiting++;
}

int main(void) {
  ipcmutex_t mutex;
  int before, i;
  CHECK(ipcmutex_set_log(6, hear, &told) == IPCMUTEX_INVALID && ipcmutex_set_log(-1, hear, &told) == IPCMUTEX_INVALID);
  OK(ipcmutex_set_log(5, hear, &told));
  OK(ipcmutex_open("spm:log", &mutex));
  CHECK(told == 1);
  for (i = 0; i < 100; i++) {
    OK(ipcmutex_acquire(mutex));
    OK(ipcmutex_release(mutex));
  }
  CHECK(told == 1);
  OK(ipcmutex_acquire(mutex));
  CHECK(ipcmutex_acquire_timeout(mutex, 10) == IPCMUTEX_TIMEOUT);
  CHECK(waiting == 1 && told > 2);
  before = told;
  OK(ipcmutex_set_log(0, NULL, NULL));
  CHECK(ipcmutex_acquire_timeout(mutex, 10) == IPCMUTEX_TIMEOUT);
  CHECK(told == before);
  OK(ipcmutex_close(mutex));
  return 0;
}
