// The few words of CUDA that ss2d.cu needs, so that it compiles without any header.
#define DEVICE __device__ __forceinline__
#define KERNEL(BLOCKS) __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
#define SHARED(name) extern __shared__ float4 name[]

DEVICE float exp2_(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float log2_(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal_(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float less_(float a, float b, float yes, float no) {  // a < b ? yes : no, never as a branch
    float y;
    asm("{ .reg .pred p; setp.lt.f32 p, %1, %2; selp.f32 %0, %3, %4, p; }" : "=f"(y) : "f"(a), "f"(b), "f"(yes), "f"(no));
    return y;
}

// Copies BYTES (4, 8 or 16) from global to shared memory while the thread goes on, or writes zeros where nothing is there.
template <int BYTES>
DEVICE void copy_async(void* to, const void* from, bool there) {
    unsigned shared = unsigned(__cvta_generic_to_shared(to));
    int bytes = there ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(from), "n"(BYTES), "r"(bytes) : "memory");
}
DEVICE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LATER>
DEVICE void wait_for_copies() {  // but not for the last groups
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

// io: an element of x, delta, B, C, y; io2: two neighbours.
#if IO == 32
typedef float io;
typedef float2 io2;
DEVICE float low(io2 v) { return v.x; }
DEVICE float high(io2 v) { return v.y; }
DEVICE io2 pack(float a, float b) { return make_float2(a, b); }
#else
typedef unsigned short io;
typedef unsigned io2;
#if IO == 16  // IEEE half
DEVICE float to_float(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
DEVICE float low(io2 v) { return to_float((unsigned short)(v & 0xffffu)); }
DEVICE float high(io2 v) { return to_float((unsigned short)(v >> 16)); }
DEVICE io2 pack(float a, float b) {
    io2 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
    return y;
}
#else  // bfloat16
DEVICE float low(io2 v) { return __uint_as_float(v << 16); }
DEVICE float high(io2 v) { return __uint_as_float(v & 0xffff0000u); }
DEVICE io2 pack(float a, float b) {
    io2 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
    return y;
}
#endif
#endif
