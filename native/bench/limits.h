/* What the control groups of this process leave it (gwq_export/cgroups.py says how they lie). */
#ifndef GWQ_BENCH_LIMITS_H
#define GWQ_BENCH_LIMITS_H
#include <stdint.h>

double group_cpus(void);         /* CPUs on average; 0: no limit */
int64_t group_free_memory(void); /* bytes; -1: no limit */
int usable_cpus(void);           /* of the affinity mask */
int default_threads(void);       /* as many as use the CPUs that this process may run on */
#endif
