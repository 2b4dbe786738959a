/* A plugin that is linked with the static library. */
#include <ipcmutex.h>

int work(const char *url);
int work(const char *url) {
    ipcmutex_t mutex;
    if (ipcmutex_open(url, &mutex) != IPCMUTEX_OK || ipcmutex_acquire(mutex) != IPCMUTEX_OK) return 1;
    return ipcmutex_release(mutex) != IPCMUTEX_OK || ipcmutex_close(mutex) != IPCMUTEX_OK;
}
