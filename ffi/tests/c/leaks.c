/* Many times everything: no descriptor, no thread and no memory is left behind. FAULTS: C10 */
#include "check.h"

#include <dirent.h>

static int entries(const char *path) {
  DIR *dir = opendir(path);
  int count = 0;
  CHECK(dir);
  while (readdir(dir)) count++;
  closedir(dir);
  return count;
}

static long resident_kib(void) {
  long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file && fscanf(file, "%*d %ld", &pages) == 1);
  fclose(file);
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void once(void) {
  ipcmutex_t mutex;
  ipcmutex_hold_t hold;
  mutex = open_lock("leaks");
  OK(ipcmutex_acquire(mutex));
  OK(ipcmutex_release(mutex));
  OK(ipcmutex_hold(mutex, 0, &hold));
  OK(ipcmutex_close(mutex));
  EXPECT(ipcmutex_hold_release(hold), IPCMUTEX_NOT_OWNER);
}

int main(int argc, char **argv) {
  long rounds = argc > 2 ? atol(argv[2]) : 100000, i, before;
  int files, threads;
  if (argc > 1) engine = argv[1];
  for (i = 0; i < rounds / 10; i++) once();
  files = entries("/proc/self/fd");
  threads = entries("/proc/self/task");
  before = resident_kib();
  for (i = 0; i < rounds; i++) once();
  CHECK(entries("/proc/self/fd") == files);
  CHECK(entries("/proc/self/task") == threads);
#ifdef __SANITIZE_ADDRESS__ /* It keeps freed memory for a while. */
  before += 256 * 1024;
#endif
  CHECK(resident_kib() < before + 1024);
  return 0;
}
