/* Calls in an order that bytes say: `calls FILE…` replays kept bytes on each engine. Without its main it is what
 * tests/fuzz feeds with bytes that nobody meant.
 *
 * Whatever the order, each call answers with a code of the table, and afterwards the locks can be taken.
 *
 * FAULTS: C2, C3 */
#include "check.h"

enum { KNOWN = 8, MOST = 256 };

/* One set for all callbacks: they run on a thread of the library. */
static flag_t outcomes = FLAG;

static void acquired(int code, ipcmutex_hold_t hold, void *user) {
  (void)user;
  CHECK((code == IPCMUTEX_OK) == (hold != 0));
  if (code == IPCMUTEX_OK) {
    code = ipcmutex_hold_release(hold);
    CHECK(code == IPCMUTEX_OK || code == IPCMUTEX_NOT_OWNER || code == IPCMUTEX_LOST);
  }
  flag_raise(&outcomes);
}

static void lost(int reason, void *user) {
  (void)user;
  CHECK(reason == IPCMUTEX_LOST);
}

/* Two bytes a call: what, and with which of the handles that are known. */
static void run(const unsigned char *bytes, size_t size) {
  static const char *const names[] = {"calls-a", "calls-b?fair=strict"};
  uint64_t known[KNOWN] = {0}, opened[MOST];
  size_t at, opens = 0;
  int started = outcomes.count;
  for (at = 0; at + 1 < size && at / 2 < MOST; at += 2) {
    unsigned char what = bytes[at], with = bytes[at + 1];
    uint64_t handle = known[with % KNOWN], made = 0, token = 0;
    int64_t ms = with >> 7; /* for ever would find nothing */
    int code = IPCMUTEX_OK;
    ipcmutex_status_t status;
    ipcmutex_hold_info_t info;
    status.size = with % (sizeof status + 1);
    info.size = with % (sizeof info + 1);
    switch (what % 18) {
      case 0: {
        char url[64];
        snprintf(url, sizeof url, "%s%s", engine, names[with % 2]);
        code = ipcmutex_open(url, &made);
        OK(code);
        opened[opens++] = made;
        break;
      }
      case 1: code = ipcmutex_try_acquire(handle); break;
      case 2: code = ipcmutex_acquire_timeout(handle, ms); break;
      case 3: code = ipcmutex_release(handle); break;
      case 4: code = ipcmutex_close(handle); break;
      case 5: code = ipcmutex_hold(handle, ms, &made); break;
      case 6: code = ipcmutex_hold_release(handle); break;
      case 7: code = ipcmutex_hold_check(handle); break;
      case 8: code = ipcmutex_hold_extend(handle, (int64_t)((uint64_t)with << (what % 60))); break;
      case 9: code = ipcmutex_hold_info(handle, &info); break;
      case 10: code = ipcmutex_hold_on_lost(handle, lost, NULL); break;
      case 11:
        code = ipcmutex_hold_async(handle, ms, acquired, NULL, with & 32 ? &made : NULL);
        if (code == IPCMUTEX_OK) started++;
        break;
      case 12: code = ipcmutex_cancel(handle); break;
      case 13: code = ipcmutex_token(handle, &token); break;
      case 14: code = ipcmutex_status(handle, &status); break;
      case 15: code = ipcmutex_break(handle); break;
      case 16: code = ipcmutex_release(handle ^ (UINT64_C(1) << (with % 64))); break;
      default: known[with % KNOWN] = known[(with >> 3) % KNOWN]; break;
    }
    CHECK(code >= IPCMUTEX_OK && code < IPCMUTEX_PANIC);
    CHECK(*ipcmutex_strerror(code));
    if (made) known[with % KNOWN] = made;
  }
  for (at = 0; at < KNOWN; at++) ipcmutex_hold_release(known[at]);
  while (opens) ipcmutex_close(opened[--opens]);
  flag_wait(&outcomes, started); /* each was told, once */
  CHECK(outcomes.count == started);
  for (at = 0; at < 2; at++) {
    char url[64];
    ipcmutex_t mutex;
    snprintf(url, sizeof url, "%s%s", engine, names[at]);
    OK(ipcmutex_open(url, &mutex));
    OK(ipcmutex_acquire_timeout(mutex, 10000));
    OK(ipcmutex_close(mutex));
  }
}

#ifdef FUZZED
/* The odd byte, if there is one, calls nothing: it says on which engine. */
void run_calls(const unsigned char *bytes, size_t size) {
  engine = size % 2 ? "mpm:" : "spm:";
  run(bytes, size);
}
#else
static void replay(const char *path) {
  unsigned char bytes[2 * MOST];
  FILE *file = fopen(path, "rb");
  CHECK(file);
  run(bytes, fread(bytes, 1, sizeof bytes, file));
  fclose(file);
}

int main(int argc, char **argv) {
  static const char *const engines[] = {"spm:", "mpm:"};
  int of, at;
  for (of = 0; of < 2; of++) {
    engine = engines[of];
    for (at = 1; at < argc; at++) replay(argv[at]);
  }
  return 0;
}
#endif
