// The phases between the vote and the result, one after the other with a barrier between.

#include "call.cuh"

SERE_INLINE int bits_below(unsigned bits, int bit) { return __popc(bits & ((1u << bit) - 1)); }

// Two halves, because the device has no addition of 64 bits in shared memory: each carry is seen by one thread.
SERE_INLINE void add_mass(Block& block, int e, long long units) {
    const unsigned long long bits = static_cast<unsigned long long>(units);
    const unsigned low = static_cast<unsigned>(bits), before = atomicAdd(&block.mass_low[e], low);
    atomicAdd(&block.mass_high[e], static_cast<unsigned>(bits >> 32) + (before + low < low));
}

SERE_INLINE double mass_of(const Block& block, int e) {
    const unsigned long long high = block.mass_high[e];
    return static_cast<double>(static_cast<long long>(high << 32 | block.mass_low[e])) * block.sensitivity[e];
}

// Nothing counted, no expert marked, every expert its own target. ``limit``, and the flag and the sensitivity of the
// thread's expert, come from memory: they are stored last.
template <class Id, class W>
SERE_INLINE void clear(
    const Call<Id, W>& call, const Thread& thread, Block& block, int limit, unsigned char kept, float sensitivity
) {
    const int e = thread.index;
    if (e < COUNTS) block.counts[e] = e == STEPS;
    if (e == 0) {
        block.lowest = call.E;
        block.free_rows = block.chosen_count = block.fixed_count = block.marked_count = block.primaries = 0;
        block.last_in = block.first_out = 0;
    }
    block.keys[e] = 0;
    if (e < call.E) {
        block.chosen[e] = block.beside[e] = block.primary[e] = block.critical[e] = 0;
        block.mass_low[e] = block.mass_high[e] = 0;
        block.target[e] = static_cast<unsigned short>(e);
        block.keep[e] = kept;
        block.sensitivity[e] = sensitivity;
    }
    if (e <= LIMIT_ROWS) block.limits[e] = limit;
}

// How many valid slots of its row go before a lane's own: heavier ones, and of equal ones the lower. Eight are asked
// for at once, because one answer takes longer than seven more questions (of 64 bits four: registers); lanes beyond K
// are below all.
template <class Id, class W>
SERE_INLINE int rank_in_row(const Call<Id, W>& call, const Thread& thread, const Slot<Id, W>& mine) {
    typedef decltype(W::order(mine.bits)) Order;
    constexpr int ASKED = 32 / sizeof(Order);
    const Order least = -(static_cast<Order>(~0ull >> 1 >> (64 - 8 * sizeof(Order))));
    const int slot = Slot<Id, W>::of(call, thread), lanes = 1 << call.lane_bits;
    const Order order = mine.valid ? W::order(mine.bits) : least;
    int rank = 0;
#pragma unroll 1
    for (int first = 0; first < call.K; first += ASKED) {
        Order others[ASKED];
#pragma unroll
        for (int i = 0; i < ASKED; ++i) others[i] = __shfl_sync(ALL_LANES, order, first + i, lanes);
#pragma unroll
        for (int i = 0; i < ASKED; ++i) rank += others[i] > order - (first + i < slot);
    }
    return rank;
}

// Steps 1 and 2, and what step 3 asks of the rows: whose experts are whose, which are in kept slots, their masses.
// Every block looks at all rows below N, its own tile first: cheaper than to wait for each other. N is the same for all
// threads, so they leave the loop together.
template <class Id, class W>
SERE_INLINE void vote(
    const Call<Id, W>& call, const Thread& thread, Block& block, int tile, const Slot<Id, W>& first, int N
) {
    const int rows = tile_rows(call, thread);
    Slot<Id, W> mine = first;
    int real = 0, free = 0, valid = 0;
    // A tile from N on holds padding alone: one that is the block's own is looked at beside those below N.
#pragma unroll 1
    for (int left = tile < N ? N - rows : N; ; left -= rows) {
        Slot<Id, W> next = {};
        tile = tile + rows < N ? tile + rows : 0;
        if (left > 0) next = Slot<Id, W>::load(call, thread, tile);
        const int rank = rank_in_row(call, thread, mine);
        if (mine.valid) {
            const int e = static_cast<int>(mine.id);
            if (mine.budget == call.K) {
                SERE_MARK(block.beside[e]);
            } else {
                SERE_MARK(block.chosen[e]);
                if (rank < mine.budget) SERE_MARK(block.primary[e]);
                add_mass(block, e, mass_units(W::read(mine.bits)));
            }
        }
        const bool begins = mine.there && mine.budget >= 0 && Slot<Id, W>::of(call, thread) == 0;
        free += __popc(__ballot_sync(ALL_LANES, begins && mine.budget < call.K));
        if (call.counters != nullptr) {
            valid += __popc(__ballot_sync(ALL_LANES, mine.valid));
            real += __popc(__ballot_sync(ALL_LANES, begins));
        }
        if (left <= 0) break;
        mine = next;
        mine.judge(call, N, block.limits[0]);
    }
    if (thread.lane != 0) return;
    atomicAdd(&block.free_rows, free);
    if (call.counters == nullptr) return;
    atomicAdd(&block.counts[ROWS], real);
    atomicAdd(&block.counts[SLOTS], valid);
}

// The key of an expert that is chosen: its class, then its mass to 14 binary digits, then its id, the lowest first. Keys
// differ; only where classes and digits are equal do the masses themselves decide.
constexpr int ID_BITS = 10, CLASS_AT = 29;

SERE_INLINE unsigned key_of(const Block& block, int e) {
    const unsigned rank = block.keep[e] ? 3 : block.primary[e] ? 2 : 1;
    // As a float: eight bits of exponent, of which six can differ, and 23 digits after the first.
    const unsigned digits = __float_as_uint(fmaxf(static_cast<float>(mass_of(block, e)), 1.0f)) - 0x3f800000u;
    return rank << CLASS_AT | digits >> 10 << ID_BITS | static_cast<unsigned>(MOST_EXPERTS - 1 - e);
}

SERE_INLINE int expert_of(unsigned key) { return MOST_EXPERTS - 1 - static_cast<int>(key % MOST_EXPERTS); }

// Count the marks, and write down the keys of the experts that are chosen. Those of protected rows are primary.
template <class Id, class W>
SERE_INLINE void take_census(const Call<Id, W>& call, const Thread& thread, Block& block) {
    const int e = thread.index;
    if (e - thread.lane >= call.E) return;
    const bool mine = e < call.E && block.chosen[e];
    if (mine && block.keep[e]) block.primary[e] = 1;
    const unsigned chosen = __ballot_sync(ALL_LANES, mine), fixed = __ballot_sync(ALL_LANES, mine && block.keep[e]);
    const unsigned marked = __ballot_sync(ALL_LANES, mine && block.primary[e]);
    const bool is_beside = e < call.E && block.beside[e];
    const unsigned beside = __ballot_sync(ALL_LANES, is_beside);
    int place = 0;
    if (thread.lane == 0) {
        place = atomicAdd(&block.chosen_count, __popc(chosen));
        atomicAdd(&block.counts[DISTINCT_BEFORE], __popc(chosen | beside));
        atomicAdd(&block.fixed_count, __popc(fixed));
        atomicAdd(&block.marked_count, __popc(marked));
    }
    place = __shfl_sync(ALL_LANES, place, 0) + bits_below(chosen, thread.lane);
    if (mine) block.keys[place] = key_of(block, e);
    if (is_beside) block.primary[e] = 1;
}

// How many experts that are chosen are primary: M, as it is for the rows that may be re-routed, and at least all that
// must be.
template <class Id, class W>
SERE_INLINE int count_first(const Call<Id, W>& call, const Block& block) {
    const int rows = block.free_rows < 1 ? 1 : block.free_rows > LIMIT_ROWS ? LIMIT_ROWS : block.free_rows;
    const int most = block.limits[rows], least = call.given & CAP ? block.fixed_count : block.marked_count;
    const int wanted = most > least ? most : least;
    return wanted < block.chosen_count ? wanted : block.chosen_count;
}

// Of how many lanes, as a power of two, each of ``count`` experts has a share of the work.
SERE_INLINE int sharing_bits(const Thread& thread, int count) {
    const int bits = __clz(count - 1) - __clz(thread.warps * WARP) - 1;
    return bits < 0 ? 0 : bits < 5 ? bits : 5;
}

// Add up what the lanes of one expert found.
SERE_INLINE int shared_sum(int found, int bits) {
#pragma unroll 1
    for (int step = 1; step >> bits == 0; step *= 2) found += __shfl_xor_sync(ALL_LANES, found, step);
    return found;
}

// The experts beside P's end agree in class and digits: those that do are put in order by their masses.
SERE_INLINE void settle(const Thread& thread, Block& block, int first_ones, unsigned edge) {
    const int count = block.chosen_count, bits = sharing_bits(thread, count);
    const int place = thread.index >> bits, share = thread.index & ((1 << bits) - 1);
    const unsigned mine = block.keys[place < count ? place : 0];
    const int e = expert_of(mine);
    const bool asks = place < count && mine >> ID_BITS == edge;
    if (__ballot_sync(ALL_LANES, asks) == 0) return;
    const double mass = mass_of(block, e);
    int before = 0;
#pragma unroll 1
    for (int other = share; other < count; other += 1 << bits) {
        const unsigned theirs = block.keys[other];
        bool first = theirs >> ID_BITS > edge;
        if (theirs >> ID_BITS == edge) {
            const double their_mass = mass_of(block, expert_of(theirs));
            first = their_mass > mass || (their_mass == mass && theirs > mine);
        }
        before += first;
    }
    before = shared_sum(before, bits);
    if (asks && share == 0) block.primary[e] = before < first_ones || block.beside[e];
}

// Step 3, where M is not just the number of marked experts: the first of the order.
SERE_INLINE void choose_primary(const Thread& thread, Block& block, int first_ones) {
    const int count = block.chosen_count, bits = sharing_bits(thread, count);
    const int place = thread.index >> bits, share = thread.index & ((1 << bits) - 1);
    if ((thread.index - thread.lane) >> bits < count) {
        const unsigned mine = place < count ? block.keys[place] : ~0u >> 1;
        int before = 0;
#pragma unroll 1
        for (int start = 2 * share; 4 * start < count; start += 2 << bits) {
            const Four near = block.fours[start], far = block.fours[start + 1];
            // A difference's sign is the comparison: keys have 31 bits.
#pragma unroll
            for (int i = 0; i < 4; ++i) before += (mine - near.keys[i]) >> 31;
#pragma unroll
            for (int i = 0; i < 4; ++i) before += (mine - far.keys[i]) >> 31;
        }
        before = shared_sum(before, bits);
        if (place < count && share == 0) {
            const int e = expert_of(mine);
            block.primary[e] = before < first_ones || block.beside[e];
            if (before == first_ones - 1) block.last_in = mine;
            if (before == first_ones) block.first_out = mine;
        }
    }
    __syncthreads();
    const unsigned edge = block.last_in >> ID_BITS;
    if (edge == 0 || edge != block.first_out >> ID_BITS) return;
    settle(thread, block, first_ones, edge);
    __syncthreads();
}

// How many experts P has, and the lowest: that of padding rows.
template <class Id, class W>
SERE_INLINE void count_primary(const Call<Id, W>& call, const Thread& thread, Block& block) {
    const int e = thread.index;
    if (e - thread.lane >= call.E) return;
    const unsigned primary = __ballot_sync(ALL_LANES, e < call.E && block.primary[e]);
    if (thread.lane != 0 || primary == 0) return;
    atomicMin(&block.lowest, e + __ffs(primary) - 1);
    atomicAdd(&block.primaries, __popc(primary));
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
        unsigned wanted = __ballot_sync(ALL_LANES, mine && block.chosen[e] && !block.primary[e]);
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
