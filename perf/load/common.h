// What tcpload and tcpserve share. Linux only (epoll, accept4, epoll_pwait2).
#ifndef COMMON_H
#define COMMON_H
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull

// A sink acknowledges each MiB, and the end, with its count so far: 8 bytes, big-endian. The top
// bit says that something received was not the pattern.
#define ACKNOWLEDGE_STEP (1u << 20)
#define MISMATCH_BIT (1ull << 63)

static inline void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

static inline void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) die("out of memory");
    return memory;
}

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static inline void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) die("getrlimit: %s", strerror(errno));
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit)) die("setrlimit: %s", strerror(errno));
}

struct address {
    struct sockaddr_storage storage;
    socklen_t length;
};

// "1.2.3.4:80" or "[::1]:80"
static inline struct address parse_address(const char *text) {
    char host[256];
    const char *colon = strrchr(text, ':');
    if (!colon || colon - text >= (long)sizeof host) die("bad address %s, want HOST:PORT", text);
    size_t length = (size_t)(colon - text);
    const char *from = text;
    if (length > 1 && text[0] == '[' && text[length - 1] == ']') {
        from++;
        length -= 2;
    }
    memcpy(host, from, length);
    host[length] = 0;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *found;
    int failed = getaddrinfo(host, colon + 1, &hints, &found);
    if (failed) die("%s: %s", text, gai_strerror(failed));
    struct address address = {.length = found->ai_addrlen};
    memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return address;
}

static inline void no_delay(int descriptor) {
    int one = 1;
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

// Close with RST instead of FIN.
static inline void abort_connection(int descriptor) {
    struct linger at_once = {1, 0};
    setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(descriptor);
}

static inline bool would_block(void) { return errno == EAGAIN || errno == EINTR; }
#endif
