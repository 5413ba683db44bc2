/* CUDA's runtime on the host, and what tests make of it. */
#include "shim.h"
#include <stdio.h>
#include <sys/mman.h>
#include <mutex>
#include <set>
#include <string>

namespace shim {
size_t memory = (size_t)4 << 30;
int devices = 1, capability = 90, driver = 13000, code = 1, integrated = 0;
graph *captured;
static cudaError_t last_error = cudaSuccess;

void not_captured(const char *what) {
    if (captured) stop((std::string(what) + " while a stream is captured").c_str());
}

bool can_start(const void *kernel, dim3 grid, dim3 block) {
    static std::mutex of_loaded;
    static std::set<const void *> loaded;
    const bool some = grid.x && grid.y && grid.z && block.x && block.y && block.z;
    if (!some || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 ||
        (uint64_t)block.x * block.y * block.z > MOST_THREADS) {
        last_error = cudaErrorInvalidConfiguration;
        return false;
    }
    std::lock_guard<std::mutex> hold(of_loaded);
    if (!loaded.count(kernel)) not_captured("loading a kernel");
    loaded.insert(kernel);
    return true;
}
} // namespace shim

cudaError_t cudaGetLastError() {
    const cudaError_t error = shim::last_error;
    shim::last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation: return "the shim is out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoKernelImageForDevice: return "the shim has no code for this device";
    default: return "another error of the shim";
    }
}

/* For tests, which open the library */
#pragma GCC visibility push(default)
extern "C" void gwq_shim_reverse(int on) { shim::reverse(on); }
extern "C" void gwq_shim_memory(size_t bytes) { shim::memory = bytes; }
extern "C" size_t gwq_shim_room(void) { return shim::memory; }
extern "C" void gwq_shim_machine(int devices, int capability) {
    shim::devices = devices;
    shim::capability = capability;
}
extern "C" void gwq_shim_driver(int version, int code) {
    shim::driver = version;
    shim::code = code;
}
extern "C" void gwq_shim_integrated(int on) { shim::integrated = on; }
#pragma GCC visibility pop

/* --- memory and devices ---------------------------------------------------------------------- */

/* Memory that ends where an inaccessible page begins, up to 16 bytes: what reads or writes beyond
 * it crashes. Before it lies what cudaFree has to know. */
struct region {
    void *start;
    size_t length, bytes;
};

cudaError_t cudaMalloc(void **p, size_t bytes) {
    const size_t page = 4096, used = (bytes + 15) / 16 * 16;
    const size_t length = (sizeof(region) + used + page - 1) / page * page + page;
    shim::not_captured("cudaMalloc");
    if (bytes > shim::memory) return cudaErrorMemoryAllocation;
    void *start = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return cudaErrorMemoryAllocation;
    mprotect((char *)start + length - page, page, PROT_NONE);
    *p = (char *)start + length - page - used;
    ((region *)*p)[-1] = {start, length, bytes};
    memset(*p, 0xa5, bytes);
    shim::memory -= bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p) {
    shim::not_captured("cudaFree");
    if (!p) return cudaSuccess;
    const region r = ((region *)p)[-1];
    shim::memory += r.bytes;
    munmap(r.start, r.length);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *free = shim::memory;
    *total = (size_t)4 << 30;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *bus, int room, int device) {
    snprintf(bus, (size_t)room, "0000:%02x:00.0", 0x3b + device);
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int) {
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "host shim");
    out->major = shim::capability / 10;
    out->minor = shim::capability % 10;
    out->multiProcessorCount = 2;
    out->integrated = shim::integrated;
    out->totalGlobalMem = (size_t)4 << 30;
    return cudaSuccess;
}
