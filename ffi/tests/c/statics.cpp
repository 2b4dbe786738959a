/* Locks of static objects: taken before main, used by destructors and by handlers of the exit, while threads wait and callbacks
 * are due. FAULTS: C9 */
#include "check.h"

#include <cstdlib>
#include <initializer_list>
#include <thread>

namespace {

int ended = 0;

/* The first static, and so the last to go: all that was to run at the exit has run. */
struct Last {
  ~Last() {
    if (ended != 6) _exit(1);
  }
} last;

class Held {
 public:
  explicit Held(const char *url) {
    OK(ipcmutex_open(url, &mutex));
    OK(ipcmutex_acquire(mutex));
  }
  Held(const Held &) = delete;
  Held &operator=(const Held &) = delete;
  ~Held() {
    OK(ipcmutex_release(mutex)); /* and a thread that waits for it gets it, in a process that ends */
    OK(ipcmutex_close(mutex));
    ended++;
  }
  ipcmutex_t mutex = 0;
};

Held of_threads("spm:statics"), of_processes("mpm:statics");

/* Before the library's own constructor, where that is linked in. */
struct Early {
  Early() {
    for (const char *url : {"spm:statics-early", "mpm:statics-early"}) {
      ipcmutex_t mutex;
      OK(ipcmutex_open(url, &mutex));
      OK(ipcmutex_try_acquire(mutex));
      OK(ipcmutex_close(mutex));
    }
  }
} early __attribute__((init_priority(101)));

/* A thread's own objects go before the statics, and with them whatever the library keeps for the thread. */
struct OfThread {
  Held held{"spm:statics-thread"};
};

void use_and_close(const char *url) {
  ipcmutex_t mutex;
  OK(ipcmutex_open(url, &mutex));
  OK(ipcmutex_try_acquire(mutex));
  OK(ipcmutex_close(mutex));
  ended++;
}

ipcmutex_t pending;
flag_t told = FLAG;
int told_code = -1;

void acquired(int code, ipcmutex_hold_t, void *) {
  told_code = code;
  flag_raise(&told);
}

void wait_for(ipcmutex_t mutex) {
  std::thread([mutex] { ipcmutex_acquire(mutex); }).detach();
  wait_for_line(mutex, 1);
}

}  // namespace

int main() {
  static thread_local OfThread of_thread;
  OK(ipcmutex_release(of_thread.held.mutex));
  OK(ipcmutex_acquire(of_thread.held.mutex));
  wait_for(of_threads.mutex);
  wait_for(of_processes.mutex);

  OK(ipcmutex_open("mpm:statics", &pending));
  OK(ipcmutex_hold_async(pending, -1, acquired, nullptr, nullptr));
  wait_for_line(pending, 2);
  std::atexit([] {
    OK(ipcmutex_close(pending)); /* its callback is told, although the process ends */
    flag_wait(&told, 1);
    EXPECT(told_code, IPCMUTEX_CLOSED);
    ended++;
  });
  std::atexit([] { use_and_close("spm:statics-exit"); });
  std::atexit([] { use_and_close("mpm:statics-exit"); });
  return 42;
}
