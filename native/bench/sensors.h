/* What the system tells of its processors at a moment. */
#ifndef GWQ_BENCH_SENSORS_H
#define GWQ_BENCH_SENSORS_H

struct state {
    char governor[64];   /* "": not told */
    double mhz, celsius; /* NaN: not told */
};

struct state state_now(void);

enum { MOST_CPUS = 1024 };
struct cluster {
    int cpus[MOST_CPUS], count;
    double capacity, max_mhz; /* NaN: not told */
};
/* CPUs that may be used, by how fast they are, the fastest first; returns how many clusters */
int clusters(struct cluster *found, int most);
#endif
