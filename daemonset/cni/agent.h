// The question to the node agent, over its socket.
#ifndef AGENT_H
#define AGENT_H
#include <stddef.h>

enum answer {
    ANSWER_OK,       // go on
    ANSWER_REFUSED,  // no: `reason` says why
    ANSWER_NOBODY,   // no agent, or none that answers: `reason` says how that was found out
};

struct question {
    const char *command;
    const char *container_id;
    const char *netns;
    const char *interface;
    const char *arguments;  // CNI_ARGS
    const char *configuration;
    size_t configuration_length;
};

// Waits up to `seconds` for an agent to be there, and as long again for its answer.
enum answer ask_agent(
    const char *path, const struct question *question, long seconds, char *reason, size_t size);
#endif
