// The CUDA intrinsics that the kernel uses, on a CPU: enough to run its own source, nothing more.
//
// A block's threads are fibers of one thread, or, with SHIM_THREADS, threads of the system. Blocks run one after
// the other. Every collective checks that the lanes that meet there mean the same operation.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
// The flags of a batch: the same value from many threads.
#define SERE_MARK(flag) __atomic_store_n(&(flag), 1, __ATOMIC_RELAXED)

namespace shim {

enum Operation { NOTHING, BLOCK, BALLOT, SHUFFLE, SHUFFLE_XOR };

// Where threads meet. Two buffers suffice: none can be two meetings ahead of the slowest.
struct Meeting {
    std::atomic<int> arrived{0}, round{0};
    std::atomic<int> operation{NOTHING};
    uint64_t values[2][32];
};

struct Place {
    unsigned index;  // in the block
    Meeting *warp, *block;
    int warp_size, block_size;
};

Place& self();                    // the thread that runs now
void wait();                      // lets the others run; throws in fibers when nobody can
void note_progress();
[[noreturn]] void refuse(const char* why);

// Returns the round of the meeting, once all are there.
inline int meet(Meeting& meeting, int parties, Operation operation) {
    const int round = meeting.round.load(std::memory_order_acquire);
    int expected = NOTHING;
    if (!meeting.operation.compare_exchange_strong(expected, operation) && expected != operation) {
        refuse("threads of one warp or block meet in different operations");
    }
    note_progress();
    if (meeting.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == parties) {
        meeting.arrived.store(0, std::memory_order_relaxed);
        meeting.operation.store(NOTHING, std::memory_order_relaxed);
        meeting.round.store(round + 1, std::memory_order_release);
    } else {
        while (meeting.round.load(std::memory_order_acquire) == round) wait();
    }
    return round;
}

// All lanes' values, after they have met.
inline const uint64_t* exchange(uint64_t value, Operation operation) {
    Place& me = self();
    uint64_t* values = me.warp->values[me.warp->round.load(std::memory_order_acquire) & 1];
    values[me.index % 32] = value;
    meet(*me.warp, me.warp_size, operation);
    return values;
}

template <class T>
uint64_t pack(T value) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T>
T unpack(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace shim

struct ThreadIndex {
    struct { operator unsigned() const { return shim::self().index; } } x;
};
struct BlockSize {
    struct { operator unsigned() const { return static_cast<unsigned>(shim::self().block_size); } } x;
};
struct Plain {
    unsigned x;
};
inline const ThreadIndex threadIdx{};
inline const BlockSize blockDim{};
inline Plain blockIdx{0}, gridDim{1};  // the same for all threads that run

inline void __syncthreads() {
    shim::Place& me = shim::self();
    shim::meet(*me.block, me.block_size, shim::BLOCK);
}

inline unsigned __ballot_sync(unsigned, bool vote) {
    const uint64_t* votes = shim::exchange(vote, shim::BALLOT);
    unsigned word = 0;
    for (int lane = 0; lane < shim::self().warp_size; ++lane) word |= static_cast<unsigned>(votes[lane]) << lane;
    return word;
}

template <class T>
T __shfl_sync(unsigned, T value, int source, int width = 32) {
    const uint64_t* values = shim::exchange(shim::pack(value), shim::SHUFFLE);
    const int lane = static_cast<int>(shim::self().index % 32);
    return shim::unpack<T>(values[(lane & ~(width - 1)) + source % width]);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    const uint64_t* values = shim::exchange(shim::pack(value), shim::SHUFFLE_XOR);
    return shim::unpack<T>(values[(shim::self().index % 32) ^ static_cast<unsigned>(mask)]);
}

template <class T>
T atomicAdd(T* address, T value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

inline int atomicMin(int* address, int value) {
    int old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value < old && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<unsigned>(bits)); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline float __uint_as_float(unsigned bits) { return shim::unpack<float>(bits); }
inline unsigned __float_as_uint(float value) { return static_cast<unsigned>(shim::pack(value)); }
inline int __float_as_int(float value) { return static_cast<int>(shim::pack(value)); }
inline long long __double_as_longlong(double value) { return static_cast<long long>(shim::pack(value)); }
inline int __float2int_rn(float value) { return static_cast<int>(std::lrintf(value)); }
