/* The descriptors of waiting: none stays, whoever began to wait and however short; who closes them has them made anew once, not for ever. */
#define _GNU_SOURCE
#include "check.h"

#include <dirent.h>
#include <limits.h>
#include <sys/syscall.h>

static ipcmutex_t held, wanted;

static int descriptors(void) {
  DIR *all = opendir("/proc/self/fd");
  int count = 0;
  CHECK(all != NULL);
  while (readdir(all) != NULL) count++;
  closedir(all);
  return count;
}

/* Ends before the library's thread may have begun. */
static void *wait_shortly(void *none) {
  EXPECT(ipcmutex_acquire_timeout(wanted, 2), IPCMUTEX_TIMEOUT);
  return none;
}

static void *wait_long(void *none) {
  OK(ipcmutex_acquire(wanted));
  return none;
}

/* The number of the first descriptor whose name has `part`, or -1. Opens nothing itself: its number would be taken. */
static int first_of(const char *part) {
  for (int file = 0; file < 256; file++) {
    char path[64], name[PATH_MAX] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    if (readlink(path, name, sizeof name - 1) > 0 && strstr(name, part) != NULL) return file;
  }
  return -1;
}

static int inotify(void) { return first_of("inotify"); }

/* On an overlay and some other file systems a lock keeps its descriptor. */
static int is_kept(void) { return first_of("/lock") >= 0; }

int main(void) {
  pthread_t thread;
  engine = "mpm:";
  alarm(60);
  held = open_lock("lock");
  wanted = open_lock("lock");
  OK(ipcmutex_acquire(held));
  int before = descriptors();
  for (int round = 0; round < 100; round++) {
    CHECK(pthread_create(&thread, NULL, wait_shortly, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    /* They go when the library's thread ends, and the next round begins with another one. */
    while (descriptors() > before) usleep(100);
  }

  if (is_kept()) {
    fprintf(stderr, "SKIPPED %s: who closes all descriptors closes the lock file's here\n", __FILE__);
    return 0;
  }
  CHECK(pthread_create(&thread, NULL, wait_long, NULL) == 0);
  while (inotify() < 0) usleep(1000);
  CHECK(syscall(SYS_close_range, 3, ~0U, 0) == 0);
  /* It comes again, and stays the same. */
  for (int file = -1, looks = 0; looks < 200; looks++) {
    int now = inotify();
    if (now < 0 || now != file) looks = 0;
    file = now;
    usleep(5000);
  }
  OK(ipcmutex_release(held));
  CHECK(pthread_join(thread, NULL) == 0);
  OK(ipcmutex_release(wanted));
  return 0;
}
