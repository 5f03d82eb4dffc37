// The kernels' own source on the emulated device, for fp32; layout.h holds the constants that fused.py would put before it.
#include "cuda_on_cpu.hpp"
#include "layout.h"

#define IO 32
#define DEVICE inline
#define KERNEL(BLOCKS) void
#define SHARED(name) float4* name = reinterpret_cast<float4*>(emulator::shared_memory.data())
typedef float io;
typedef float2 io2;
inline float low(io2 v) { return v.x; }
inline float high(io2 v) { return v.y; }
inline io2 pack(float a, float b) { return {a, b}; }
inline float exp2_(float x) { return std::exp2(x); }
inline float log2_(float x) { return std::log2(x); }
inline float reciprocal_(float x) { return 1.f / x; }
inline float less_(float a, float b, float yes, float no) { return a < b ? yes : no; }
template <int BYTES>
void copy_async(void* to, const void* from, bool there) {
    there ? std::memcpy(to, from, BYTES) : std::memset(to, 0, BYTES);
}
inline void end_copies() {}
template <int LATER>
void wait_for_copies() {}

#include "scan.cuh"
#include KERNELS

// A kernel's arguments as fused.py packs them, eight bytes each, two integers of 32 bits in one.
struct Words {
    const unsigned long long* next;
    bool second = false;
    template <typename Value>
    operator Value() {
        Value value;
        std::memcpy(&value, reinterpret_cast<const char*>(next) + (second ? 4 : 0), sizeof(Value));
        if (sizeof(Value) == 8 || second) ++next;
        second = sizeof(Value) == 4 && !second;
        return value;
    }
};

template <typename... Arguments>
void launch(void (*kernel)(Arguments...), int across, int down, int bytes, const unsigned long long* packed) {
    Words words{packed};
    std::tuple<Arguments...> arguments{static_cast<Arguments>(words)...};  // braces: from left to right
    emulator::launch(across, down, 32 * WARPS, bytes, [=] { std::apply(kernel, arguments); });
}

extern "C" void run_forward(int across, int down, int bytes, const unsigned long long* packed) {
    launch(ss2d_forward, across, down, bytes, packed);
}
extern "C" void run_backward(int across, int down, int bytes, const unsigned long long* packed) {
    launch(ss2d_backward, across, down, bytes, packed);
}
