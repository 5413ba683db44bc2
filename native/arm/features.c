/* What this ARM CPU can, beside the vectors of every 64-bit one: asked of the system, because
 * programs may not read the CPU's own registers everywhere. */
#include "slots.h"

#if defined __APPLE__
#include <sys/sysctl.h>

static int feature(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return !sysctlbyname(name, &value, &size, NULL, 0) && value;
}
int gwq_arm_has_dotprod(void) { return feature("hw.optional.arm.FEAT_DotProd"); }
int gwq_arm_has_i8mm(void) { return feature("hw.optional.arm.FEAT_I8MM"); }

#elif defined __linux__
#include <sys/auxv.h>

enum { DOTPROD = 20, I8MM = 13 }; /* bits of the kernel's HWCAP (asimddp) and HWCAP2 (i8mm) */
int gwq_arm_has_dotprod(void) { return getauxval(AT_HWCAP) >> DOTPROD & 1; }
int gwq_arm_has_i8mm(void) { return getauxval(AT_HWCAP2) >> I8MM & 1; }

#else
int gwq_arm_has_dotprod(void) { return 0; }
int gwq_arm_has_i8mm(void) { return 0; }
#endif
