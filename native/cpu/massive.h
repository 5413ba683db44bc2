/* Residual codes: a second set of int8 codes for activations that one set represents poorly. */
#ifndef GWQ_MASSIVE_H
#define GWQ_MASSIVE_H
#include "kernels.h"

/* Writes the codes of token t for what `in` leaves over of its blocks with a massive activation,
 * and zeros for its other blocks. Returns whether there is such a block; without one it writes
 * nothing. */
int gwq_residual_codes(const gwq_input *in, int64_t t, const gwq_input *residual);

/* y (n, rows) of token t += the row groups first .. last-1 of a tile matrix times its residual
 * codes. kind: enum gwq_kind of the matrix. */
void gwq_residual_product(const gwq_matrix *m, int kind, int64_t first, int64_t last,
                          const gwq_input *residual, int64_t t, float *y);
#endif
