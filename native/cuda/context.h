/* The device in use, and what its errors become. All functions here want `gwq_lock` held. */
#ifndef GWQ_CUDA_CONTEXT_H
#define GWQ_CUDA_CONTEXT_H
#include <mutex>
#include "kernels.h"

extern std::mutex gwq_lock;

/* One device at a time: -1 before gwq_cuda_open */
struct context {
    int device;
    int processors;
    cudaStream_t stream;
    step *now;           /* of the device */
    uint64_t generation; /* of matrices: one more with every upload and every one forgotten */
};
extern context gwq_context;

/* Opens the first device, if none is open. GWQ_E_DEVICE, _ISA, _MEMORY */
int ready(void);
/* The status of an error, whose text gwq_cuda_error then has */
int status_of(cudaError_t error);
/* Whether the library has code that the open device runs; its driver may compile it meanwhile */
cudaError_t has_code(void);
/* Waits until the device is done. GWQ_E_DEVICE; GWQ_E_FINITE, if kernels saw such a number. */
int finished(void);

/* What gwq_cuda_upload made; NULL: something else */
const device_matrix *uploaded(const gwq_matrix *m);

#define TRY(call)                             \
    do {                                      \
        const int status = (call);            \
        if (status != GWQ_OK) return status;  \
    } while (0)
#define TRY_CUDA(call) TRY(status_of(call))
#endif
