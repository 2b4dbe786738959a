/* With one plugin: closes it; its code must stay, for threads of the library may run in it, also where FIRST names another one that was loaded
 * before, for all to find. With three, each with a copy of the library:
 * closes the first, which did nothing, once the second has used its copy; the third must find the second's locks all the same. With two,
 * as who looks for plugins does: closes the first and loads it again before anybody has used any. */
#include <dlfcn.h>
#include <ipcmutex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static void *plugin;

/* On a thread of its own: what a thread leaves behind keeps the plugin, too, until it ends. */
static void *works(void *url) {
    int (*work)(const char *);
    *(void **)&work = dlsym(plugin, "work");
    return work == NULL || work(url) != 0 ? url : NULL;
}

static void *load(const char *path) {
    void *loaded = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (loaded == NULL) fprintf(stderr, "%s\n", dlerror());
    return loaded;
}

static int attempt(void *by, const char *url) {
    int (*attempt)(const char *);
    *(void **)&attempt = dlsym(by, "attempt");
    return attempt == NULL ? -1 : attempt(url);
}

static int three(char **words) {
    void *idle = load(words[1]), *uses = load(words[2]);
    if (idle == NULL || uses == NULL) return 1;
    if (attempt(uses, words[4]) != 0) return 2;
    if (dlclose(idle) != 0) return 3;
    void *late = load(words[3]);
    if (late == NULL) return 1;
    return attempt(late, words[4]) == IPCMUTEX_TIMEOUT ? 0 : 5;
}

static int two(char **words) {
    void *first = load(words[1]), *second = load(words[2]);
    if (first == NULL || second == NULL) return 1;
    if (dlclose(first) != 0) return 3;
    if ((first = load(words[1])) == NULL) return 1;
    if (attempt(second, words[3]) != 0) return 2;
    return attempt(first, words[3]) == IPCMUTEX_TIMEOUT ? 0 : 5;
}

int main(int count, char **words) {
    pthread_t thread;
    void *failed;
    const char *first = getenv("FIRST");
    if (first != NULL && dlopen(first, RTLD_NOW | RTLD_GLOBAL) == NULL) return 1;
    if (count == 5) return three(words);
    if (count == 4) return two(words);
    if (count != 3 || (plugin = load(words[1])) == NULL) return 1;
    if (pthread_create(&thread, NULL, works, words[2]) != 0 || pthread_join(thread, &failed) != 0 || failed != NULL) return 2;
    if (dlclose(plugin) != 0) return 3;
    return dlopen(words[1], RTLD_NOW | RTLD_NOLOAD) == NULL ? 4 : 0;
}
