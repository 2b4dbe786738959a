/* Closes a plugin; its code must stay, for threads of the library may run in it. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static void *plugin;

/* On a thread of its own: what a thread leaves behind keeps the plugin, too, until it ends. */
static void *works(void *url) {
    int (*work)(const char *);
    *(void **)&work = dlsym(plugin, "work");
    return work == NULL || work(url) != 0 ? url : NULL;
}

int main(int count, char **words) {
    pthread_t thread;
    void *failed;
    if (count != 3 || (plugin = dlopen(words[1], RTLD_NOW | RTLD_LOCAL)) == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    if (pthread_create(&thread, NULL, works, words[2]) != 0 || pthread_join(thread, &failed) != 0 || failed != NULL) return 2;
    if (dlclose(plugin) != 0) return 3;
    return dlopen(words[1], RTLD_NOW | RTLD_NOLOAD) == NULL ? 4 : 0;
}
