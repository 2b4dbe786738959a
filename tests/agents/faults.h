/* What a process can do to itself and to others: the C agent's commands for faults. See README.md. */
#include <stddef.h>

/* 1 if `word[0]` is a command of these and was done; `fields` is the answer. */
int fault(char **word, char *fields, size_t size);
