#include "processes.h"
#include "common.h"
#include <dirent.h>

static FILE *open_proc(const char *format, ...) {
    char path[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(path, sizeof path, format, arguments);
    va_end(arguments);
    return fopen(path, "r");
}

// By the scheduler's own clock, but without threads that have ended.
static double cpu_seconds_of_threads(pid_t process) {
    char path[64];
    double seconds = 0;
    snprintf(path, sizeof path, "/proc/%d/task", process);
    DIR *threads = opendir(path);
    if (!threads) return 0;
    for (struct dirent *thread; (thread = readdir(threads));) {
        if (thread->d_name[0] == '.') continue;
        FILE *file = open_proc("%s/%.20s/schedstat", path, thread->d_name);
        unsigned long long nanoseconds;
        if (!file) continue;  // the thread has just ended
        if (fscanf(file, "%llu", &nanoseconds) == 1) seconds += (double)nanoseconds / 1e9;
        fclose(file);
    }
    closedir(threads);
    return seconds;
}

// With threads that have ended, but in whole ticks of 10 ms.
static double cpu_seconds_in_ticks(pid_t process) {
    char line[1024];
    unsigned long long user = 0, system = 0;
    FILE *file = open_proc("/proc/%d/stat", process);
    if (!file) return 0;
    const char *end_of_name = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
    fclose(file);
    if (!end_of_name || sscanf(end_of_name + 1,
                               " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user,
                               &system) < 2)
        return 0;
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static double cpu_seconds_of(pid_t process) {
    double threads = cpu_seconds_of_threads(process), ticks = cpu_seconds_in_ticks(process);
    return threads > ticks ? threads : ticks;
}

struct usage usage_of(pid_t process) {
    struct usage usage = {.cpu_seconds = cpu_seconds_of(process)};
    char line[256];
    FILE *file = open_proc("/proc/%d/smaps_rollup", process);
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "Pss: %ld", &usage.pss_kib) == 1) break;
    if (file) fclose(file);
    return usage;
}

double own_cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

double machine_cpu_seconds(void) {
    unsigned long long user, nice, system, idle, wait, irq, softirq;
    FILE *file = open_proc("/proc/stat");
    if (!file) return 0;
    int found = fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle,
                       &wait, &irq, &softirq);
    fclose(file);
    if (found < 7) return 0;
    return (double)(user + nice + system + irq + softirq) / (double)sysconf(_SC_CLK_TCK);
}
