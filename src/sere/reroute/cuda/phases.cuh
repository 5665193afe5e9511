// The phases between the vote and the result, one after the other with a barrier between.

#include "call.cuh"

SERE_INLINE int bits_below(unsigned bits, int place) { return __popc(bits & ((1u << place) - 1)); }

// Nothing counted, no expert marked, every expert its own target. ``kept``: the thread's first expert's flag.
template <class Id, class W>
SERE_INLINE void clear(const Call<Id, W>& call, const Thread& thread, Block& block, unsigned char kept) {
#pragma unroll 1
    for (int e = thread.index; e < call.E; e += thread.threads) {
        block.occurs[e] = block.primary[e] = block.critical[e] = 0;
        block.keep[e] = e == thread.index ? kept : call.keep[e];
        block.target[e] = static_cast<unsigned short>(e);
    }
    if (thread.index == 0) {
        block.before = block.primaries = block.criticals = block.rows = block.slots = block.moved = 0;
        block.lowest = call.E;
    }
}

// Steps 1 to 3: mark the experts that occur, and the primary ones: kept slots' and the keep-list's.
// Every block looks at all rows: cheaper than to wait for each other.
template <class Id, class W>
SERE_INLINE void vote(const Call<Id, W>& call, const Thread& thread, Block& block, Slot<Id, W> next, int N) {
    const int rows = 32 >> call.lane_bits, slot = Slot<Id, W>::of(call, thread);
    int real = 0, valid = 0;
#pragma unroll 1
    for (int row = thread.warp * rows; row < call.T; row += thread.warps * rows) {
        Slot<Id, W> mine = next;
        next = Slot<Id, W>::load(call, thread, row + thread.warps * rows);
        mine.judge(call, N);
        const typename W::Wide weight = mine.valid ? W::read(mine.bits) : W::least();
        int rank = 0;
        for (int other = 0; other < call.K; ++other) {
            const typename W::Wide heavier = __shfl_sync(ALL_LANES, weight, other, 1 << call.lane_bits);
            rank += heavier > weight || (heavier == weight && other < slot);
        }
        if (mine.valid) {
            SERE_MARK(block.occurs[mine.id]);
            if (rank < mine.budget || block.keep[mine.id]) SERE_MARK(block.primary[mine.id]);
        }
        valid += __popc(__ballot_sync(ALL_LANES, mine.valid));
        real += __popc(__ballot_sync(ALL_LANES, mine.there && slot == 0 && mine.budget >= 0));
    }
    if (thread.lane == 0) {
        atomicAdd(&block.rows, real);
        atomicAdd(&block.slots, valid);
    }
}

// Count the marks; find the lowest primary expert.
template <class Id, class W>
SERE_INLINE void take_census(const Call<Id, W>& call, const Thread& thread, Block& block) {
#pragma unroll 1
    for (int first = thread.warp * 32; first < call.E; first += thread.threads) {
        const int e = first + thread.lane;
        const unsigned occurring = __ballot_sync(ALL_LANES, e < call.E && block.occurs[e]);
        const unsigned primary = __ballot_sync(ALL_LANES, e < call.E && block.primary[e]);
        if (thread.lane != 0) continue;
        atomicAdd(&block.before, __popc(occurring));
        atomicAdd(&block.primaries, __popc(primary));
        if (primary != 0) atomicMin(&block.lowest, first + __ffs(primary) - 1);
    }
}

// Step 3's floor: the heaviest other experts join P, by integer mass (ties: lower id).
template <class Id, class W>
SERE_INLINE void fill_up(const Call<Id, W>& call, const Thread& thread, Block& block, int N) {
    const long long none = -0x7fffffffffffffffLL - 1;
    const int wanted = call.min_active - block.primaries, rows = 32 >> call.lane_bits;
#pragma unroll 1
    for (int e = thread.index; e < call.E; e += thread.threads) {
        block.mass[e] = block.occurs[e] && !block.primary[e] ? 0 : none;
    }
    __syncthreads();
#pragma unroll 1
    for (int row = thread.warp * rows; row < call.T; row += thread.warps * rows) {
        const Slot<Id, W> mine = Slot<Id, W>::read(call, thread, row, N);
        if (!mine.valid || block.primary[mine.id]) continue;
        atomicAdd(reinterpret_cast<unsigned long long*>(&block.mass[mine.id]),
                  static_cast<unsigned long long>(mass_units(W::read(mine.bits))));
    }
    __syncthreads();
#pragma unroll 1
    for (int e = thread.warp; e < call.E; e += thread.warps) {
        const long long mass = block.mass[e];
        if (mass == none) continue;
        int heavier = 0;
#pragma unroll 1
        for (int first = 0; first < call.E; first += 32) {
            const int other = first + thread.lane;
            const long long theirs = other < call.E ? block.mass[other] : none;
            heavier += __popc(__ballot_sync(ALL_LANES, theirs > mass || (theirs == mass && other < e)));
        }
        if (heavier >= wanted || thread.lane != 0) continue;
        block.primary[e] = 1;
        atomicAdd(&block.primaries, 1);
        atomicMin(&block.lowest, e);
    }
    __syncthreads();
}

// The nearest 32 neighbours of a warp's next experts: read before anyone knows P, for memory is far away.
struct Ahead {
    static constexpr int EXPERTS = 8;
    int start, neighbour[EXPERTS], count[EXPERTS];

    template <class Id, class W>
    __device__ __forceinline__ void fetch(const Call<Id, W>& call, const Thread& thread, int first) {
        start = first;
#pragma unroll
        for (int i = 0; i < EXPERTS; ++i) {
            // Nobody asks for an expert from E on, nor for a place from the count on.
            const int e = first + i * thread.warps < call.E ? first + i * thread.warps : 0;
            neighbour[i] = call.order[e * call.E + (thread.lane < call.E ? thread.lane : 0)];
            count[i] = call.count[e];
        }
    }
};

// Whether an expert may take over slots: in P, or in C once that is known. No branch, so that several of these
// reads are under way together; C is not read in the pass that makes it.
SERE_INLINE bool is_candidate(const Block& block, int e, bool active) {
    return block.primary[e] | (active ? block.critical[e] : 0);
}

// Which of a warp's next experts need a target: bit i for expert start + i * warps.
template <class Id, class W>
SERE_INLINE unsigned searching(
    const Call<Id, W>& call, const Thread& thread, const Block& block, int start, bool active
) {
    const int e = start + thread.lane * thread.warps;
    const bool mine = thread.lane < Ahead::EXPERTS && e < call.E;
    return __ballot_sync(ALL_LANES, mine && block.occurs[e] && !is_candidate(block, e, active));
}

// Beyond the nearest 32 neighbours: 32 more at a time, up to the threshold. Nobody there: the expert is critical.
template <class Id, class W>
SERE_INLINE void search_far(const Call<Id, W>& call, const Thread& thread, Block& block, int e, bool active) {
    const int count = call.count[e];
    unsigned found = 0;
#pragma unroll 1
    for (int place = 32 + thread.lane; found == 0 && place - thread.lane < count; place += 32) {
        const int neighbour = place < count ? call.order[e * call.E + place] : 0;
        found = __ballot_sync(ALL_LANES, place < count && is_candidate(block, neighbour, active));
        if (thread.lane == __ffs(found) - 1) block.target[e] = static_cast<unsigned short>(neighbour);
    }
    if (found != 0 || thread.lane != 0) return;
    block.critical[e] = 1;
    atomicAdd(&block.criticals, 1);
}

// Steps 4 and 5: each secondary expert's target in P, or its mark as critical; then, with active, the targets
// again, in P and C. A warp looks at 32 neighbours at a vote; the first is the most similar (ties: lower id).
template <class Id, class W>
SERE_INLINE void choose_targets(
    const Call<Id, W>& call, const Thread& thread, Block& block, Ahead& ahead, bool active
) {
#pragma unroll 1
    for (int start = thread.warp; start < call.E; start += Ahead::EXPERTS * thread.warps) {
        if (start != ahead.start) ahead.fetch(call, thread, start);
        const unsigned wanted = searching(call, thread, block, start, active);
        unsigned far = wanted;
        bool fits[Ahead::EXPERTS];
#pragma unroll
        for (int i = 0; i < Ahead::EXPERTS; ++i) {
            fits[i] = is_candidate(block, ahead.neighbour[i], active) & (thread.lane < ahead.count[i]);
        }
#pragma unroll
        for (int i = 0; i < Ahead::EXPERTS; ++i) {
            const unsigned found = __ballot_sync(ALL_LANES, fits[i]);
            if ((wanted >> i & 1u) && thread.lane == __ffs(found) - 1) {
                block.target[start + i * thread.warps] = static_cast<unsigned short>(ahead.neighbour[i]);
            }
            if (found != 0) far &= ~(1u << i);
        }
#pragma unroll 1
        for (; far != 0; far &= far - 1) {
            search_far(call, thread, block, start + (__ffs(far) - 1) * thread.warps, active);
        }
    }
}

// For merge="distinct": the 32 lowest active experts, and each active expert's place among them.
template <class Id, class W>
SERE_INLINE void list_active(const Call<Id, W>& call, const Thread& thread, Block& block) {
#pragma unroll 1
    for (int first = thread.warp * 32; first < call.E; first += thread.threads) {
        const int e = first + thread.lane;
        const bool active = e < call.E && (block.primary[e] || block.critical[e]);
        const unsigned word = __ballot_sync(ALL_LANES, active);
        if (thread.lane == 0) block.active_words[first / 32] = word;
    }
    __syncthreads();
#pragma unroll 1
    for (int e = thread.index; e < call.E; e += thread.threads) {
        int place = bits_below(block.active_words[e / 32], e & 31);
#pragma unroll 1
        for (int word = 0; word < e / 32; ++word) place += __popc(block.active_words[word]);
        const bool listed = place < 32 && (block.primary[e] || block.critical[e]);
        block.place[e] = static_cast<unsigned char>(listed ? place : 255);
        if (listed) block.lowest_active[place] = static_cast<unsigned short>(e);
    }
    __syncthreads();
}
