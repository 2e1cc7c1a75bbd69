#include "options.h"

const char *MODE_NAMES[MODES] = {"pingpong", "connect", "halfclose", "up", "down", "both", "idle"};

static const char *USAGE =
    "usage: tcpload [options] HOST:PORT\n"
    "  -m MODE   pingpong   messages of SIZE bytes there and back, one at a time on each connection\n"
    "            connect    a new connection for each message: connect, send, read back, close\n"
    "            halfclose  as connect, with FIN after the message, and the answer read to its end\n"
    "            up         stream to a sink; counted is what the sink acknowledged\n"
    "            down       stream from a source\n"
    "            both       stream to an echo; counted is what came back\n"
    "            idle       open half of CONNS, look at the processes, open the other half, look\n"
    "                       again; then one more message on each\n"
    "  -c CONNS  connections (1)            -s SIZE  bytes of a message (1) or a write (65536)\n"
    "  -d SECS   measured time (10)         -w SECS  before it, not counted (1)\n"
    "  -T SECS   limit for one message (10) -V       compare streams with the test pattern\n"
    "  -p PID    report CPU time and memory of this process (may be repeated)\n"
    "Prints one JSON object. Exit status: 0; 1 nothing was completed; 2 bad use; 3 something failed.";

static uint64_t seconds(const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || value < 0 || value > 86400) die("not a number of seconds: %s", text);
    return (uint64_t)(value * (double)SECOND);
}

static long number(const char *text, long smallest, long largest) {
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end || value < smallest || value > largest)
        die("want a number from %ld to %ld: %s", smallest, largest, text);
    return value;
}

static enum mode mode_named(const char *name) {
    for (int mode = 0; mode < MODES; mode++)
        if (!strcmp(name, MODE_NAMES[mode])) return (enum mode)mode;
    die("no such mode: %s", name);
    return MODES;
}

struct options parse_options(int argc, char **argv) {
    struct options options = {
        .connections = 1, .warm_up = SECOND, .duration = 10 * SECOND, .limit = 10 * SECOND};
    int option;
    while ((option = getopt(argc, argv, "m:c:s:d:w:T:Vp:h")) != -1) switch (option) {
        case 'm': options.mode = mode_named(optarg); break;
        case 'c': options.connections = (int)number(optarg, 1, 1000000); break;
        case 's': options.size = (size_t)number(optarg, 1, MAX_CHUNK); break;
        case 'd': options.duration = seconds(optarg); break;
        case 'w': options.warm_up = seconds(optarg); break;
        case 'T': options.limit = seconds(optarg); break;
        case 'V': options.verify = true; break;
        case 'p':
            if (options.process_count == MAX_PROCESSES) die("too many processes");
            options.processes[options.process_count++] = (int)number(optarg, 1, 1 << 30);
            break;
        default: die("%s", USAGE);
        }
    if (optind + 1 != argc) die("%s", USAGE);
    if (!options.size) options.size = is_stream(options.mode) ? 65536 : 1;
    options.target = argv[optind];
    options.address = parse_address(options.target);
    return options;
}
