/* Where a lock is. */
#include "bench.h"

const char *place_of(const kind_t *kind, int which) {
    char place[4096] = "", key[16];
    size_t length = 0;
    for (const char *at = kind->place; *at; at++) {
        if (*at != '{') {
            place[length++] = *at;
            place[length] = 0;
            continue;
        }
        const char *end = strchr(at, '}');
        snprintf(key, sizeof key, "%.*s", (int)(end - at - 1), at + 1);
        const char *value = text(key, NULL);
        if (!value) fail("%s needs %s=", kind->name, key);
        bool named = strcmp(key, "file") == 0 || strcmp(key, "id") == 0;
        length += snprintf(place + length, sizeof place - length, which && named ? "%s.%d" : "%s", value, which);
        at = end;
    }
    char *kept = strdup(place);
    CHECK(kept);
    return kept;
}
