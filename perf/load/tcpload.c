// tcpload: a load generator for TCP proxies and tunnels. One thread, epoll; see options.c.
#include "connection.h"
#include "processes.h"
#include <signal.h>
#include <sys/prctl.h>

static const uint64_t TICK = SECOND / 50;
static const uint64_t TICK_WHILE_OPENING = SECOND / 2000;

struct look {  // at one moment
    uint64_t at, bytes;
    double own_cpu, machine_cpu;
    struct usage processes[MAX_PROCESSES];
};

static struct look look_around(const struct load *load) {
    struct look look = {.own_cpu = own_cpu_seconds(), .machine_cpu = machine_cpu_seconds()};
    for (int i = 0; i < load->options.process_count; i++)
        look.processes[i] = usage_of(load->options.processes[i]);
    look.at = now_ns();
    look.bytes = load->bytes;
    return look;
}

typedef bool condition(const struct load *load);

// Serve connections until `until`, or until `done` holds.
static void run(struct load *load, uint64_t until, condition *done) {
    struct epoll_event events[512];
    uint64_t next_tick = 0;
    for (uint64_t now; (now = now_ns()) < until && !(done && done(load));) {
        if (now >= next_tick) {
            if (load->phase < ENDING) open_due_connections(load, now);
            end_overdue_connections(load, now);
            bool complete = load->open == load->wanted;
            next_tick = now + (complete ? TICK : TICK_WHILE_OPENING);
        }
        uint64_t wait = (next_tick < until ? next_tick : until) - now;
        struct timespec timeout = {(time_t)(wait / SECOND), (long)(wait % SECOND)};
        int ready = epoll_pwait2(load->epoll, events, 512, &timeout, NULL);
        if (ready < 0 && errno != EINTR) die("epoll: %s", strerror(errno));
        for (int i = 0; i < ready; i++) on_events(load, events[i].data.ptr, events[i].events);
    }
}

static bool all_open(const struct load *load) {
    return (load->options.mode == IDLE ? load->held : load->open) >= load->wanted;
}

static bool all_closed(const struct load *load) { return load->open + load->opening == 0; }

// Open `count` connections, or as many as come in two limits of time.
static void open_all(struct load *load, int count) {
    load->wanted = count;
    run(load, now_ns() + 2 * load->options.limit, all_open);
}

static void each(struct load *load, enum state state,
                 void action(struct load *, struct connection *)) {
    for (int i = 0; i < load->wanted; i++)
        if (load->connections[i].state == state) action(load, &load->connections[i]);
}

static void measure(struct load *load, struct look *before, struct look *after) {
    struct options *options = &load->options;
    // What opens a connection for each message has none to open first.
    bool lasting = options->mode != CONNECT && options->mode != HALFCLOSE;
    load->wanted = options->connections;
    if (lasting) open_all(load, options->connections);
    load->phase = WARMING;
    each(load, READY, start_message);
    run(load, now_ns() + options->warm_up, NULL);
    *before = look_around(load);
    load->phase = MEASURING;
    run(load, now_ns() + options->duration, NULL);
    load->phase = WARMING;
    *after = look_around(load);
}

// Returns how many connections still worked in the end.
static int hold(struct load *load, struct look *half, struct look *full, uint64_t *opened_in) {
    struct options *options = &load->options;
    open_all(load, options->connections / 2);
    run(load, now_ns() + options->warm_up, NULL);
    *half = look_around(load);
    uint64_t started = now_ns();
    open_all(load, options->connections);
    *opened_in = now_ns() - started;
    run(load, now_ns() + options->duration, NULL);
    *full = look_around(load);
    each(load, HOLDING, start_message);
    run(load, now_ns() + options->limit, all_open);
    return load->held;
}

static void end(struct load *load) {
    load->phase = ENDING;
    for (int i = 0; i < load->options.connections; i++)
        start_finishing(load, &load->connections[i]);
    run(load, now_ns() + load->options.limit, all_closed);
    for (int i = 0; i < load->options.connections; i++)
        if (load->connections[i].state == FINISHING) {
            load->failures[TIMED_OUT]++;
            load->failed++;
        }
    load->phase = OVER;
}

static void print_latency(const char *name, const struct histogram *histogram) {
    if (!histogram->count) return;
    printf(",\"%s\":{\"min\":%.1f,\"mean\":%.1f", name, (double)histogram->smallest / 1e3,
           (double)histogram->sum / (double)histogram->count / 1e3);
    static const double percents[] = {50, 90, 99, 99.9};
    for (int i = 0; i < 4; i++)
        printf(",\"p%g\":%.1f", percents[i], percentile(histogram, percents[i]) / 1e3);
    printf(",\"max\":%.1f}", (double)histogram->largest / 1e3);
}

static void print_processes(const struct load *load, const struct look *from,
                            const struct look *to) {
    double cpu = 0;
    printf(",\"processes\":[");
    for (int i = 0; i < load->options.process_count; i++) {
        double used = to->processes[i].cpu_seconds - from->processes[i].cpu_seconds;
        cpu += used;
        printf("%s{\"pid\":%d,\"cpu_s\":%.6f,\"pss_from_kib\":%ld,\"pss_to_kib\":%ld}",
               i ? "," : "", load->options.processes[i], used, from->processes[i].pss_kib,
               to->processes[i].pss_kib);
    }
    printf("],\"processes_cpu_s\":%.6f,\"own_cpu_s\":%.3f,\"machine_cpu_s\":%.2f", cpu,
           to->own_cpu - from->own_cpu, to->machine_cpu - from->machine_cpu);
}

int main(int argc, char **argv) {
    static struct load load;
    struct look from, to;
    int alive = 0;
    uint64_t opened_in = 0;
    load.options = parse_options(argc, argv);
    const struct options *options = &load.options;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    raise_file_limit();
    make_pattern();
    load.epoll = epoll_create1(EPOLL_CLOEXEC);
    load.buffer = allocate(1, MAX_CHUNK);
    load.message = allocate(1, options->size);
    memcpy(load.message, pattern, options->size);
    load.connections = allocate((size_t)options->connections, sizeof *load.connections);
    for (int i = 0; i < options->connections; i++) {
        load.connections[i].number = i;
        load.connections[i].descriptor = -1;
    }
    if (options->mode == IDLE) alive = hold(&load, &from, &to, &opened_in);
    else measure(&load, &from, &to);
    end(&load);

    double seconds = (double)(to.at - from.at) / (double)SECOND;
    printf("{\"mode\":\"%s\",\"target\":\"%s\",\"connections\":%d,\"size\":%zu,\"seconds\":%.6f",
           MODE_NAMES[options->mode], options->target, options->connections, options->size, seconds);
    if (options->mode == IDLE)
        printf(",\"alive\":%d,\"opened_in_s\":%.3f", alive, (double)opened_in / (double)SECOND);
    else if (is_stream(options->mode))
        printf(",\"bytes\":%llu", (unsigned long long)(to.bytes - from.bytes));
    else printf(",\"operations\":%llu", (unsigned long long)load.operations);
    print_latency("latency_us", &load.latency);
    print_latency("connect_us", &load.connect_latency);
    printf(",\"failures\":{\"total\":%llu", (unsigned long long)load.failed);
    for (int i = 0; i < FAILURES; i++)
        if (load.failures[i])
            printf(",\"%s\":%llu", FAILURE_NAMES[i], (unsigned long long)load.failures[i]);
    printf("}");
    print_processes(&load, &from, &to);
    printf("}\n");
    if (!load.completed) return 1;
    return load.failed || (options->mode == IDLE && alive < options->connections) ? 3 : 0;
}
