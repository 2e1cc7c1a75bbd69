#include "connection.h"

enum { MAX_OPENING = 256, MAX_REPORTED = 10 };

const char *FAILURE_NAMES[FAILURES] = {"connect", "reset", "ended", "timeout", "mismatch"};

static void want(struct load *load, struct connection *connection, uint32_t events) {
    if (connection->events == events) return;
    struct epoll_event event = {.events = events, .data.ptr = connection};
    if (epoll_ctl(load->epoll, EPOLL_CTL_MOD, connection->descriptor, &event)) die("epoll_ctl");
    connection->events = events;
}

static void shut(struct load *load, struct connection *connection, bool by_reset) {
    if (connection->state == CONNECTING) load->opening--;
    else load->open--;
    if (connection->state == HOLDING) load->held--;
    if (by_reset) abort_connection(connection->descriptor);
    else close(connection->descriptor);
    connection->descriptor = -1;
    connection->events = 0;
    connection->count_length = 0;
    connection->acknowledged = 0;
    connection->state = load->phase >= ENDING ? FINISHED : CLOSED;
}

static void fail(struct load *load, struct connection *connection, enum failure failure,
                 const char *what) {
    if (load->phase < OVER) {
        load->failures[failure]++;
        if (load->failed++ < MAX_REPORTED)
            fprintf(stderr, "tcpload: connection %d: %s\n", connection->number, what);
    }
    // Failures must never become a storm: 40 ms, doubling to 640 ms.
    uint64_t doublings = load->failures_in_a_row < 4 ? load->failures_in_a_row : 4;
    load->failures_in_a_row++;
    shut(load, connection, true);
    connection->retry_at = now_ns() + (40000000ull << doublings);
}

static void fail_with_errno(struct load *load, struct connection *connection) {
    fail(load, connection, connection->state == CONNECTING ? CONNECT_FAILED : RESET,
         strerror(errno));
}

static void complete(struct load *load, struct connection *connection) {
    load->failures_in_a_row = 0;
    load->completed++;
    if (load->phase != MEASURING) return;
    load->operations++;
    record(&load->latency, now_ns() - connection->started);
}

// Messages differ by connection and by number, so that none can pass for another.
static void compose(struct load *load, struct connection *connection) {
    uint64_t tag = ((uint64_t)connection->number << 40) ^ connection->messages;
    if (load->options.size >= sizeof tag) memcpy(load->message, &tag, sizeof tag);
    else memset(load->message, (int)('A' + tag % 26), load->options.size);
}

static void write_message(struct load *load, struct connection *connection) {
    compose(load, connection);
    while (connection->sent < load->options.size) {
        ssize_t sent = send(connection->descriptor, load->message + connection->sent,
                            load->options.size - connection->sent, MSG_NOSIGNAL);
        if (sent < 0 && would_block()) {
            want(load, connection, EPOLLIN | EPOLLOUT);
            return;
        }
        if (sent < 0) {
            fail_with_errno(load, connection);
            return;
        }
        connection->sent += (uint64_t)sent;
    }
    connection->state = READING;
    if (load->options.mode == HALFCLOSE) shutdown(connection->descriptor, SHUT_WR);
    want(load, connection, EPOLLIN);
}

void start_message(struct load *load, struct connection *connection) {
    // The time to connect is part of a message that has a connection of its own.
    if (load->options.mode != CONNECT && load->options.mode != HALFCLOSE)
        connection->started = now_ns();
    if (connection->state == HOLDING) load->held--;
    connection->messages++;
    connection->sent = connection->received = 0;
    connection->state = WRITING;
    write_message(load, connection);
}

static void write_stream(struct load *load, struct connection *connection) {
    for (int round = 0; round < 8; round++) {
        ssize_t sent = send(connection->descriptor, pattern + connection->sent % PATTERN_LENGTH,
                            load->options.size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (!would_block()) fail_with_errno(load, connection);
            return;
        }
        connection->sent += (uint64_t)sent;
        if ((size_t)sent < load->options.size) return;
    }
}

static void open_connection(struct load *load, struct connection *connection) {
    struct address *address = &load->options.address;
    connection->descriptor =
        socket(address->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->descriptor < 0) die("socket: %s", strerror(errno));
    no_delay(connection->descriptor);
    connection->started = now_ns();
    connection->sent = connection->received = 0;
    connection->state = CONNECTING;
    load->opening++;
    if (connect(connection->descriptor, (struct sockaddr *)&address->storage, address->length) &&
        errno != EINPROGRESS) {
        fail_with_errno(load, connection);
        return;
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = connection};
    connection->events = EPOLLOUT;
    if (epoll_ctl(load->epoll, EPOLL_CTL_ADD, connection->descriptor, &event)) die("epoll_ctl");
}

static void on_connected(struct load *load, struct connection *connection) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(connection->descriptor, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        fail(load, connection, CONNECT_FAILED, strerror(error));
        return;
    }
    load->opening--;
    load->open++;
    if (load->phase == MEASURING) record(&load->connect_latency, now_ns() - connection->started);
    switch (load->options.mode) {
    case PINGPONG:
        connection->state = READY;
        if (load->phase == OPENING) want(load, connection, EPOLLIN);
        else start_message(load, connection);
        break;
    case CONNECT:
    case HALFCLOSE:
    case IDLE:
        connection->state = READY;
        start_message(load, connection);
        break;
    case UP:
    case BOTH:
        connection->state = STREAMING;
        want(load, connection, EPOLLIN | EPOLLOUT);
        break;
    default:
        connection->state = STREAMING;
        want(load, connection, EPOLLIN);
    }
}

// The answer to the message is whole.
static void answered(struct load *load, struct connection *connection) {
    complete(load, connection);
    switch (load->options.mode) {
    case IDLE:
        connection->state = HOLDING;
        load->held++;
        break;
    case PINGPONG:
        if (load->phase < ENDING) start_message(load, connection);
        else shut(load, connection, false);
        break;
    default:
        shut(load, connection, false);
        if (load->phase < ENDING) open_connection(load, connection);
    }
}

static void on_end(struct load *load, struct connection *connection) {
    enum mode mode = load->options.mode;
    if (mode == HALFCLOSE && connection->received == load->options.size) {
        answered(load, connection);
    } else if (connection->state == FINISHING) {
        bool whole = mode == UP ? connection->acknowledged == connection->sent
                                : connection->received == connection->sent;
        if (whole) {
            load->completed++;
            shut(load, connection, false);
        } else fail(load, connection, MISMATCH, "the stream came to its end incomplete");
    } else fail(load, connection, ENDED, "closed by the peer");
}

static void on_counts(struct load *load, struct connection *connection, size_t length) {
    for (size_t i = 0; i < length; i++) {
        connection->count[connection->count_length++] = load->buffer[i];
        if (connection->count_length < sizeof connection->count) continue;
        connection->count_length = 0;
        uint64_t count;
        memcpy(&count, connection->count, sizeof count);
        count = be64toh(count);
        if (count & MISMATCH_BIT || count < connection->acknowledged || count > connection->sent) {
            fail(load, connection, MISMATCH, "the sink got something else than was sent");
            return;
        }
        load->bytes += count - connection->acknowledged;
        connection->acknowledged = count;
    }
}

static void on_stream(struct load *load, struct connection *connection, size_t length) {
    if (load->options.mode == UP) {
        on_counts(load, connection, length);
        return;
    }
    if (load->options.verify && !is_pattern(load->buffer, length, connection->received)) {
        fail(load, connection, MISMATCH, "the stream is not the test pattern");
        return;
    }
    if (load->options.mode == DOWN && !connection->received) load->completed++;  // it has no end
    connection->received += length;
    load->bytes += length;
}

static void on_answer(struct load *load, struct connection *connection, size_t length) {
    uint64_t before = connection->received;
    connection->received += length;
    bool expected = connection->state == READING || connection->state == WRITING;
    if (!expected || connection->received > connection->sent) {
        fail(load, connection, MISMATCH, "more came back than was sent");
        return;
    }
    compose(load, connection);
    if (memcmp(load->buffer, load->message + before, length)) {
        fail(load, connection, MISMATCH, "something else came back");
        return;
    }
    bool to_the_end = load->options.mode == HALFCLOSE;
    if (connection->received == load->options.size && !to_the_end) answered(load, connection);
}

static void read_some(struct load *load, struct connection *connection) {
    ssize_t length = recv(connection->descriptor, load->buffer, MAX_CHUNK, 0);
    if (length < 0) {
        if (!would_block()) fail_with_errno(load, connection);
    } else if (length == 0) on_end(load, connection);
    else if (is_stream(load->options.mode)) on_stream(load, connection, (size_t)length);
    else on_answer(load, connection, (size_t)length);
}

void on_events(struct load *load, struct connection *connection, uint32_t events) {
    if (connection->descriptor < 0) return;
    if (connection->state == CONNECTING) {
        on_connected(load, connection);
        return;
    }
    if (events & EPOLLOUT) {
        if (connection->state == WRITING) write_message(load, connection);
        else if (connection->state == STREAMING) write_stream(load, connection);
    }
    if (connection->descriptor >= 0 && events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        read_some(load, connection);
}

void open_due_connections(struct load *load, uint64_t now) {
    for (int i = 0; i < load->wanted && load->opening < MAX_OPENING; i++) {
        struct connection *connection = &load->connections[i];
        if (connection->state == CLOSED && connection->retry_at <= now)
            open_connection(load, connection);
    }
}

void end_overdue_connections(struct load *load, uint64_t now) {
    for (int i = 0; i < load->wanted; i++) {
        struct connection *connection = &load->connections[i];
        bool waits = connection->state == CONNECTING || connection->state == WRITING ||
                     connection->state == READING;
        if (waits && now > connection->started + load->options.limit)
            fail(load, connection, TIMED_OUT, "no answer in time");
    }
}

void start_finishing(struct load *load, struct connection *connection) {
    switch (connection->state) {
    case STREAMING:
        if (load->options.mode == DOWN) {
            shut(load, connection, true);
            break;
        }
        connection->state = FINISHING;
        connection->started = now_ns();
        shutdown(connection->descriptor, SHUT_WR);
        want(load, connection, EPOLLIN);
        break;
    case READY:
    case HOLDING:
        shut(load, connection, false);
        break;
    case CLOSED:
        connection->state = FINISHED;
        break;
    default:  // a message under way may still be answered
        break;
    }
}
