/* Devices, and their memory. */
#include "context.h"
#include <stdio.h>
#include <string.h>

#ifndef GWQ_ABI_HASH
#error "build with native/build.py, which defines GWQ_ABI_HASH"
#endif

enum { OLDEST = 75 }; /* compute capability that there is code for, major * 10 + minor */

std::mutex gwq_lock;
context gwq_context = {-1, 0, 0, nullptr, 0};
static char last_error[256];

const char *gwq_abi(void) { return GWQ_ABI_HASH; }

/* What CUDA says of a driver that is missing or too old is the same */
static void say_driver(void) {
    int driver = 0, wanted = 0;
    cudaDriverGetVersion(&driver); /* 0: none */
    cudaRuntimeGetVersion(&wanted);
    if (driver)
        snprintf(last_error, sizeof last_error,
                 "the NVIDIA driver is of CUDA %d.%d, but the library of %d.%d", driver / 1000,
                 driver % 1000 / 10, wanted / 1000, wanted % 1000 / 10);
    else
        snprintf(last_error, sizeof last_error, "there is no NVIDIA driver");
}

int status_of(cudaError_t error) {
    if (error == cudaSuccess) return GWQ_OK;
    if (error == cudaErrorInsufficientDriver) say_driver();
    else snprintf(last_error, sizeof last_error, "%s", cudaGetErrorString(error));
    cudaGetLastError(); /* what can be forgotten is */
    return error == cudaErrorMemoryAllocation ? GWQ_E_MEMORY : GWQ_E_DEVICE;
}

static int count_devices(int *count) {
    *count = 0;
    const cudaError_t error = cudaGetDeviceCount(count);
    if (error != cudaErrorNoDevice) return status_of(error);
    cudaGetLastError();
    return GWQ_OK;
}

static int describe(int device, gwq_cuda_device *out) {
    int count;
    TRY(count_devices(&count));
    if (device < 0 || device >= count) return GWQ_E_INDEX;
    cudaDeviceProp p;
    TRY_CUDA(cudaGetDeviceProperties(&p, device));
    memset(out, 0, sizeof *out);
    memcpy(out->name, p.name, sizeof out->name);
    out->name[sizeof out->name - 1] = 0;
    out->major = p.major;
    out->minor = p.minor;
    out->processors = p.multiProcessorCount;
    out->usable = 10 * p.major + p.minor >= OLDEST;
    out->integrated = p.integrated;
    out->bytes = p.totalGlobalMem;
    return status_of(cudaDeviceGetPCIBusId(out->bus, sizeof out->bus, device));
}

static int open(int device) {
    gwq_cuda_device found;
    TRY(describe(device, &found));
    if (!found.usable) return GWQ_E_ISA;
    if (gwq_context.device == device) return GWQ_OK;
    if (gwq_context.device >= 0) return GWQ_E_ARGUMENT; /* matrices lie on the other one */
    TRY_CUDA(cudaSetDevice(device));
    const cudaError_t error = has_code();
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
        error == cudaErrorUnsupportedPtxVersion) {
        status_of(error);
        return GWQ_E_ISA;
    }
    TRY_CUDA(error);
    TRY_CUDA(cudaStreamCreate(&gwq_context.stream));
    void *memory;
    TRY_CUDA(cudaMalloc(&memory, sizeof(step)));
    gwq_context.now = (step *)memory;
    TRY_CUDA(cudaMemsetAsync(memory, 0, sizeof(step), gwq_context.stream));
    gwq_context.device = device;
    gwq_context.processors = found.processors;
    return GWQ_OK;
}

int ready(void) {
    if (gwq_context.device < 0) return open(0);
    return status_of(cudaSetDevice(gwq_context.device)); /* of this thread */
}

int finished(void) {
    int fault = 0;
    TRY_CUDA(cudaGetLastError());
    TRY_CUDA(cudaMemcpyAsync(&fault, &gwq_context.now->fault, sizeof fault, cudaMemcpyDeviceToHost,
                             gwq_context.stream));
    TRY_CUDA(cudaStreamSynchronize(gwq_context.stream));
    if (!fault) return GWQ_OK;
    TRY_CUDA(cudaMemsetAsync(&gwq_context.now->fault, 0, sizeof fault, gwq_context.stream));
    return GWQ_E_FINITE;
}

/* --- the ABI ---------------------------------------------------------------------------------- */

const char *gwq_cuda_error(void) { return last_error; }

int gwq_cuda_devices(void) {
    std::lock_guard<std::mutex> hold(gwq_lock);
    int count;
    return count_devices(&count) == GWQ_OK ? count : -1;
}

int gwq_cuda_describe(int device, gwq_cuda_device *out) {
    if (!out) return GWQ_E_ARGUMENT;
    std::lock_guard<std::mutex> hold(gwq_lock);
    return describe(device, out);
}

int gwq_cuda_room(int device, uint64_t *bytes) {
    if (!bytes) return GWQ_E_ARGUMENT;
    std::lock_guard<std::mutex> hold(gwq_lock);
    gwq_cuda_device found;
    TRY(describe(device, &found));
    TRY_CUDA(cudaSetDevice(device)); /* whatever else is called sets its own */
    size_t room = 0, total = 0;
    TRY_CUDA(cudaMemGetInfo(&room, &total));
    *bytes = room;
    return GWQ_OK;
}

int gwq_cuda_open(int device) {
    std::lock_guard<std::mutex> hold(gwq_lock);
    return open(device);
}

int gwq_cuda_alloc(uint64_t bytes, void **p) {
    if (!p) return GWQ_E_ARGUMENT;
    std::lock_guard<std::mutex> hold(gwq_lock);
    TRY(ready());
    return status_of(cudaMalloc(p, bytes ? bytes : 1));
}

void gwq_cuda_free(void *p) {
    std::lock_guard<std::mutex> hold(gwq_lock);
    if (p && !ready()) cudaFree(p); /* which waits for what uses it */
}

int gwq_cuda_zero(void *p, uint64_t bytes) {
    std::lock_guard<std::mutex> hold(gwq_lock);
    TRY(ready());
    return bytes ? status_of(cudaMemsetAsync(p, 0, bytes, gwq_context.stream)) : GWQ_OK;
}

static int copy(void *to, const void *from, uint64_t bytes, cudaMemcpyKind kind) {
    if (bytes && (!to || !from)) return GWQ_E_ARGUMENT;
    std::lock_guard<std::mutex> hold(gwq_lock);
    TRY(ready());
    if (bytes) TRY_CUDA(cudaMemcpyAsync(to, from, bytes, kind, gwq_context.stream));
    return kind == cudaMemcpyDeviceToDevice ? GWQ_OK
                                            : status_of(cudaStreamSynchronize(gwq_context.stream));
}

int gwq_cuda_write(void *to, const void *from_host, uint64_t bytes) {
    return copy(to, from_host, bytes, cudaMemcpyHostToDevice);
}
int gwq_cuda_read(void *to_host, const void *from, uint64_t bytes) {
    return copy(to_host, from, bytes, cudaMemcpyDeviceToHost);
}
int gwq_cuda_copy(void *to, const void *from, uint64_t bytes) {
    return copy(to, from, bytes, cudaMemcpyDeviceToDevice);
}
