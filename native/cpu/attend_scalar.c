/* Attention of many queries for any CPU. */
enum { LANES = 4, ROWS = 4, VECTORS = 2 };
#include "attend.h"
#include "scalar.h"

void gwq_scalar_products(const float *a, int64_t row, int64_t column, int64_t rows, int64_t terms,
                         const float (*b)[GWQ_MANY], const float *shrink, float (*out)[GWQ_MANY]) {
    products(a, row, column, rows, terms, b, shrink, out);
}

void gwq_scalar_weigh(float (*s)[GWQ_MANY], int keys, float *most, float *total, float *shrink) {
    weigh(s, keys, most, total, shrink);
}
