/* Products and attention on their way from the ABI to kernels: their checks, and their scratch. */
#ifndef GWQ_CUDA_WORK_H
#define GWQ_CUDA_WORK_H
#include "context.h"

/* A product as gwq_matmul and a program's op give it. Its matrices were uploaded. */
struct product_job {
    const gwq_op_matmul *op;
    int64_t n;
    const device_matrix *experts; /* of the device, for op->experts; NULL without a choice */
};

/* Whether an op's product can be: GWQ_E_ARGUMENT */
int check_product(const gwq_op_matmul *o, int64_t n);
/* Whether the experts are those that op->m stands for: GWQ_E_ARGUMENT */
int check_experts(const gwq_op_matmul *o);
size_t product_bytes(int64_t n, int64_t cols);
void run_product(const product_job &j, void *scratch);

/* GWQ_E_ARGUMENT, _TYPE */
int check_attention(const gwq_op_attention *o, int64_t n, int64_t start);
/* GWQ_E_ARGUMENT */
int check_shortconv(const gwq_op_shortconv *o, int64_t n);
#endif
