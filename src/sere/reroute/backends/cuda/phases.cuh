// The phases between the vote and the result, one after the other with a barrier between.

#include "call.cuh"

SERE_INLINE int bits_below(unsigned bits, int bit) { return __popc(bits & ((1u << bit) - 1)); }

// Nothing counted, no expert marked, every expert its own target. ``kept``: the flag of the thread's expert, which
// alone comes from memory, so it is stored last.
template <class Id, class W>
SERE_INLINE void clear(const Call<Id, W>& call, const Thread& thread, Block& block, unsigned char kept) {
    const int e = thread.index;
    if (e < COUNTS) block.counts[e] = e == STEPS;
    if (e == 0) block.lowest = call.E;
    if (e >= call.E) return;
    block.occurs[e] = block.primary[e] = block.critical[e] = 0;
    block.target[e] = static_cast<unsigned short>(e);
    block.keep[e] = kept;
}

// How many valid slots of its row go before a lane's own: heavier ones, and of equal ones the lower. Eight are asked
// for at once, because one answer takes longer than seven more questions; lanes beyond K are below all.
template <class Id, class W>
SERE_INLINE int rank_in_row(const Call<Id, W>& call, const Thread& thread, const Slot<Id, W>& mine) {
    typedef decltype(W::order(mine.bits)) Order;
    const Order least = -(static_cast<Order>(~0ull >> 1 >> (64 - 8 * sizeof(Order))));
    const int slot = Slot<Id, W>::of(call, thread), lanes = 1 << call.lane_bits;
    const Order order = mine.valid ? W::order(mine.bits) : least;
    int rank = 0;
#pragma unroll 1
    for (int first = 0; first < call.K; first += 8) {
        Order others[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) others[i] = __shfl_sync(ALL_LANES, order, first + i, lanes);
#pragma unroll
        for (int i = 0; i < 8; ++i) rank += others[i] > order - (first + i < slot);
    }
    return rank;
}

// Steps 1 to 3: mark the experts that occur, and the primary ones: kept slots' and the keep-list's.
// Every block looks at all rows, its own tile first: cheaper than to wait for each other.
template <class Id, class W>
SERE_INLINE void vote(
    const Call<Id, W>& call, const Thread& thread, Block& block, int tile, const Slot<Id, W>& first, int N
) {
    const int rows = tile_rows(call, thread);
    Slot<Id, W> mine = first;
    int real = 0, valid = 0;
#pragma unroll 1
    for (int left = call.T - rows; ; left -= rows) {
        Slot<Id, W> next = {};
        tile = tile + rows < call.T ? tile + rows : 0;
        if (left > 0) next = Slot<Id, W>::load(call, thread, tile);
        const bool kept = mine.valid && block.keep[mine.id];
        const int rank = rank_in_row(call, thread, mine);
        if (mine.valid) SERE_MARK(block.occurs[mine.id]);
        if (kept || (mine.valid && rank < mine.budget)) SERE_MARK(block.primary[mine.id]);
        if (call.counters != nullptr) {
            const bool begins = mine.there && Slot<Id, W>::of(call, thread) == 0;
            valid += __popc(__ballot_sync(ALL_LANES, mine.valid));
            real += __popc(__ballot_sync(ALL_LANES, begins && mine.budget >= 0));
        }
        if (left <= 0) break;
        mine = next;
        mine.judge(call, N);
    }
    if (call.counters == nullptr || thread.lane != 0) return;
    atomicAdd(&block.counts[ROWS], real);
    atomicAdd(&block.counts[SLOTS], valid);
}

// Count the marks; find the lowest primary expert.
template <class Id, class W>
SERE_INLINE void take_census(const Call<Id, W>& call, const Thread& thread, Block& block) {
    const int e = thread.index;
    if (e - thread.lane >= call.E) return;
    const unsigned occurring = __ballot_sync(ALL_LANES, e < call.E && block.occurs[e]);
    const unsigned primary = __ballot_sync(ALL_LANES, e < call.E && block.primary[e]);
    if (thread.lane != 0) return;
    atomicAdd(&block.counts[DISTINCT_BEFORE], __popc(occurring));
    atomicAdd(&block.counts[PRIMARIES], __popc(primary));
    if (primary != 0) atomicMin(&block.lowest, e + __ffs(primary) - 1);
}

// Two halves, because the device has no addition of 64 bits in shared memory: each carry is seen by one thread.
SERE_INLINE void add_mass(Block& block, int e, long long units) {
    const unsigned long long bits = static_cast<unsigned long long>(units);
    const unsigned low = static_cast<unsigned>(bits), before = atomicAdd(&block.mass_low[e], low);
    atomicAdd(&block.mass_high[e], static_cast<unsigned>(bits >> 32) + (before + low < low));
}

SERE_INLINE long long mass_of(const Block& block, int e) {
    const unsigned long long high = block.mass_high[e];
    return static_cast<long long>(high << 32 | block.mass_low[e]);
}

// Step 3's floor: the heaviest other experts join P, by integer mass (ties: lower id).
template <class Id, class W>
SERE_INLINE void fill_up(
    const Call<Id, W>& call, const Thread& thread, Block& block, int tile, const Slot<Id, W>& first, int N
) {
    const int wanted = call.min_active - block.counts[PRIMARIES], rows = tile_rows(call, thread);
    const long long none = -0x7fffffffffffffffLL - 1;
    if (thread.index < call.E) {
        const bool joins = block.occurs[thread.index] && !block.primary[thread.index];
        block.mass_low[thread.index] = 0;
        block.mass_high[thread.index] = joins ? 0 : 0x80000000u;
    }
    __syncthreads();
    Slot<Id, W> mine = first;
#pragma unroll 1
    for (int left = call.T; left > 0; left -= rows) {
        if (mine.valid && !block.primary[mine.id]) {
            add_mass(block, static_cast<int>(mine.id), mass_units(W::read(mine.bits)));
        }
        tile = tile + rows < call.T ? tile + rows : 0;
        if (left > rows) mine = Slot<Id, W>::read(call, thread, tile, N);
    }
    __syncthreads();
#pragma unroll 1
    for (int e = thread.warp; e < call.E; e += thread.warps) {
        const long long mass = mass_of(block, e);
        if (mass == none) continue;
        int heavier = 0;
#pragma unroll 1
        for (int start = 0; start < call.E; start += WARP) {
            const int other = start + thread.lane;
            const long long theirs = other < call.E ? mass_of(block, other) : none;
            heavier += __popc(__ballot_sync(ALL_LANES, theirs > mass || (theirs == mass && other < e)));
        }
        if (heavier >= wanted || thread.lane != 0) continue;
        block.primary[e] = 1;
        atomicAdd(&block.counts[PRIMARIES], 1);
        atomicMin(&block.lowest, e);
    }
    __syncthreads();
}

// A lane's position in a piece of the lists of eight experts: a warp holds 32 positions of each.
template <class Id, class W>
SERE_INLINE Eight fetch(const Call<Id, W>& call, const Thread& thread, int group, int piece) {
    const int pieces = (call.E + WARP - 1) / WARP, groups = (call.E + GROUP - 1) / GROUP;
    const int first = (group < groups ? group : 0) * pieces + (piece < pieces ? piece : 0);
    return call.lists[first * WARP + thread.lane];
}

// Two pieces of a warp's lists: the first ones are read before anyone knows P, because memory is far away.
struct Ahead {
    Eight near, next;

    template <class Id, class W>
    SERE_INLINE Ahead fetch(const Call<Id, W>& call, const Thread& thread, int group, int piece) {
        return Ahead{::fetch(call, thread, group, piece), ::fetch(call, thread, group, piece + 1)};
    }

    // Word by word: a choice between the two as such would put them into memory.
    __device__ __forceinline__ Eight of(int piece) const {
        Eight chosen;
        for (int i = 0; i < 4; ++i) chosen.pairs[i] = piece % 2 ? next.pairs[i] : near.pairs[i];
        return chosen;
    }
};

// One piece of eight lists, those of expert ``first`` and the next: for each a vote of the warp, handed to the lane of
// the expert. The nearest candidate becomes the target; whose piece ends with itself, the end of a list, is critical.
// Returns who of the wanted is still searching.
SERE_INLINE unsigned look(const Thread& thread, Block& block, const Eight& near, int first, unsigned wanted) {
    bool fits[GROUP];
    unsigned votes[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; ++i) fits[i] = block.primary[near[i]];
#pragma unroll
    for (int i = 0; i < GROUP; ++i) votes[i] = __ballot_sync(ALL_LANES, fits[i]);
#pragma unroll
    for (int half = GROUP / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) votes[i] = thread.lane & (GROUP / 2 / half) ? votes[2 * i + 1] : votes[2 * i];
    }
    const unsigned found = votes[0];
    Eight nearest;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        nearest.pairs[i] = __shfl_sync(ALL_LANES, near.pairs[i], found != 0 ? __ffs(found) - 1 : WARP - 1);
    }
    const bool mine = wanted >> thread.lane & 1u;
    const int e = first + thread.lane, target = nearest.mine(thread.lane);
    if (mine && found != 0) block.target[e] = static_cast<unsigned short>(target);
    if (mine && target == e) {
        block.critical[e] = 1;
        atomicAdd(&block.counts[CRITICAL], 1);
    }
    return __ballot_sync(ALL_LANES, mine && found == 0 && target != e);
}

// Steps 4 and 5: each secondary expert's target in P, or its mark as critical. A warp looks at 32 neighbors at a vote;
// the first is the most similar (ties: lower id).
template <class Id, class W>
SERE_INLINE void choose_targets(const Call<Id, W>& call, const Thread& thread, Block& block, const Ahead& ahead) {
#pragma unroll 1
    for (int group = thread.warp; GROUP * group < call.E; group += thread.warps) {
        const int e = GROUP * group + thread.lane;
        const bool mine = thread.lane < GROUP && e < call.E;
        unsigned wanted = __ballot_sync(ALL_LANES, mine && block.occurs[e] && !block.primary[e]);
        Ahead here = ahead;
        if (group != thread.warp) here = Ahead::fetch(call, thread, group, 0);
#pragma unroll 1
        for (int piece = 0; wanted != 0;) {
            wanted = look(thread, block, here.of(piece), GROUP * group, wanted);
            if (wanted != 0 && ++piece % 2 == 0) here = Ahead::fetch(call, thread, group, piece);
        }
    }
}

// With targets="active" critical experts may take over slots as well: the search runs once more, over P and C.
template <class Id, class W>
SERE_INLINE void admit_critical(const Call<Id, W>& call, const Thread& thread, Block& block) {
    if (thread.index < call.E && block.critical[thread.index]) block.primary[thread.index] = 1;
}

// For merge="distinct": the 32 lowest active experts, and each active expert's position among them.
template <class Id, class W>
SERE_INLINE void list_active(const Call<Id, W>& call, const Thread& thread, Block& block) {
    const int e = thread.index;
    const bool active = e < call.E && (block.primary[e] || block.critical[e]);
    const unsigned word = __ballot_sync(ALL_LANES, active);
    if (thread.lane == 0) block.active_words[thread.warp] = word;
    __syncthreads();
    int position = bits_below(word, thread.lane);
#pragma unroll 1
    for (int before = 0; before < thread.warp; ++before) position += __popc(block.active_words[before]);
    const bool listed = active && position < WARP;
    if (e < call.E) block.position[e] = static_cast<unsigned char>(listed ? position : NO_POSITION);
    if (listed) block.lowest_active[position] = static_cast<unsigned short>(e);
    __syncthreads();
}
