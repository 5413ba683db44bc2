/* Attention of many queries for NEON. */
enum { LANES = 4, ROWS = 4, VECTORS = 4 };
#include "cpu/attend.h"
#include "slots.h"

void gwq_neon_products(const float *a, int64_t row, int64_t column, int64_t rows, int64_t terms,
                       int width, const float (*b)[GWQ_MANY], const float *shrink,
                       float (*out)[GWQ_MANY]) {
    products(a, row, column, rows, terms, width, b, shrink, out);
}

void gwq_neon_weigh(float (*s)[GWQ_MANY], int keys, int width, float *most, float *total,
                    float *shrink) {
    weigh(s, keys, width, most, total, shrink);
}
