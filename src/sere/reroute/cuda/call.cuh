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

// 32 or 64 bits as they came from memory. They are looked at only after every other load is on its way.
struct Words {
    int low, high;

    SERE_INLINE Words fetch(const void* from, int place, bool wide) {
        const int* words = static_cast<const int*>(from) + (wide ? 2 * place : place);
        return Words{words[0], wide ? words[1] : 0};
    }

    __device__ __forceinline__ long long value(bool wide) const {
        const unsigned long long upper = static_cast<unsigned>(high), lower = static_cast<unsigned>(low);
        return wide ? static_cast<long long>(upper << 32 | lower) : low;
    }
};

template <class Id, class W>
SERE_INLINE int real_rows(const Call<Id, W>& call, Words words) {
    const long long N = call.num_tokens != nullptr ? words.value(call.given & WIDE_NUM_TOKENS) : call.N;
    return N < 0 ? 0 : N > call.T ? call.T : static_cast<int>(N);
}

// One lane's slot of a row: loaded first, judged later. A lane beyond K or T holds none.
template <class Id, class W>
struct Slot {
    long long at;                // in [T, K]; 0 where there is none, so that every lane may load
    Id id;
    typename W::Bits bits;
    Words words;                 // of the row's budget
    int row, budget;             // budget: -1 in a padding row
    bool there, inside, valid;

    // Which slot of its row a lane holds: lanes of one row stand side by side.
    SERE_INLINE int of(const Call<Id, W>& call, const Thread& thread) {
        return thread.lane & ((1 << call.lane_bits) - 1);
    }

    // No load hangs on another, on a branch or on N: together they are one trip to memory.
    SERE_INLINE Slot load(const Call<Id, W>& call, const Thread& thread, int first_row) {
        const int slot = of(call, thread);
        Slot mine = {};
        mine.row = first_row + (thread.lane >> call.lane_bits);
        mine.there = mine.row < call.T && slot < call.K;
        mine.at = mine.there ? static_cast<long long>(mine.row) * call.K + slot : 0;
        mine.id = call.ids[mine.at];
        mine.bits = call.weights[mine.at];
        if (call.budgets != nullptr) {
            mine.words = Words::fetch(call.budgets, mine.there ? mine.row : 0, call.given & WIDE_BUDGETS);
        }
        return mine;
    }

    __device__ __forceinline__ void judge(const Call<Id, W>& call, int N) {
        const long long asked =
            call.budgets != nullptr ? words.value(call.given & WIDE_BUDGETS) : call.select_top_k;
        const bool padding = row >= N || asked < 0;
        budget = !there ? 0 : padding ? -1 : asked > call.K ? call.K : static_cast<int>(asked);
        inside = there && id >= 0 && id < call.E;
        valid = inside && budget >= 0 && W::read(bits) != 0;
    }

    SERE_INLINE Slot read(const Call<Id, W>& call, const Thread& thread, int first_row, int N) {
        Slot mine = load(call, thread, first_row);
        mine.judge(call, N);
        return mine;
    }
};
