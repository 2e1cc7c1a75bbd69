// The command line of tcpload.
#ifndef OPTIONS_H
#define OPTIONS_H
#include "pattern.h"

enum mode { PINGPONG, CONNECT, HALFCLOSE, UP, DOWN, BOTH, IDLE, MODES };
extern const char *MODE_NAMES[MODES];

enum { MAX_PROCESSES = 64 };

struct options {
    enum mode mode;
    const char *target;
    struct address address;
    int connections;
    size_t size;                       // bytes of a message, or of a write of a stream
    uint64_t warm_up, duration, limit;  // nanoseconds
    bool verify;
    int processes[MAX_PROCESSES], process_count;
};

static inline bool is_stream(enum mode mode) { return mode == UP || mode == DOWN || mode == BOTH; }

struct options parse_options(int argc, char **argv);
#endif
