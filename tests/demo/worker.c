/* The demo's worker in C: see README.md. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <ipcmutex.h>

static volatile sig_atomic_t linger;
static const char *const accounts[] = {"alice", "bob", "carol", "dave", "transfers"};

static void stay(int signal) {
    (void)signal;
    linger = 1;
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "worker.c: %s: %s\n", what, ipcmutex_last_error());
    exit(1);
}

static void write_head(int ledger, const int64_t *books) {
    char head[161];
    for (int line = 0; line < 5; line++) sprintf(head + 32 * line, "%-11s%20" PRId64 "\n", accounts[line], books[line]);
    if (pwrite(ledger, head, 160, 0) != 160) fail("write");
}

static void write_entry(int ledger, int64_t at, uint64_t token, const char *side, int account, int64_t amount) {
    char entry[65];
    sprintf(entry, "%20" PRIu64 " %-6s %7d %-6s %-7s %12" PRId64 "\n", token, "c", getpid(), side, accounts[account], amount);
    if (pwrite(ledger, entry, 64, 160 + 64 * at) != 64) fail("write");
}

int main(int count, char **argument) {
    if (count != 4) return 64;
    ipcmutex_t mutex;
    if (ipcmutex_open(argument[1], &mutex) != IPCMUTEX_OK) fail("open");
    int ledger = open(argument[2], O_RDWR | O_CLOEXEC);
    uint64_t until = now() + (uint64_t)(atof(argument[3]) * 1e9);
    signal(SIGUSR2, stay);
    while (now() < until) {
        ipcmutex_hold_t hold;
        ipcmutex_hold_info_t info = {.size = sizeof info};
        uint64_t asked = now();
        if (ipcmutex_hold(mutex, -1, &hold) != IPCMUTEX_OK) fail("acquire");
        uint64_t entered = now();
        if (ipcmutex_hold_info(hold, &info) != IPCMUTEX_OK) fail("hold_info");

        char head[161] = {0};
        int64_t books[5], repaired = 0;
        if (pread(ledger, head, 160, 0) != 160) fail("read");
        for (int line = 0; line < 5; line++) books[line] = strtoll(head + 32 * line + 11, NULL, 10);
        int64_t n = books[4], from = n % 4, to = (n + 1 + n / 4 % 3) % 4, amount = 1 + n % 97;
        if (info.abandoned) {
            repaired = 4000000 - books[0] - books[1] - books[2] - books[3];
            books[from] += repaired;
        }
        write_entry(ledger, 2 * n, info.token, "debit", (int)from, amount);
        books[from] -= amount;
        write_head(ledger, books);
        if (linger) {
            printf("mid %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", asked, entered, info.token);
            fflush(stdout);
            pause();
        }
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
        write_entry(ledger, 2 * n + 1, info.token, "credit", (int)to, amount);
        books[to] += amount;
        books[4] = n + 1;
        write_head(ledger, books);

        uint64_t left = now();
        if (ipcmutex_hold_release(hold) != IPCMUTEX_OK) fail("release");
        printf("hold %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu32 " %" PRId64 "\n", asked, entered, left,
            info.token, info.abandoned, repaired);
        fflush(stdout);
    }
    return ipcmutex_close(mutex) == IPCMUTEX_OK ? 0 : 1;
}
