/* gwq_multiply: checks. */
#include "kernels.h"

int gwq_multiply(const gwq_multiplication *p) {
    if (!p || !p->a || !p->b || !p->out) return GWQ_E_ARGUMENT;
    if (p->m < 1 || p->n < 1 || p->k < 1) return GWQ_E_SHAPE;
    if (p->m > INT32_MAX || p->n > INT32_MAX || p->k > INT32_MAX) return GWQ_E_SHAPE;
    if (p->out_row < p->n) return GWQ_E_SHAPE;
    gwq_in_use()->multiply(p);
    return GWQ_OK;
}
