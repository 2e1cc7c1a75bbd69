// The last plugin of a node's CNI chain: a pod of the mesh does not start before the node agent has
// captured its traffic. It decides next to nothing itself; what it does is ask, and wait.
//
// CNI specification 1.1.0: parameters in the environment, the network configuration on standard
// input, the result or an error on standard output.
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "json.h"

enum {
    LONGEST_INPUT = 1 << 20,
    LONGEST_PATH = 1024,
    LONGEST_NAME = 256,
    // Error codes of the specification, and (100 and up) our own.
    BAD_ENVIRONMENT = 4,
    CANNOT_READ = 5,
    CANNOT_DECODE = 6,
    BAD_CONFIGURATION = 7,
    TRY_AGAIN_LATER = 11,
    NOT_CAPTURED = 100,
};

static const char VERSION[] = "1.1.0";
static const char DEFAULT_SOCKET[] = "/var/run/ambient/cni.sock";
static const long DEFAULT_PATIENCE = 30;  // seconds

static char version[LONGEST_NAME];

static void print_string(const char *text) {
    putchar('"');
    for (const char *c = text; *c; c++) {
        if (*c == '"' || *c == '\\')
            printf("\\%c", *c);
        else if ((unsigned char)*c < 0x20)
            printf(*c == '\n' ? " " : "\\u%04x", (unsigned)*c);
        else
            putchar(*c);
    }
    putchar('"');
}

static int fail(int code, const char *message, const char *details) {
    fputs("{\"cniVersion\": ", stdout);
    print_string(*version ? version : VERSION);
    printf(", \"code\": %d, \"msg\": ", code);
    print_string(message);
    fputs(", \"details\": ", stdout);
    print_string(details);
    fputs("}\n", stdout);
    return 1;
}

static const char *parameter(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

// The value of `key` in CNI_ARGS (KEY=VALUE;KEY=VALUE); false where it is not there.
static bool argument(const char *key, char *into, size_t size) {
    size_t length = strlen(key);
    for (const char *at = parameter("CNI_ARGS"); *at; at += *at == ';') {
        size_t whole = strcspn(at, ";");
        if (whole > length && at[length] == '=' && strncmp(at, key, length) == 0) {
            snprintf(into, size, "%.*s", (int)(whole - length - 1), at + length + 1);
            return whole - length - 1 < size;
        }
        at += whole;
    }
    return false;
}

static bool is_named(struct span element, void *name) {
    char each[LONGEST_NAME];
    return json_string(element, each, sizeof each) && strcmp(each, name) == 0;
}

// A line of the file for each namespace none of whose pods was in the mesh when the agent last knew.
static bool is_listed(const char *path, const char *name) {
    FILE *file = fopen(path, "re");
    if (!file) return false;
    char line[LONGEST_NAME];
    bool found = false;
    while (!found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        found = strcmp(line, name) == 0;
    }
    fclose(file);
    return found;
}

// Namespaces whose pods never are in the mesh; the agent's own is among them, or it could not start
// on a node that has just been switched on.
static bool is_excluded(struct span configuration, char *namespace) {
    struct span names;
    return json_member(configuration, "excludeNamespaces", &names)
           && json_any(names, is_named, namespace);
}

static bool may_pass_without_agent(struct span configuration, const char *namespace) {
    struct span value;
    char path[LONGEST_PATH];
    return json_member(configuration, "unenrolledNamespacesFile", &value)
           && json_string(value, path, sizeof path) && is_listed(path, namespace);
}

static int pass_through(struct span result) {
    fwrite(result.start, 1, result.length, stdout);
    putchar('\n');
    return fflush(stdout) == 0 ? 0 : 1;
}

// ADD and CHECK: 0 when the pod may go on.
static int ask(const char *command, struct span configuration) {
    char namespace[LONGEST_NAME], path[LONGEST_PATH], reason[2048], details[4096];
    struct span value;
    long patience = DEFAULT_PATIENCE;
    strcpy(path, DEFAULT_SOCKET);
    if (json_member(configuration, "agentSocket", &value) && !json_string(value, path, sizeof path))
        return fail(BAD_CONFIGURATION, "agentSocket must be a path", "");
    if (json_member(configuration, "patienceSeconds", &value) && !json_number(value, 600, &patience))
        return fail(BAD_CONFIGURATION, "patienceSeconds must be a number up to 600", "");
    if (!argument("K8S_POD_NAMESPACE", namespace, sizeof namespace))
        return fail(BAD_ENVIRONMENT, "CNI_ARGS names no K8S_POD_NAMESPACE", parameter("CNI_ARGS"));
    if (is_excluded(configuration, namespace)) return 0;
    const struct question question = {
        .command = command,
        .container_id = parameter("CNI_CONTAINERID"),
        .netns = parameter("CNI_NETNS"),
        .interface = parameter("CNI_IFNAME"),
        .arguments = parameter("CNI_ARGS"),
        .configuration = configuration.start,
        .configuration_length = configuration.length,
    };
    // Where nobody is in the mesh nobody has to wait for an agent that is away.
    bool unenrolled = may_pass_without_agent(configuration, namespace);
    switch (ask_agent(path, &question, unenrolled ? 0 : patience, reason, sizeof reason)) {
        case ANSWER_OK: return 0;
        case ANSWER_REFUSED:
            return fail(NOT_CAPTURED, "ambient mesh: the pod's traffic is not captured", reason);
        default:
            if (unenrolled) return 0;
            snprintf(details, sizeof details,
                     "%s; pods of namespace %s must not start outside the mesh, so this one waits",
                     reason, namespace);
            return fail(TRY_AGAIN_LATER, "ambient mesh: the node agent is away", details);
    }
}

static int add(struct span configuration) {
    struct span result;
    if (!json_member(configuration, "prevResult", &result))
        return fail(BAD_CONFIGURATION, "there is no prevResult",
                    "this plugin has to stand behind the one that makes the pod's interface");
    int failed = ask("ADD", configuration);
    return failed ? failed : pass_through(result);
}

static int say_versions(void) {
    fputs("{\"cniVersion\": ", stdout);
    print_string(*version ? version : VERSION);
    puts(", \"supportedVersions\": [\"0.3.0\", \"0.3.1\", \"0.4.0\", \"1.0.0\", \"1.1.0\"]}");
    return 0;
}

int main(void) {
    static char input[LONGEST_INPUT];
    const char *command = parameter("CNI_COMMAND");
    // A pod that is to go must not stay because something about us is wrong; the agent sees for
    // itself that it has gone.
    if (strcmp(command, "DEL") == 0) return 0;
    size_t length = fread(input, 1, sizeof input, stdin);
    if (ferror(stdin)) return fail(CANNOT_READ, "cannot read standard input", strerror(errno));
    if (length == sizeof input)
        return fail(CANNOT_DECODE, "the network configuration is larger than a MiB", "");
    struct span configuration, value;
    bool valid = json_check((struct span){input, length}, &configuration) && *configuration.start == '{';
    if (valid && json_member(configuration, "cniVersion", &value)) json_string(value, version, sizeof version);
    if (strcmp(command, "VERSION") == 0) return say_versions();
    if (!valid) return fail(CANNOT_DECODE, "the network configuration is not a JSON object", "");
    if (strcmp(command, "ADD") == 0) return add(configuration);
    if (strcmp(command, "CHECK") == 0) return ask("CHECK", configuration);
    // STATUS: always able. To say no would make the whole node not ready while the agent is being
    // replaced, and then the agent itself could not start. GC: nothing is kept here.
    if (strcmp(command, "STATUS") == 0 || strcmp(command, "GC") == 0) return 0;
    return fail(BAD_ENVIRONMENT, "CNI_COMMAND is none of ADD, DEL, CHECK, STATUS, GC, VERSION", command);
}
