/* What CUDA's runtime has, as far as the kernels' callers use it: memory, streams, graphs,
 * devices. */
#ifndef GWQ_CUDA_SHIM_RUNTIME_H
#define GWQ_CUDA_SHIM_RUNTIME_H
#include "shim.h"

typedef int cudaStream_t;
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorUnsupportedPtxVersion = 222
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, integrated;
    size_t totalGlobalMem;
};
struct cudaFuncAttributes {};

namespace shim {
extern size_t memory; /* bytes that cudaMalloc still gives */
/* What the machine seems to have: `devices` below 0, no driver; whether there is `code` for it */
extern int devices, capability, driver, code, integrated;
/* Ends the process, with what is not allowed, if a stream is captured */
void not_captured(const char *what);
}
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMemGetInfo(size_t *free, size_t *total);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int device);
DEVICE cudaError_t cudaGetDeviceCount(int *count) {
    *count = shim::devices;
    return shim::devices < 0 ? cudaErrorInsufficientDriver
           : shim::devices   ? cudaSuccess
                             : cudaErrorNoDevice;
}
DEVICE cudaError_t cudaDriverGetVersion(int *version) {
    return *version = shim::driver, cudaSuccess;
}
DEVICE cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char *bus, int room, int device);
template <class kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, kernel) {
    return shim::code ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}
DEVICE cudaError_t cudaSetDevice(int) { return cudaSuccess; }
DEVICE cudaError_t cudaStreamCreate(cudaStream_t *s) { return *s = 0, cudaSuccess; }
DEVICE cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return shim::not_captured("waiting"), cudaSuccess;
}
cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t error);
DEVICE cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
    shim::not_captured("a copy");
    if (bytes) memmove(to, from, bytes);
    return cudaSuccess;
}
DEVICE cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) {
    shim::not_captured("filling memory");
    if (bytes) memset(to, value, bytes);
    return cudaSuccess;
}

typedef shim::graph *cudaGraph_t, *cudaGraphExec_t;
enum { cudaStreamCaptureModeThreadLocal };
DEVICE cudaError_t cudaStreamBeginCapture(cudaStream_t, int) {
    shim::captured = new shim::graph;
    return cudaSuccess;
}
DEVICE cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *out) {
    *out = shim::captured;
    shim::captured = nullptr;
    return cudaSuccess;
}
DEVICE cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, int) {
    *out = new shim::graph(*graph);
    return cudaSuccess;
}
DEVICE cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    for (auto &start : *graph) start();
    return cudaSuccess;
}
DEVICE cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
DEVICE cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, cudaSuccess; }
#endif
