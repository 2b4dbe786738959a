/* A plugin that is linked with the static library. */
#include <ipcmutex.h>

int work(const char *url);
int work(const char *url) {
    ipcmutex_t mutex;
    if (ipcmutex_open(url, &mutex) != IPCMUTEX_OK || ipcmutex_acquire(mutex) != IPCMUTEX_OK) return 1;
    return ipcmutex_release(mutex) != IPCMUTEX_OK || ipcmutex_close(mutex) != IPCMUTEX_OK;
}

/* Whether it gets the lock, which it keeps. */
int attempt(const char *url);
int attempt(const char *url) {
    ipcmutex_t mutex;
    int code = ipcmutex_open(url, &mutex);
    return code != IPCMUTEX_OK ? code : ipcmutex_try_acquire(mutex);
}
