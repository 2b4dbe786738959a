/* A clock that a test moves while a program runs: LD_PRELOAD=libclock.so IPCMUTEX_TEST_CLOCK=<file>. The file holds three numbers of
 * nanoseconds: two are added to CLOCK_REALTIME and to CLOCK_BOOTTIME, and at the third, if it is not 0, CLOCK_REALTIME stands;
 * CLOCK_MONOTONIC is left alone, as it is by a suspend. Programs that read the clock without libc do so through the kernel's vDSO,
 * so its functions are what is replaced. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *moved;

static void must(int holds, const char *what) {
    if (!holds) {
        perror(what);
        abort();
    }
}

/* Without errno, which a vDSO function does not touch. */
static int ask(clockid_t clock, struct timespec *now) {
    long answer;
    __asm__ volatile("syscall" : "=a"(answer) : "0"((long)SYS_clock_gettime), "D"((long)clock), "S"(now) : "rcx", "r11", "memory");
    return (int)answer;
}

static int gettime(clockid_t clock, struct timespec *now) {
    int failed = ask(clock, now);
    if (failed) return failed;
    int64_t by = 0;
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) by = moved[0];
    if (clock == CLOCK_BOOTTIME) by = moved[1];
    int64_t ns = now->tv_sec * 1000000000LL + now->tv_nsec + by;
    if ((clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) && moved[2]) ns = moved[2];
    now->tv_sec = ns / 1000000000;
    now->tv_nsec = ns % 1000000000;
    return 0;
}

static int gettimeofday_(struct timeval *now, void *zone) {
    struct timespec precise;
    (void)zone;
    if (!now) return 0;
    int failed = gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return failed;
}

static time_t time_(time_t *now) {
    struct timespec precise;
    gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}

static void replace(void *vdso, const char *name, void *with) {
    uint8_t jump[12] = {0x48, 0xb8, [10] = 0xff, 0xe0}; /* mov rax, with; jmp rax */
    uint8_t *at = dlsym(vdso, name);
    must(at != NULL, name);
    memcpy(jump + 2, &with, sizeof with);
    memcpy(at, jump, sizeof jump);
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("IPCMUTEX_TEST_CLOCK");
    must(path != NULL, "IPCMUTEX_TEST_CLOCK");
    int file = open(path, O_RDONLY | O_CLOEXEC);
    must(file >= 0, path);
    moved = mmap(NULL, 3 * sizeof *moved, PROT_READ, MAP_SHARED, file, 0);
    must(moved != MAP_FAILED, "mmap");
    close(file);
    void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
    must(vdso != NULL, "the vDSO");
    /* Its mapping cannot be split, so all of it is opened. */
    unsigned long from = 0, to = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "re");
    must(maps != NULL, "/proc/self/maps");
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "[vdso]")) must(sscanf(line, "%lx-%lx", &from, &to) == 2, line);
    fclose(maps);
    must(mprotect((void *)from, to - from, PROT_READ | PROT_WRITE | PROT_EXEC) == 0, "mprotect");
    replace(vdso, "__vdso_clock_gettime", (void *)gettime);
    replace(vdso, "__vdso_gettimeofday", (void *)gettimeofday_);
    replace(vdso, "__vdso_time", (void *)time_);
    must(mprotect((void *)from, to - from, PROT_READ | PROT_EXEC) == 0, "mprotect");
}
