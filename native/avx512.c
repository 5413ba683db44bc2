#include "kernels.h"
static int supported(void) { return __builtin_cpu_supports("avx512vnni"); }
const gwq_kernels gwq_avx512 = {.isa = "avx512", .supported = supported};
