/* What kind of device this is, without anything that tells whose it is. */
#ifndef GWQ_BENCH_DEVICE_H
#define GWQ_BENCH_DEVICE_H
#include "json.h"

const char *cpu_name(void); /* as the system calls it */
/* "device" of gwq_export/data/edge.schema.json */
void device_write(struct json *j);
#endif
