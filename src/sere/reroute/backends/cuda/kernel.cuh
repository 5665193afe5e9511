// docs/method.md section 4 in one launch: the body that every entry shares.

#include "phases.cuh"

// What becomes of one slot: expert -1 means an id outside [0, E).
struct Outcome {
    int expert;
    double weight;
    bool merging, freed, stays, sentinel;
};

// Step 7 for a row, whose lanes are adjacent: the weights of equal experts go into the lowest slot, which
// stays if one of them would.
template <class Id, class W>
SERE_INLINE void merge_row(const Call<Id, W>& call, const Thread& thread, bool padding, Outcome& mine) {
    const int lanes = 1 << call.lane_bits, slot = Slot<Id, W>::of(call, thread);
    unsigned equal = 0;
#pragma unroll 1
    for (int first = 0; first < call.K; first += 8) {
        int others[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            others[i] = __shfl_sync(ALL_LANES, mine.merging ? mine.expert : -1, first + i, lanes);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) equal |= static_cast<unsigned>(others[i] == mine.expert) << (first + i);
    }
    equal &= mine.merging ? ALL_LANES >> (WARP - call.K) : 0;
    mine.freed = bits_below(equal, slot) > 0;
    // The others' weights in the order of the slots, in as many rounds as some row needs; a padding row has zeros.
    unsigned above = mine.freed || padding ? 0 : equal & ~1u << slot;
    double sum = mine.weight;
#pragma unroll 1
    while (__ballot_sync(ALL_LANES, above != 0) != 0) {
        const double weight = __shfl_sync(ALL_LANES, mine.weight, above != 0 ? __ffs(above) - 1 : 0, lanes);
        if (above != 0) sum += weight;
        above &= above - 1;
    }
    mine.weight = mine.freed ? 0.0 : sum;
    mine.stays = equal & __ballot_sync(ALL_LANES, mine.stays) >> (thread.lane - slot);
}

// Step 9: the least gain with which a slot of the row stays, from the squares of all its weights in the order of slots.
template <class Id, class W>
SERE_INLINE double least_of(const Call<Id, W>& call, int least_gain, double square) {
    const int lanes = 1 << call.lane_bits;
    double energy = 0.0;
#pragma unroll 1
    for (int slot = 0; slot < call.K; ++slot) energy += __shfl_sync(ALL_LANES, square, slot, lanes);
    return -least_gain * (1.0 / GAIN_UNITS) * energy;
}

// merge="distinct": freed slots, in slot order, get the lowest active experts that are not yet in the row.
template <class Id, class W>
SERE_INLINE void fill_distinct(
    const Call<Id, W>& call, const Thread& thread, const Block& block, int active, Outcome& mine
) {
    const int lanes = 1 << call.lane_bits, slot = Slot<Id, W>::of(call, thread);
    const unsigned freed = __ballot_sync(ALL_LANES, mine.freed) >> (thread.lane - slot);
    const bool holds = !mine.freed && mine.expert >= 0;
    const int position = holds ? block.position[mine.expert] : NO_POSITION;
    unsigned taken = position < WARP ? 1u << position : 0;
#pragma unroll 1
    for (int step = 1; step < lanes; step *= 2) taken |= __shfl_xor_sync(ALL_LANES, taken, step);
    unsigned unused = ~taken & (active < WARP ? (1u << active) - 1 : ~0u);
#pragma unroll 1
    for (int before = bits_below(freed, slot); before > 0; --before) unused &= unused - 1;
    if (mine.freed && unused != 0) mine.expert = block.lowest_active[__ffs(unused) - 1];
}

template <class Id, class W>
SERE_INLINE void write(const Call<Id, W>& call, const Slot<Id, W>& slot, const Outcome& mine) {
    call.new_ids[slot.at] = mine.sentinel ? static_cast<Id>(call.sentinel)
                            : mine.expert >= 0 ? static_cast<Id>(mine.expert) : slot.id;
    // A weight that is neither scaled nor summed keeps its bits; all bits of zero are 0.
    const bool weighed = call.substitutes != nullptr || call.merge != MERGE_NONE;
    const typename W::Bits bits = slot.budget < 0 ? typename W::Bits(0) : slot.bits;
    call.new_weights[slot.at] = !mine.merging ? slot.bits : weighed ? W::write(mine.weight) : bits;
}

// How many slots of a warp's rows were re-routed, and how many carry weight.
struct Changed {
    int rerouted, computed;
};

// Steps 6 to 9 for a warp's rows.
template <class Id, class W>
SERE_INLINE Changed apply(
    const Call<Id, W>& call, const Thread& thread, const Block& block, const Slot<Id, W>& slot, int primaries,
    int least_gain
) {
    const bool padding = slot.budget < 0;
    Outcome mine = {slot.inside ? static_cast<int>(slot.id) : -1, 0.0, false, false, true, false};
    mine.merging = slot.there && slot.inside && (padding || slot.valid);
    mine.weight = mine.merging && !padding ? static_cast<double>(W::read(slot.bits)) : 0.0;
    const double square = mine.weight * mine.weight;
    // All lanes take part in the sums of their rows.
    const double least = least_gain != 0 ? least_of(call, least_gain, square) : 0.0;
    bool changes = false;
    if (mine.merging) {
        const int target = padding ? block.lowest : block.target[mine.expert];
        changes = !padding && target != mine.expert;
        if (changes && call.substitutes != nullptr) {
            const Pair known = call.substitutes[mine.expert * call.E + target];
            mine.weight *= known.factor;
            mine.stays = !(square * known.similarity < least);
        }
        mine.expert = target;
    }
    if (call.merge != MERGE_NONE) merge_row(call, thread, padding, mine);
    if (call.merge == MERGE_DISTINCT) {
        fill_distinct(call, thread, block, primaries + block.counts[CRITICAL], mine);
    }
    if (!mine.stays) mine.weight = 0.0;
    mine.sentinel = call.merge == MERGE_SENTINEL && mine.merging && (padding || mine.freed || !mine.stays);
    if (slot.there) write(call, slot, mine);
    const bool carries = mine.merging && mine.weight != 0.0;
    return Changed{
        __popc(__ballot_sync(ALL_LANES, changes)), __popc(__ballot_sync(ALL_LANES, carries))
    };
}

// Every block saw the same batch: the first one counts it. Each warp adds what became of its slots by itself.
template <class Id, class W>
SERE_INLINE void count(const Call<Id, W>& call, const Thread& thread, const Block& block, int primaries) {
    const bool of_slots = thread.index == SLOTS_REROUTED || thread.index == SLOTS_COMPUTED;
    if (blockIdx.x > 0 || thread.index >= COUNTS || of_slots) return;
    int amount = block.counts[thread.index];
    if (thread.index == DISTINCT_AFTER) amount = primaries + block.counts[CRITICAL];
    atomicAdd(&call.counters[thread.index], static_cast<unsigned long long>(amount));
}

template <class Id, class W>
SERE_INLINE void reroute(const Call<Id, W>& call, Block& block) {
    const Thread thread = this_thread();
    const int rows = tile_rows(call, thread), own = static_cast<int>(blockIdx.x) * rows;
    const int start = own < call.T ? own : 0;
    // Every load of the first trip to memory comes before the first look at one. The least gain and the number of
    // tokens are the last: the same for all threads, they are put into registers that these share, and that is a look.
    Slot<Id, W> first = Slot<Id, W>::load(call, thread, start);
    const Ahead ahead = Ahead::fetch(call, thread, thread.warp, 0);
    const unsigned char kept = call.keep[thread.index < call.E ? thread.index : 0];
    const float sensitivity = call.sensitivity[thread.index < call.E ? thread.index : 0];
    const int limit = call.limits[thread.index < LIMIT_ROWS ? thread.index : LIMIT_ROWS];
    const int least_gain = call.limits[LIMITS - 1];
    Words real = {};
    if (call.num_tokens != nullptr) real = Words::fetch(call.num_tokens, 0, call.given & WIDE_NUM_TOKENS);
    clear(call, thread, block, limit, kept, sensitivity);
    __syncthreads();
    const int N = real_rows(call, real);
    first.judge(call, N, block.limits[0]);
    vote(call, thread, block, start, first, N);
    __syncthreads();
    take_census(call, thread, block);
    __syncthreads();
    const int first_ones = count_first(call, block);
    if (first_ones != block.marked_count) choose_primary(thread, block, first_ones);
    count_primary(call, thread, block);
#pragma unroll 1
    for (bool again = call.given & ACTIVE_TARGETS; ; again = false) {
        choose_targets(call, thread, block, ahead);
        __syncthreads();
        if (!again) break;
        admit_critical(call, thread, block);
        __syncthreads();
    }
    const int primaries = block.primaries;
    const bool some = primaries > 0, counting = some && call.counters != nullptr;
    if (counting) count(call, thread, block, primaries);
    if (call.merge == MERGE_DISTINCT) list_active(call, thread, block);

    int rerouted = 0, computed = 0;
#pragma unroll 1
    for (int tile = own; tile < call.T; tile += static_cast<int>(gridDim.x) * rows) {
        const Slot<Id, W> slot = tile == own ? first : Slot<Id, W>::read(call, thread, tile, N, block.limits[0]);
        if (some) {
            const Changed found = apply(call, thread, block, slot, primaries, least_gain);
            rerouted += found.rerouted;
            computed += found.computed;
        } else if (slot.there) {
            call.new_ids[slot.at] = slot.id;
            call.new_weights[slot.at] = slot.bits;
        }
    }
    if (counting && thread.lane == 0 && (rerouted | computed) != 0) {
        atomicAdd(&call.counters[SLOTS_REROUTED], static_cast<unsigned long long>(rerouted));
        atomicAdd(&call.counters[SLOTS_COMPUTED], static_cast<unsigned long long>(computed));
    }
}
