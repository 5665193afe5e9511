// What one launch is given, what a block shares, and how a lane reads its slot.

#include "numbers.cuh"

constexpr int MOST_EXPERTS = 1024;
constexpr unsigned ALL_LANES = 0xffffffffu;
enum Merge { MERGE_NONE, MERGE_SAME, MERGE_DISTINCT, MERGE_SENTINEL };
enum Given { ACTIVE_TARGETS = 1, WIDE_BUDGETS = 2, WIDE_NUM_TOKENS = 4 };

// Threads write the same 1 into a flag at the same time, which the device orders somehow and C++ does not allow:
// a host that runs this source brings its own form.
#ifndef SERE_MARK
#define SERE_MARK(flag) ((flag) = 1)
#endif

// Pointers that may be null: scale, budgets, num_tokens (N counts then), counters.
template <class Id, class W>
struct Call {
    const Id* ids;                      // [T, K]
    const typename W::Bits* weights;    // [T, K]
    Id* new_ids;                        // [T, K]
    typename W::Bits* new_weights;      // [T, K]
    const int* order;                   // [E, E], most similar first
    const int* count;                   // [E], of them at or above the threshold
    const unsigned char* keep;          // [E]
    const float* scale;                 // [E, E]
    const void* budgets;                // [T], int or long long
    const void* num_tokens;             // [1], int or long long
    unsigned long long* counters;       // [7]
    int T, K, E, N, select_top_k, min_active, merge, given;
    int lane_bits;                      // 2^lane_bits lanes of a warp for one row: the power of two from K up
    long long sentinel;
};

struct Block {
    unsigned char occurs[MOST_EXPERTS], primary[MOST_EXPERTS], critical[MOST_EXPERTS], keep[MOST_EXPERTS];
    unsigned char place[MOST_EXPERTS];      // among the active, 255 from the 32nd on
    unsigned short target[MOST_EXPERTS];    // the expert itself unless it is replaced
    long long mass[MOST_EXPERTS];
    unsigned active_words[MOST_EXPERTS / 32];
    unsigned short lowest_active[32];
    int before, primaries, criticals, lowest;
    int rows, slots, moved;
};

// Where a thread stands.
struct Thread {
    int index, threads, lane, warp, warps;
};

SERE_INLINE Thread this_thread() {
    const int index = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    return Thread{index, threads, index & 31, index >> 5, threads >> 5};
}

template <class Id, class W>
SERE_INLINE int clamped_budget(const Call<Id, W>& call, int row) {
    if (call.budgets == nullptr) return call.select_top_k;
    const long long budget = call.given & WIDE_BUDGETS ? static_cast<const long long*>(call.budgets)[row]
                                                       : static_cast<const int*>(call.budgets)[row];
    return budget < 0 ? -1 : budget > call.K ? call.K : static_cast<int>(budget);
}

template <class Id, class W>
SERE_INLINE int real_rows(const Call<Id, W>& call) {
    long long N = call.N;
    if (call.num_tokens != nullptr) {
        N = call.given & WIDE_NUM_TOKENS ? *static_cast<const long long*>(call.num_tokens)
                                         : *static_cast<const int*>(call.num_tokens);
    }
    return N < 0 ? 0 : N > call.T ? call.T : static_cast<int>(N);
}

// One lane's slot of a row. A lane beyond K or T holds none.
template <class Id, class W>
struct Slot {
    long long at;                // in [T, K]
    Id id;
    typename W::Bits bits;
    int budget;                  // -1 in a padding row
    bool there, inside, valid;

    // Which slot of its row a lane holds: lanes of one row stand side by side.
    SERE_INLINE int of(const Call<Id, W>& call, const Thread& thread) {
        return thread.lane & ((1 << call.lane_bits) - 1);
    }

    SERE_INLINE Slot read(const Call<Id, W>& call, const Thread& thread, int first_row, int N) {
        const int slot = of(call, thread), row = first_row + (thread.lane >> call.lane_bits);
        Slot mine = {};
        mine.there = row < call.T && slot < call.K;
        if (!mine.there) return mine;
        mine.at = static_cast<long long>(row) * call.K + slot;
        mine.id = call.ids[mine.at];
        mine.bits = call.weights[mine.at];
        mine.budget = row < N ? clamped_budget(call, row) : -1;
        mine.inside = mine.id >= 0 && mine.id < call.E;
        mine.valid = mine.inside && mine.budget >= 0 && W::read(mine.bits) != 0;
        return mine;
    }
};
