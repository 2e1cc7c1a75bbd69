// tcpserve: the far end for tcpload. One thread, epoll.
#include "pattern.h"
#include <signal.h>

static const char *USAGE =
    "usage: tcpserve [-e ADDR:PORT] [-k ADDR:PORT] [-o ADDR:PORT] [-r ADDR:PORT] [-V]\n"
    "  -e  echo    every byte comes back; FIN is answered with FIN after the last byte\n"
    "  -k  sink    drops what comes; acknowledges each MiB and the end with the count so far\n"
    "  -o  source  sends the test pattern until the peer goes away\n"
    "  -r  reset   reads once, then closes with RST\n"
    "  -V  the sink compares with the test pattern\n"
    "Options may be repeated. Prints \"ready\" when all ports listen.";

enum kind { ECHO, SINK, SOURCE, RESET };
enum { MAX_LISTENERS = 32, BUFFER_SIZE = 256 << 10, SOURCE_CHUNK = 128 << 10 };

struct end {  // a listener or a connection
    bool listens;
    enum kind kind;
    int descriptor;
    uint32_t events;
    bool ended;              // the peer has sent FIN
    bool mismatch;
    uint64_t count;          // sink: received; source: sent
    uint64_t acknowledged;   // sink
    unsigned char *pending;  // what could not be sent yet
    size_t pending_from, pending_to, pending_size;
};

static bool verify;
static int epoll;
static unsigned char buffer[BUFFER_SIZE];

static void want(struct end *end, uint32_t events) {
    if (end->events == events) return;
    struct epoll_event event = {.events = events, .data.ptr = end};
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, end->descriptor, &event)) die("epoll_ctl");
    end->events = events;
}

static bool has_pending(const struct end *end) { return end->pending_from < end->pending_to; }

static void keep(struct end *end, const unsigned char *data, size_t length) {
    if (!has_pending(end)) end->pending_from = end->pending_to = 0;
    if (end->pending_to + length > end->pending_size) {
        end->pending_size = 2 * (end->pending_to + length);
        end->pending = realloc(end->pending, end->pending_size);
        if (!end->pending) die("out of memory");
    }
    memcpy(end->pending + end->pending_to, data, length);
    end->pending_to += length;
}

// The functions below return false when the connection is over.

static bool send_pending(struct end *end) {
    while (has_pending(end)) {
        ssize_t sent = send(end->descriptor, end->pending + end->pending_from,
                            end->pending_to - end->pending_from, MSG_NOSIGNAL);
        if (sent < 0) return would_block();
        end->pending_from += (size_t)sent;
    }
    free(end->pending);  // thousands of idle connections hold no buffer
    end->pending = NULL;
    end->pending_from = end->pending_to = end->pending_size = 0;
    return true;
}

static bool answer(struct end *end, const unsigned char *data, size_t length) {
    if (!has_pending(end)) {
        ssize_t sent = send(end->descriptor, data, length, MSG_NOSIGNAL);
        if (sent < 0) {
            if (!would_block()) return false;
            sent = 0;
        }
        data += sent;
        length -= (size_t)sent;
    }
    if (length) keep(end, data, length);
    return true;
}

static bool swallow(struct end *end, size_t length) {
    if (verify && !is_pattern(buffer, length, end->count)) end->mismatch = true;
    end->count += length;
    // Counts that a slow reader has not taken yet are not piled up; the last one always comes.
    bool due = end->count - end->acknowledged >= ACKNOWLEDGE_STEP && !has_pending(end);
    if (!due && !end->ended) return true;
    end->acknowledged = end->count;
    uint64_t said = htobe64(end->count | (end->mismatch ? MISMATCH_BIT : 0));
    return answer(end, (unsigned char *)&said, sizeof said);
}

static bool read_some(struct end *end) {
    for (int round = 0; round < 4 && !end->ended; round++) {
        ssize_t length = recv(end->descriptor, buffer, BUFFER_SIZE, 0);
        if (length < 0) {
            if (would_block()) break;
            return false;
        }
        end->ended = length == 0;
        if (end->kind == RESET) return false;
        if (end->kind == ECHO && length && !answer(end, buffer, (size_t)length)) return false;
        if (end->kind == SINK && !swallow(end, (size_t)length)) return false;
        if (length < BUFFER_SIZE || has_pending(end)) break;
    }
    if (end->ended && (end->kind == SOURCE || !has_pending(end))) {
        shutdown(end->descriptor, SHUT_WR);
        return false;
    }
    // An echo whose answers are not taken is not read either.
    bool pause = end->ended || (end->kind == ECHO && has_pending(end));
    bool sends = end->kind == SOURCE || has_pending(end);
    want(end, (pause ? 0 : EPOLLIN) | (sends ? EPOLLOUT : 0));
    return true;
}

static bool write_some(struct end *end) {
    if (end->kind == SOURCE) {
        for (int round = 0; round < 8; round++) {
            ssize_t sent = send(end->descriptor, pattern + end->count % PATTERN_LENGTH,
                                SOURCE_CHUNK, MSG_NOSIGNAL);
            if (sent < 0) return would_block();
            end->count += (uint64_t)sent;
            if (sent < SOURCE_CHUNK) break;
        }
        return true;
    }
    if (!send_pending(end)) return false;
    if (has_pending(end)) return true;
    if (end->ended) {
        shutdown(end->descriptor, SHUT_WR);
        return false;
    }
    want(end, EPOLLIN);
    return true;
}

static void watch(struct end *end, uint32_t events) {
    end->events = events;
    struct epoll_event event = {.events = events, .data.ptr = end};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, end->descriptor, &event)) die("epoll_ctl");
}

static void listen_on(enum kind kind, const char *text) {
    struct address address = parse_address(text);
    struct end *end = allocate(1, sizeof *end);
    int one = 1;
    end->listens = true;
    end->kind = kind;
    end->descriptor =
        socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(end->descriptor, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(end->descriptor, (struct sockaddr *)&address.storage, address.length) ||
        listen(end->descriptor, 4096))
        die("%s: %s", text, strerror(errno));
    watch(end, EPOLLIN);
}

static void accept_some(struct end *listener) {
    for (int round = 0; round < 64; round++) {
        int descriptor = accept4(listener->descriptor, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (descriptor < 0) return;
        no_delay(descriptor);
        struct end *end = allocate(1, sizeof *end);
        end->kind = listener->kind;
        end->descriptor = descriptor;
        watch(end, EPOLLIN | (end->kind == SOURCE ? EPOLLOUT : 0));
    }
}

static void drop(struct end *end) {
    if (end->kind == RESET)
        abort_connection(end->descriptor);
    else
        close(end->descriptor);
    free(end->pending);
    free(end);
}

static void serve(struct end *end, uint32_t events) {
    if (end->listens) {
        accept_some(end);
        return;
    }
    bool alive = !(events & EPOLLERR);
    if (alive && (events & EPOLLOUT)) alive = write_some(end);
    if (alive && (events & EPOLLIN)) alive = read_some(end);
    else if (events & EPOLLHUP) alive = false;
    if (!alive) drop(end);
}

int main(int argc, char **argv) {
    int option, listeners = 0;
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    make_pattern();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    while ((option = getopt(argc, argv, "e:k:o:r:V")) != -1) {
        listeners++;
        if (option == 'e') listen_on(ECHO, optarg);
        else if (option == 'k') listen_on(SINK, optarg);
        else if (option == 'o') listen_on(SOURCE, optarg);
        else if (option == 'r') listen_on(RESET, optarg);
        else if (option == 'V') verify = true, listeners--;
        else die("%s", USAGE);
    }
    if (!listeners || optind != argc) die("%s", USAGE);
    puts("ready");
    fflush(stdout);
    struct epoll_event events[256];
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        if (ready < 0 && errno != EINTR) die("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < ready; i++) serve(events[i].data.ptr, events[i].events);
    }
}
