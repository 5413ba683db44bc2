/* libgwq_cuda: the functions of gwq.h and gwq_program.h on a CUDA device. This is what it has
 * beside them, and how it differs.
 *
 * There the following are in the device's memory: arrays of float, KV caches, scratch, what gwq_top
 * and gwq_route write. In the host's: structs, arrays of pointers, and ids. A gwq_matrix is one
 * that gwq_cuda_upload made; gwq_matrix_check takes one in the host's memory. A gwq_pool is one
 * thread. gwq_matmul needs its scratch for every type; gwq_read reads the device's memory, 16-byte
 * aligned. Not there: what serves export (gwq_encode, gwq_multiply).
 *
 * Everything happens in the order of the calls. A function may return before the device is done;
 * gwq_cuda_read and gwq_program_run return afterwards. GWQ_E_DEVICE from any function: the driver
 * or the device failed, then or earlier (gwq_cuda_error says how).
 */
#ifndef GWQ_CUDA_H
#define GWQ_CUDA_H
#include "gwq_program.h"
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum gwq_cuda_limits {
    GWQ_CUDA_HEAD = 512,      /* numbers of an attention head */
    GWQ_CUDA_COLUMNS = 65536, /* columns of a matrix that has outliers */
    GWQ_CUDA_WIDEST = 1 << 24 /* columns of any: kernels count a row's bytes by int */
};

typedef struct gwq_cuda_device {
    char name[256];
    int32_t major, minor;         /* compute capability */
    int32_t processors;           /* multiprocessors */
    int32_t usable;               /* 1: the library has code for it */
    int32_t integrated;           /* 1: its memory is the system's (Jetson) */
    uint64_t bytes;               /* of memory */
    char bus[32];                 /* where it is, such as 0000:3b:00.0 */
} gwq_cuda_device;

/* Devices of this machine, 0 where a driver finds none; -1: no driver, or one that is too old
 * (gwq_cuda_error). */
int gwq_cuda_devices(void);
/* GWQ_E_INDEX, _DEVICE */
int gwq_cuda_describe(int device, gwq_cuda_device *out);
/* *bytes = what a device has free. It has to be woken for that, which takes some of its memory.
 * GWQ_E_INDEX, _DEVICE */
int gwq_cuda_room(int device, uint64_t *bytes);
/* Use a device from now on, before anything else. GWQ_E_INDEX, GWQ_E_ISA (the library has no code
 * for it: it is older, or the library was built for others), _DEVICE, _MEMORY. */
int gwq_cuda_open(int device);
/* What the driver said last, in its words; "" if nothing. */
const char *gwq_cuda_error(void);

/* *p = memory of the device. GWQ_E_MEMORY. */
int gwq_cuda_alloc(uint64_t bytes, void **p);
void gwq_cuda_free(void *p);
int gwq_cuda_zero(void *p, uint64_t bytes);
int gwq_cuda_write(void *to, const void *from_host, uint64_t bytes);
/* Waits for everything before it. */
int gwq_cuda_read(void *to_host, const void *from, uint64_t bytes);
int gwq_cuda_copy(void *to, const void *from, uint64_t bytes);

/* *out = a copy of a matrix in the device's memory, in an order of its own: what gwq_matrix_check
 * says, GWQ_E_SHAPE for more than GWQ_CUDA_WIDEST columns, GWQ_E_COLUMN for more than outliers can
 * have there, GWQ_E_MEMORY. *bytes (or NULL)
 * gets what it takes. */
int gwq_cuda_upload(const gwq_matrix *host, gwq_matrix *out, uint64_t *bytes);
void gwq_cuda_forget(gwq_matrix *m);
/* *bytes = what gwq_cuda_upload would say; no device is asked, nor has to be there. */
int gwq_cuda_upload_bytes(const gwq_matrix *host, uint64_t *bytes);

/* As gwq_top, with the numbers: ids and values (k), of the host's memory. */
int gwq_cuda_best(const float *x, int64_t n, int64_t k, int32_t *ids, float *values);

/* What a batch's experts need. rows are of the host's memory, numbers from 0 to less than `most`
 * (GWQ_E_INDEX), the rows of x; work: as many int32. out (n, dim) = rows[i] of x (most, dim). */
int gwq_cuda_gather(const float *x, int64_t most, const int32_t *rows, int64_t n, int64_t dim,
                    int32_t *work, float *out);
/* out (n, dim) = sum over j of weights[i, j] * x[rows[i, j]], rows and weights (n, used). */
int gwq_cuda_combine(const float *x, int64_t most, const int32_t *rows, const float *weights,
                     int64_t n, int64_t used, int64_t dim, int32_t *work, float *out);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
