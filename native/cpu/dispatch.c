/* Instruction sets: the table of rows, and the one in use. */
#include <string.h>
#include "kernels.h"

#ifndef GWQ_ABI_HASH
#error "build with native/build.py, which defines GWQ_ABI_HASH"
#endif

const char *gwq_abi(void) { return GWQ_ABI_HASH; }

static const gwq_kernels *const isas[] = { /* best last */
    &gwq_scalar,
#ifdef __x86_64__
    &gwq_avx2,
    &gwq_avxvnni,
    &gwq_avx512,
    &gwq_avx512vbmi,
#endif
#ifdef __aarch64__
    &gwq_neon,
    &gwq_dotprod,
    &gwq_i8mm,
#endif
};
enum { ISAS = sizeof isas / sizeof *isas };

static gwq_kernels merged; /* the selected row, empty slots filled from the rows before it */
static const gwq_kernels *current = &gwq_scalar;

const gwq_kernels *gwq_in_use(void) { return current; }

static void overlay(gwq_kernels *to, const gwq_kernels *from) {
#define TAKE(slot) if (from->slot) to->slot = from->slot
    TAKE(isa);
    TAKE(supported);
    TAKE(quantize);
    TAKE(quantize16);
    TAKE(panel);
    for (int k = 0; k < GWQ_K_COUNT; k++) {
        TAKE(matmul[k]);
        TAKE(dequantize[k]);
    }
    TAKE(sparse);
    TAKE(rmsnorm);
    TAKE(activate);
    TAKE(softcap);
    TAKE(convolve);
    TAKE(to_halves);
    TAKE(scores);
    TAKE(largest);
    TAKE(exponents);
    TAKE(mix);
    TAKE(from_cache);
    TAKE(products);
    TAKE(weigh);
    TAKE(read);
    TAKE(encode);
    TAKE(multiply);
#undef TAKE
}

const char *gwq_isa_name(int index) {
    return index >= 0 && index < ISAS ? isas[index]->isa : NULL;
}

int gwq_isa_supported(int index) {
    return index >= 0 && index < ISAS && isas[index]->supported();
}

const char *gwq_isa(void) { return current->isa; }

int gwq_isa_select(const char *name) {
    for (int chosen = ISAS - 1; chosen >= 0; chosen--) {
        if (!isas[chosen]->supported() || (name && strcmp(name, isas[chosen]->isa))) continue;
        memset(&merged, 0, sizeof merged);
        for (int i = 0; i <= chosen; i++)
            if (isas[i]->supported()) overlay(&merged, isas[i]);
        current = &merged;
        return GWQ_OK;
    }
    return GWQ_E_ISA;
}
