/* The kernels that are timed (the table of gwq_export/bench/cases.py), and calls that run them. */
#ifndef GWQ_BENCH_CASES_H
#define GWQ_BENCH_CASES_H
#include "data.h"
#include "options.h"

enum case_op { CASE_GEMV, CASE_GEMM, CASE_ATTENTION };

struct kernel_case {
    enum case_op op;
    int32_t type;
    /* of the matrix (rows, columns); of K and of V (positions, key heads x width of a head) */
    int64_t rows, cols;
    int64_t tokens;
    double outliers; /* share of the weights in the side-table */
};

const char *op_name(enum case_op op);
const char *type_name(int32_t type);
/* The cases that the options choose, `most` at most; ends the program where there are none. */
int cases_of(const struct options *o, struct kernel_case *found, int most);

/* Data of a case that is enough for no cache to hold it, in turn */
struct built {
    struct kernel_case of;
    gwq_matrix *m;     /* (copies), of products */
    uint8_t *caches;   /* (copies, 2, half), of attention: K and V */
    uint64_t half;
    int64_t copies, at;
    float *x, *y;
    void *scratch;
    uint64_t scratch_bytes, x_bytes, y_bytes;
    uint64_t bytes;    /* that a call reads */
    double operations; /* of a call */
};
struct built build_case(const struct kernel_case *c, uint64_t working_set);
void run_case(struct built *b, gwq_pool *pool); /* the next call */
void free_case(struct built *b);
#endif
