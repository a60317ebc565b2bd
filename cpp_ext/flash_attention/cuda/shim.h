// Runs kernels on the CPU, for tests without a GPU: each thread of a block is a fiber, which gives
// way to the others where it waits for them. Blocks run one after another.
//
// What it shows: indices, bounds, waits, and arithmetic in float32. What it does not: races between
// threads that no barrier separates, and the speed of anything.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#define __device__
#define __global__ static
#define __grid_constant__
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// ---- the runtime --------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
using cudaStream_t = void*;
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
// The one that the thread has chosen; only cuda:0 runs anything.
inline thread_local int chosen_device = 0;
inline cudaError_t cudaGetDevice(int* device) {
    *device = chosen_device;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    chosen_device = device;
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 4;
    return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }

// ---- threads ------------------------------------------------------------------------------------

inline thread_local dim3 threadIdx, blockIdx, blockDim;

namespace tensor_ops::flash::cuda::shim {

inline constexpr std::size_t stack_bytes = 256 * 1024;
inline constexpr unsigned lanes = 32;

// A place where `all` threads wait for each other.
struct Meeting {
    unsigned all = 0, arrived = 0, times = 0;
};

struct Fiber {
    jmp_buf state;
    std::vector<char> stack;
    bool begun = false, ended = false;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Meeting> warps;
    std::vector<float> lane_values;
    std::vector<std::byte> memory;
    Meeting whole;
    unsigned current = 0;
    jmp_buf scheduler;
    ucontext_t entry, outside;
    void (*run)(const void*) = nullptr;
    const void* call = nullptr;
};
inline thread_local Block* block = nullptr;

inline unsigned char* shared_memory() {
    const auto address = reinterpret_cast<std::uintptr_t>(block->memory.data());
    return reinterpret_cast<unsigned char*>(address + (64 - address % 64) % 64);
}

inline void give_way() {
    if (!_setjmp(block->fibers[block->current].state)) _longjmp(block->scheduler, 1);
}

inline void meet(Meeting& meeting) {
    const unsigned time = meeting.times;
    if (++meeting.arrived == meeting.all) {
        meeting.arrived = 0;
        ++meeting.times;
    }
    while (meeting.times == time) give_way();
}

inline void begin_fiber() {
    block->run(block->call);
    block->fibers[block->current].ended = true;
    _longjmp(block->scheduler, 1);
}

inline void resume(unsigned i) {
    Block& b = *block;
    b.current = i;
    threadIdx = {i, 0, 0};
    if (_setjmp(b.scheduler)) return;
    Fiber& fiber = b.fibers[i];
    if (fiber.begun) _longjmp(fiber.state, 1);
    fiber.begun = true;
    getcontext(&b.entry);
    b.entry.uc_stack.ss_sp = fiber.stack.data();
    b.entry.uc_stack.ss_size = fiber.stack.size();
    b.entry.uc_link = nullptr;
    makecontext(&b.entry, begin_fiber, 0);
    swapcontext(&b.outside, &b.entry);
}

template <class Arguments>
void run(void (*kernel)(Arguments), dim3 grid, int threads, std::size_t shared_bytes,
         const Arguments& arguments) {
    struct Call {
        void (*kernel)(Arguments);
        const Arguments& arguments;
    } call{kernel, arguments};
    Block b;
    const auto n = static_cast<unsigned>(threads);
    b.fibers.resize(n);
    for (Fiber& fiber : b.fibers) fiber.stack.resize(stack_bytes);
    b.warps.resize((n + lanes - 1) / lanes);
    b.lane_values.resize(n);
    b.memory.resize(shared_bytes + 64);
    b.call = &call;
    b.run = [](const void* p) {
        const Call& own = *static_cast<const Call*>(p);
        own.kernel(own.arguments);
    };
    block = &b;
    blockDim = {n, 1, 1};
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = {x, y, z};
                b.whole = {n, 0, 0};
                for (Meeting& warp : b.warps) warp = {lanes, 0, 0};
                for (Fiber& fiber : b.fibers) fiber.begun = fiber.ended = false;
                for (bool more = true; more;) {
                    more = false;
                    for (unsigned i = 0; i < n; ++i) {
                        if (b.fibers[i].ended) continue;
                        resume(i);
                        more |= !b.fibers[i].ended;
                    }
                }
            }
    block = nullptr;
}

}  // namespace tensor_ops::flash::cuda::shim

inline void __syncthreads() {
    using namespace tensor_ops::flash::cuda;
    shim::meet(shim::block->whole);
}

inline float __shfl_xor_sync(unsigned, float x, int mask) {
    using namespace tensor_ops::flash::cuda;
    shim::Block& b = *shim::block;
    const unsigned own = b.current;
    b.lane_values[own] = x;
    shim::meet(b.warps[own / shim::lanes]);
    const float other = b.lane_values[own ^ static_cast<unsigned>(mask)];
    shim::meet(b.warps[own / shim::lanes]);
    return other;
}
