/* Attention of many queries for any CPU. */
enum { LANES = 4, ROWS = 4, VECTORS = 2 };
#include "attend.h"
#include "scalar.h"

void gwq_scalar_products(const float *a, int64_t row, int64_t column, int64_t rows, int64_t terms,
                         int width, const float (*b)[GWQ_MANY], const float *shrink,
                         float (*out)[GWQ_MANY]) {
    products(a, row, column, rows, terms, width, b, shrink, out);
}

void gwq_scalar_weigh(float (*s)[GWQ_MANY], int keys, int width, float *most, float *total,
                      float *shrink) {
    weigh(s, keys, width, most, total, shrink);
}
