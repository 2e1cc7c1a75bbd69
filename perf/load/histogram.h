// Durations in 128 buckets for each power of two: an error below 0.8 %.
#ifndef HISTOGRAM_H
#define HISTOGRAM_H
#include "common.h"

enum { BUCKETS = 64 * 128 };

struct histogram {
    uint64_t count, sum, smallest, largest;
    uint64_t buckets[BUCKETS];
};

static inline int bucket_of(uint64_t value) {
    if (value < 256) return (int)value;
    int exponent = 63 - __builtin_clzll(value);
    return (exponent - 6) * 128 + (int)((value >> (exponent - 7)) & 127);
}

static inline double middle_of(int bucket) {
    if (bucket < 256) return bucket;
    int shift = bucket / 128 - 1;
    return (double)(((uint64_t)(bucket % 128) + 128) << shift) + (double)(1ull << shift) / 2;
}

static inline void record(struct histogram *histogram, uint64_t value) {
    if (!histogram->count || value < histogram->smallest) histogram->smallest = value;
    if (value > histogram->largest) histogram->largest = value;
    histogram->count++;
    histogram->sum += value;
    histogram->buckets[bucket_of(value)]++;
}

static inline double percentile(const struct histogram *histogram, double percent) {
    uint64_t wanted = (uint64_t)(percent / 100 * (double)histogram->count + 0.999999), seen = 0;
    if (!wanted) wanted = 1;
    for (int bucket = 0; bucket < BUCKETS; bucket++) {
        seen += histogram->buckets[bucket];
        if (seen >= wanted) {
            double value = middle_of(bucket), largest = (double)histogram->largest;
            return value < largest ? value : largest;
        }
    }
    return (double)histogram->largest;
}
#endif
