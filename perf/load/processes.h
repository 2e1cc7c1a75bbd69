// What other processes use: CPU time and memory, from /proc.
#ifndef PROCESSES_H
#define PROCESSES_H
#include <sys/types.h>

struct usage {
    double cpu_seconds;  // of all threads, to the nanosecond
    long pss_kib;        // proportional set size: shared pages are shared out
};

struct usage usage_of(pid_t process);
double own_cpu_seconds(void);
double machine_cpu_seconds(void);  // busy time of all processors
#endif
