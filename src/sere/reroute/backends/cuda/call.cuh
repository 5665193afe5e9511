// What one launch is given, what a block shares, and how a lane reads its slot.

#include "numbers.cuh"

constexpr int MOST_EXPERTS = 1024, MOST_THREADS = 1024;
constexpr int WARP = 32;             // lanes of a warp, and bits of a word of marks
constexpr int GROUP = 8;             // experts whose lists are interleaved
constexpr int LAYER_BUDGET = -2;     // of a row that has the layer's S
constexpr int PADDING_BUDGET = -1;   // of a padding row
constexpr int LIMIT_ROWS = 256;      // M is given for this many numbers of rows
constexpr int LIMITS = 258;          // S, these, and -τ
constexpr double GAIN_UNITS = 1073741824.0;  // of τ, to 1
constexpr int NO_POSITION = 255;     // of an expert that is not among the lowest active ones
constexpr unsigned ALL_LANES = 0xffffffffu;
enum Merge { MERGE_NONE, MERGE_SAME, MERGE_DISTINCT, MERGE_SENTINEL };
enum Given { ACTIVE_TARGETS = 1, WIDE_BUDGETS = 2, WIDE_NUM_TOKENS = 4, CAP = 8 };
// In the order of the counters. DISTINCT_AFTER is P and C together, added up at the end.
enum Count { STEPS, ROWS, DISTINCT_BEFORE, DISTINCT_AFTER, SLOTS, SLOTS_REROUTED, SLOTS_COMPUTED, CRITICAL, COUNTS };

// Threads write the same 1 into a flag at the same time. A device allows that for volatile stores, which are the same
// instruction; C++ does not: a host that runs this source brings its own form.
#ifndef SERE_MARK
#define SERE_MARK(flag) (*static_cast<volatile unsigned char*>(&(flag)) = 1)
#endif

// One position of the interleaved lists of eight experts.
struct alignas(16) Eight {
    unsigned pairs[4];

    __device__ __forceinline__ int operator[](int i) const { return pairs[i / 2] >> 16 * (i % 2) & 0xffffu; }

    // The same where ``i`` is known at run time only: without an address, so that the pairs stay in registers.
    __device__ __forceinline__ int mine(int i) const {
        const unsigned low = i & 2 ? pairs[1] : pairs[0], high = i & 2 ? pairs[3] : pairs[2];
        return (i & 4 ? high : low) >> 16 * (i & 1) & 0xffffu;
    }
};

// Four keys of the order in which experts become primary.
struct alignas(16) Four {
    unsigned keys[4];
};

// What is known of an expert's substitute: the factor for a slot's weight, and the similarity.
struct alignas(8) Pair {
    float factor, similarity;
};

// Pointers that may be null: substitutes, budgets (all rows have S then), num_tokens (N counts then), counters.
template <class Id, class W>
struct Call {
    const Id* ids;                      // [T, K]
    const typename W::Bits* weights;    // [T, K]
    Id* new_ids;                        // [T, K]
    typename W::Bits* new_weights;      // [T, K]
    const Eight* lists;                 // [E / 8, E / 32, 32], rounded up; most similar first, ends with the expert
    const int* limits;                  // [LIMITS]: S, then M for a step of 1, 2, ... rows, then -τ in GAIN_UNITS
    const unsigned char* keep;          // [E]
    const float* sensitivity;           // [E], in (0, 1]
    const Pair* substitutes;            // [E, E]
    const void* budgets;                // [T], int or long long
    const void* num_tokens;             // [1], int or long long
    unsigned long long* counters;       // [COUNTS]
    int T, K, E, N, merge, given;
    int lane_bits;                      // 2^lane_bits lanes for one row: the power of two from K up, at least 8
    long long sentinel;
};

struct Block {
    // A key for each expert that is chosen, in any order, then zeros.
    union {
        unsigned keys[MOST_EXPERTS];
        Four fours[MOST_EXPERTS / 4];
    };
    // Chosen: in a slot of a row that is not protected. Beside: in one of a protected row. An expert that occurs is one
    // or both. Primary: of P; until the order is known, beside, in a kept slot of another row, or kept by the layer.
    unsigned char chosen[MOST_EXPERTS], beside[MOST_EXPERTS], primary[MOST_EXPERTS], critical[MOST_EXPERTS];
    unsigned char keep[MOST_EXPERTS];
    unsigned char position[MOST_EXPERTS];   // among the lowest active experts, or NO_POSITION
    unsigned short target[MOST_EXPERTS];    // the expert itself unless it is replaced
    unsigned mass_low[MOST_EXPERTS], mass_high[MOST_EXPERTS];
    float sensitivity[MOST_EXPERTS];
    unsigned active_words[MOST_EXPERTS / WARP];
    unsigned short lowest_active[WARP];
    int limits[1 + LIMIT_ROWS];
    // free_rows: real ones that are not protected. Experts: chosen; of these kept by the layer (fixed); of these fixed or
    // in a kept slot (marked); in P (primaries).
    int counts[COUNTS], lowest, free_rows, chosen_count, fixed_count, marked_count, primaries;
    unsigned last_in, first_out;            // keys of the experts beside P's end, or 0
};

// A thread's position in its block. There are at least E threads, and more than T or than LIMIT_ROWS: each expert, and
// each limit that a step can need, has one of its own.
struct Thread {
    int index, lane, warp, warps;
};

SERE_INLINE Thread this_thread() {
    const int index = static_cast<int>(threadIdx.x);
    return Thread{index, index & 31, index >> 5, static_cast<int>(blockDim.x) >> 5};
}

// 32 or 64 bits as loaded from memory. They are looked at only after every other load is on its way.
struct Words {
    int low, high;

    SERE_INLINE Words fetch(const void* from, int index, bool wide) {
        const int* words = static_cast<const int*>(from) + (wide ? 2 * index : index);
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

// The rows that a block takes at once, one tile after the other: 32 >> lane_bits rows per warp.
template <class Id, class W>
SERE_INLINE int tile_rows(const Call<Id, W>& call, const Thread& thread) {
    return thread.warps << (5 - call.lane_bits);
}

// One lane's slot of a row: loaded first, judged later. A lane beyond K or T holds none.
template <class Id, class W>
struct Slot {
    unsigned at;                 // in [T, K]; 0 for a lane without a slot, so that every lane may load
    Id id;
    typename W::Bits bits;
    Words words;                 // of the row's budget
    int row, budget;             // budget: PADDING_BUDGET in a padding row
    bool there, inside, valid;

    // Which slot of its row a lane holds: lanes of one row are adjacent.
    SERE_INLINE int of(const Call<Id, W>& call, const Thread& thread) {
        return thread.lane & ((1 << call.lane_bits) - 1);
    }

    // No load hangs on another, on a branch or on N: together they are one trip to memory.
    SERE_INLINE Slot load(const Call<Id, W>& call, const Thread& thread, int tile) {
        const int slot = of(call, thread);
        Slot mine = {};
        mine.row = tile + (thread.index >> call.lane_bits);
        mine.there = mine.row < call.T && slot < call.K;
        mine.at = mine.there ? static_cast<unsigned>(mine.row) * call.K + slot : 0;
        mine.id = call.ids[mine.at];
        mine.bits = call.weights[mine.at];
        if (call.budgets != nullptr) {
            mine.words = Words::fetch(call.budgets, mine.there ? mine.row : 0, call.given & WIDE_BUDGETS);
        }
        return mine;
    }

    // ``select_top_k``: the layer's S.
    __device__ __forceinline__ void judge(const Call<Id, W>& call, int N, int select_top_k) {
        long long asked = call.budgets != nullptr ? words.value(call.given & WIDE_BUDGETS) : LAYER_BUDGET;
        if (asked == LAYER_BUDGET) asked = select_top_k;
        const bool padding = row >= N || asked < 0;
        budget = !there ? 0 : padding ? PADDING_BUDGET : asked > call.K ? call.K : static_cast<int>(asked);
        inside = there && id >= 0 && id < call.E;
        valid = inside && budget >= 0 && has_weight(W::read(bits));
    }

    SERE_INLINE Slot read(const Call<Id, W>& call, const Thread& thread, int tile, int N, int select_top_k) {
        Slot mine = load(call, thread, tile);
        mine.judge(call, N, select_top_k);
        return mine;
    }
};
