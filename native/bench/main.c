/* gwq-bench-native: measures a device that has no Python. */
#include <stdlib.h>
#include "document.h"
#include "say.h"
#include "suite.h"

static void choose_isa(void) {
    const char *name = getenv("GWQ_ISA");
    if (gwq_isa_select(name && *name ? name : NULL))
        die("GWQ_ISA=%s is not one that this machine supports: leave it out", name);
}

int main(int count, char **arguments) {
    const struct options o = options_of(count, arguments);
    listen_to_interrupts();
    choose_isa();
    if (o.out) save_check(o.out);
    const int status = o.kernels ? measure_kernels(&o) : measure_file(&o);
    if (fflush(stdout) || ferror(stdout)) die("the results cannot be printed: see to stdout");
    return status;
}
