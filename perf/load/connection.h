// One connection of the load, and what they all share.
#ifndef CONNECTION_H
#define CONNECTION_H
#include "histogram.h"
#include "options.h"

enum phase { OPENING, WARMING, MEASURING, ENDING, OVER };

enum state {
    CLOSED,      // opened again at `retry_at`
    CONNECTING,
    READY,       // between two messages
    WRITING,     // a message
    READING,     // its answer
    STREAMING,
    FINISHING,   // FIN sent, waiting for what is still to come
    HOLDING,     // idle
    FINISHED
};

enum failure { CONNECT_FAILED, RESET, ENDED, TIMED_OUT, MISMATCH, FAILURES };
extern const char *FAILURE_NAMES[FAILURES];

struct connection {
    enum state state;
    int descriptor, number;
    uint32_t events;
    uint64_t started;         // connecting, or the message
    uint64_t retry_at;
    uint64_t sent, received;  // of the message, or of the stream
    uint64_t messages;
    uint64_t acknowledged;    // by the sink
    unsigned char count[8];   // a sink's count, as far as it has come
    size_t count_length;
};

struct load {
    struct options options;
    enum phase phase;
    int epoll;
    struct connection *connections;
    int wanted;               // so many of `connections` are to be open
    int opening, open, held;  // held: idle ones that have had their message
    unsigned char *buffer, *message;
    struct histogram latency, connect_latency;  // nanoseconds, of the measured time
    uint64_t operations;      // of the measured time
    uint64_t bytes;           // of streams, from the start
    uint64_t completed;       // messages and finished streams, from the start
    uint64_t failures[FAILURES], failed;
    uint64_t failures_in_a_row;
};

// Opens what is closed and due, and ends what takes too long.
void open_due_connections(struct load *load, uint64_t now);
void end_overdue_connections(struct load *load, uint64_t now);

void start_message(struct load *load, struct connection *connection);
void start_finishing(struct load *load, struct connection *connection);
void on_events(struct load *load, struct connection *connection, uint32_t events);
#endif
