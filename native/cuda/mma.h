/* Tensor cores, and copies into shared memory that threads need not wait for. shim.h has both for
 * the host.
 *
 * A product of 16 x 16 and 16 x 8 FP16 numbers is a warp's. With lane = 4g + t, a lane has
 *
 *     a[0], a[2]    row g: columns 2t, 2t+1 and 2t+8, 2t+9
 *     a[1], a[3]    row g+8: the same
 *     b0, b1        of b's column g: rows 2t, 2t+1 and 2t+8, 2t+9
 *     sum[0], [1]   row g, columns 2t and 2t+1
 *     sum[2], [3]   row g+8
 *
 * Which 16 columns of a matrix these are, and in which order, is all the same as long as a and b
 * agree. Products are exact, sums in float32, in an order that the hardware has: the same bits
 * every time, whatever the other rows and columns hold. */
#ifndef GWQ_CUDA_MMA_H
#define GWQ_CUDA_MMA_H
#include "device.h"

#ifdef __CUDACC__
/* volatile: all lanes have to come to it together, so that it must not move to where some do not */
DEVICE void multiply_add(float *sum, const uint32_t *a, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif __CUDA_ARCH__ >= 750
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

/* 16 bytes of global memory to shared memory; at once where the device cannot send them (7.5) */
DEVICE void send_copy(uint4 *to, const uint4 *from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
#else
    *to = *from;
#endif
}

/* The copies that a thread has sent since the last end are a group */
DEVICE void end_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* Wait for all of this thread's groups but the last `still_away` */
template <int still_away> DEVICE void await_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" : : "n"(still_away) : "memory");
#endif
}
#endif
#endif
