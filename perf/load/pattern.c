#include "pattern.h"

unsigned char pattern[2 * PATTERN_LENGTH + MAX_CHUNK];

void make_pattern(void) {
    uint64_t x = 0x9E3779B97F4A7C15ull;  // xorshift64
    for (size_t i = 0; i < PATTERN_LENGTH; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        pattern[i] = (unsigned char)(x >> 24);
    }
    for (size_t i = PATTERN_LENGTH; i < sizeof pattern; i++)
        pattern[i] = pattern[i - PATTERN_LENGTH];
}

bool is_pattern(const unsigned char *data, size_t length, uint64_t offset) {
    return memcmp(data, pattern + offset % PATTERN_LENGTH, length) == 0;
}
