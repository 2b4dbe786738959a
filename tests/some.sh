#!/bin/bash
# Runs tests that a filter chooses; fails also if it chose none.
set -o pipefail
"$@" | awk '{ print; fflush() } / 0 passed;/ { none = 1 } END { if (none || !NR) { print "make: no test ran"; exit 1 } }'
