/* The memory roof of a device: how fast it reads, whatever is computed from it. */
#include "context.h"

enum { ROOF_THREADS = 256, ROOF_LOADS = 4, ROOF_BLOCKS = 4096 };

/* sums (blocks): of the 64-bit words that a block has read, 16 bytes at a time, ROOF_LOADS of them
 * on their way in every thread; `tail` words are left over behind the last 16 bytes. */
__global__ void read_kernel(const uint4 *data, int64_t count, int tail, uint64_t *sums) {
    __shared__ uint64_t of_thread[ROOF_THREADS];
    const int64_t step = (int64_t)gridDim.x * ROOF_THREADS;
    uint64_t sum = 0;
    int64_t i = (int64_t)blockIdx.x * ROOF_THREADS + threadIdx.x;
    for (; i + (ROOF_LOADS - 1) * step < count; i += ROOF_LOADS * step) {
        uint4 v[ROOF_LOADS];
#pragma unroll
        for (int k = 0; k < ROOF_LOADS; k++) v[k] = load_once(data + i + k * step);
#pragma unroll
        for (int k = 0; k < ROOF_LOADS; k++)
            sum += ((uint64_t)v[k].y << 32 | v[k].x) + ((uint64_t)v[k].w << 32 | v[k].z);
    }
    for (; i < count; i += step) {
        const uint4 v = load_once(data + i);
        sum += ((uint64_t)v.y << 32 | v.x) + ((uint64_t)v.w << 32 | v.z);
    }
    if (tail && blockIdx.x == 0 && threadIdx.x == 0) sum += *(const uint64_t *)(data + count);
    of_thread[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int k = 1; k < ROOF_THREADS; k++) sum += of_thread[k];
    sums[blockIdx.x] = sum;
}

/* Every source is compiled for the same architectures: one kernel speaks for all. */
cudaError_t has_code(void) {
    cudaFuncAttributes unused;
    return cudaFuncGetAttributes(&unused, read_kernel);
}

/* data: of the device, 16-byte aligned; streams and ahead say nothing here */
int gwq_read(gwq_pool *, const void *data, uint64_t bytes, int streams, int ahead, uint64_t *sum) {
    if (!data || !sum || streams < 1 || streams > 8 || ahead < 0) return GWQ_E_ARGUMENT;
    if ((uintptr_t)data % 16) return GWQ_E_ARGUMENT;
    std::lock_guard<std::mutex> hold(gwq_lock);
    TRY(ready());
    const cudaStream_t stream = gwq_context.stream;
    static uint64_t *sums;
    static uint64_t of_block[ROOF_BLOCKS];
    if (!sums) TRY_CUDA(cudaMalloc((void **)&sums, sizeof of_block));
    const int blocks = gwq_context.processors * 8 < ROOF_BLOCKS ? gwq_context.processors * 8
                                                                : (int)ROOF_BLOCKS;
    LAUNCH(read_kernel, (unsigned)blocks, ROOF_THREADS, stream, (const uint4 *)data,
           (int64_t)(bytes / 16), (int)(bytes % 16 / 8), sums);
    TRY_CUDA(cudaMemcpyAsync(of_block, sums, (size_t)blocks * sizeof *sums, cudaMemcpyDeviceToHost,
                             stream));
    TRY_CUDA(cudaStreamSynchronize(stream));
    *sum = 0;
    for (int i = 0; i < blocks; i++) *sum += of_block[i];
    return status_of(cudaGetLastError());
}
