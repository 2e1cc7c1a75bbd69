#include "agent.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PROTOCOL "ambient-cni/1"

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static enum answer nobody(char *reason, size_t size, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, size, format, arguments);
    va_end(arguments);
    return ANSWER_NOBODY;
}

// A connected socket, or -1 with errno. An agent that is being replaced is back in a moment.
static int connect_to(const char *path, long seconds) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    double deadline = now() + (double)seconds;
    for (;;) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) return -1;
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
        int error = errno;
        close(fd);
        errno = error;
        if ((error != ENOENT && error != ECONNREFUSED) || now() >= deadline) return -1;
        nanosleep(&(struct timespec){.tv_nsec = 100 * 1000 * 1000}, NULL);
    }
}

static bool send_all(int fd, const char *data, size_t length) {
    while (length > 0) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return false;
        data += sent;
        length -= (size_t)sent;
    }
    return true;
}

// Fields end with a NUL, which neither the environment nor JSON can contain.
static bool send_question(int fd, const struct question *question) {
    const char *fields[] = {PROTOCOL,        question->command,   question->container_id,
                            question->netns, question->interface, question->arguments};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!send_all(fd, fields[i], strlen(fields[i]) + 1)) return false;
    return send_all(fd, question->configuration, question->configuration_length)
           && shutdown(fd, SHUT_WR) == 0;
}

// What the agent says until it hangs up; -1 with errno.
static ssize_t receive_all(int fd, char *into, size_t size) {
    size_t length = 0;
    while (length + 1 < size) {
        ssize_t received = recv(fd, into + length, size - 1 - length, 0);
        if (received < 0 && errno == EINTR) continue;
        if (received < 0) return -1;
        if (received == 0) break;
        length += (size_t)received;
    }
    into[length] = '\0';
    return (ssize_t)length;
}

enum answer ask_agent(
    const char *path, const struct question *question, long seconds, char *reason, size_t size) {
    int fd = connect_to(path, seconds);
    if (fd < 0) return nobody(reason, size, "no node agent at %s: %s", path, strerror(errno));
    struct timeval patience = {.tv_sec = seconds > 0 ? seconds : 1};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    char answer[4096];
    // An agent that refuses may have hung up before the whole question was sent.
    bool sent = send_question(fd, question);
    ssize_t length = receive_all(fd, answer, sizeof answer);
    int error = errno;
    close(fd);
    if (length < 0)
        return nobody(reason, size, "the node agent at %s does not answer: %s", path,
                      error == EAGAIN ? "it took too long" : strerror(error));
    if (sent && strcmp(answer, "ok\n") == 0) return ANSWER_OK;
    if (strncmp(answer, "refused\n", 8) == 0) {
        snprintf(reason, size, "%s", answer + 8);
        return ANSWER_REFUSED;
    }
    return nobody(reason, size, "the node agent at %s hung up without an answer", path);
}
