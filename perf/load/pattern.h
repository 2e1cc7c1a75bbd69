// What streams carry, so that the other end can tell that nothing is missing or out of place.
#ifndef PATTERN_H
#define PATTERN_H
#include "common.h"

// A pattern whose length is a prime repeats: a lost, doubled or swapped piece of any power of two
// shifts it. The table is long enough to send MAX_CHUNK bytes from any offset.
#define PATTERN_LENGTH 65521
#define MAX_CHUNK (1u << 20)
extern unsigned char pattern[2 * PATTERN_LENGTH + MAX_CHUNK];

void make_pattern(void);

// Whether `length` (at most MAX_CHUNK) bytes are what a stream has at `offset`.
bool is_pattern(const unsigned char *data, size_t length, uint64_t offset);
#endif
