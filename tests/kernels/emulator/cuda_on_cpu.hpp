// Runs a CUDA kernel's source on a CPU: every thread of a block is a fiber, and what CUDA does together (shuffles, barriers)
// waits for the others. For tests of small shapes: right, not fast.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <vector>

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct Index { int x, y; };

namespace emulator {
struct Meeting { int arrived = 0; long generation = 0; };
struct Fiber { ucontext_t context; bool done; };
inline std::vector<Fiber> fibers;
inline std::vector<double> slots;
inline Meeting block_meeting;
inline std::vector<Meeting> warp_meetings;
inline ucontext_t scheduler;
inline int current, running;
inline std::vector<char> shared_memory;
inline std::function<void()> body;

inline void meet(Meeting& meeting, int expected) {
    long mine = meeting.generation;
    if (++meeting.arrived == expected) meeting.arrived = 0, ++meeting.generation;
    while (meeting.generation == mine) swapcontext(&fibers[current].context, &scheduler);
}
inline void enter() {
    body();
    fibers[current].done = true;
    --running;
    swapcontext(&fibers[current].context, &scheduler);
}
}  // namespace emulator

inline Index threadIdx, blockIdx, gridDim, blockDim;

inline void __syncwarp() { emulator::meet(emulator::warp_meetings[emulator::current / 32], 32); }
inline void __syncthreads() { emulator::meet(emulator::block_meeting, int(emulator::fibers.size())); }
template <typename Value>
Value __shfl_sync(unsigned, Value value, int from) {
    int thread = emulator::current;
    emulator::slots[thread] = value;
    __syncwarp();
    Value other = Value(emulator::slots[thread / 32 * 32 + (from & 31)]);
    __syncwarp();
    return other;
}
inline float __shfl_xor_sync(unsigned, float value, int bits) { return __shfl_sync(0, value, (emulator::current & 31) ^ bits); }
using std::max;
using std::min;
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }

namespace emulator {
inline void launch(int blocks_x, int blocks_y, int threads, size_t bytes, std::function<void()> kernel) {
    static std::vector<std::vector<char>> stacks;
    const size_t stack = 256 * 1024;
    body = std::move(kernel);
    gridDim = {blocks_x, blocks_y}, blockDim = {threads, 1};
    for (int by = 0; by < blocks_y; ++by)
        for (int bx = 0; bx < blocks_x; ++bx) {
            blockIdx = {bx, by};
            shared_memory.assign(bytes, char(0xff));  // NaN: nothing may be read before it is written
            fibers.assign(threads, {});
            slots.assign(threads, 0.);
            stacks.resize(threads);
            block_meeting = {};
            warp_meetings.assign(threads / 32, {});
            running = threads;
            for (int t = 0; t < threads; ++t) {
                stacks[t].resize(stack);
                getcontext(&fibers[t].context);
                fibers[t].context.uc_stack.ss_sp = stacks[t].data();
                fibers[t].context.uc_stack.ss_size = stack;
                fibers[t].context.uc_link = nullptr;
                makecontext(&fibers[t].context, enter, 0);
            }
            while (running)
                for (int t = 0; t < threads; ++t)
                    if (!fibers[t].done) {
                        current = t;
                        threadIdx = {t, 0};
                        swapcontext(&scheduler, &fibers[t].context);
                    }
        }
}
}  // namespace emulator
