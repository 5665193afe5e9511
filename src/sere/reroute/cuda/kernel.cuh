// METHOD.md section 4 in one launch: the body that every entry shares.

#include "phases.cuh"

// What becomes of one slot: expert -1 stands for an id outside [0, E).
struct Outcome {
    int expert;
    double weight;
    bool merging, freed, sentinel;
};

// Step 7 for a row, whose lanes stand side by side: the weights of equal experts go into the lowest slot.
template <class Id, class W>
SERE_INLINE void merge_row(const Call<Id, W>& call, const Thread& thread, Outcome& mine) {
    const int lanes = 1 << call.lane_bits, slot = Slot<Id, W>::of(call, thread);
    const unsigned members = __ballot_sync(ALL_LANES, mine.merging) >> (thread.lane - slot);
    double sum = mine.weight;
#pragma unroll 1
    for (int other = 0; other < call.K; ++other) {
        const int expert = __shfl_sync(ALL_LANES, mine.expert, other, lanes);
        const double weight = __shfl_sync(ALL_LANES, mine.weight, other, lanes);
        const bool same = mine.merging && (members >> other & 1u) && expert == mine.expert;
        if (same && other < slot) mine.freed = true;
        if (same && other > slot) sum += weight;
    }
    mine.weight = mine.freed ? 0.0 : sum;
}

// merge="distinct": freed slots, in slot order, get the lowest active experts that are not yet in the row.
template <class Id, class W>
SERE_INLINE void fill_distinct(const Call<Id, W>& call, const Thread& thread, const Block& block, Outcome& mine) {
    const int lanes = 1 << call.lane_bits, slot = Slot<Id, W>::of(call, thread);
    const unsigned freed = __ballot_sync(ALL_LANES, mine.freed) >> (thread.lane - slot);
    const bool holds = !mine.freed && mine.expert >= 0;
    const int place = holds ? block.place[mine.expert] : 255;
    unsigned taken = place < 32 ? 1u << place : 0;
#pragma unroll 1
    for (int step = 1; step < lanes; step *= 2) taken |= __shfl_xor_sync(ALL_LANES, taken, step);
    const int active = block.primaries + block.criticals;
    unsigned unused = ~taken & (active < 32 ? (1u << active) - 1 : ~0u);
#pragma unroll 1
    for (int before = bits_below(freed, slot); before > 0; --before) unused &= unused - 1;
    if (mine.freed && unused != 0) mine.expert = block.lowest_active[__ffs(unused) - 1];
}

template <class Id, class W>
SERE_INLINE void write(const Call<Id, W>& call, const Slot<Id, W>& slot, const Outcome& mine) {
    call.new_ids[slot.at] = mine.sentinel ? static_cast<Id>(call.sentinel)
                            : mine.expert >= 0 ? static_cast<Id>(mine.expert) : slot.id;
    call.new_weights[slot.at] = mine.merging ? W::write(mine.weight) : slot.bits;
}

// Steps 6 to 8 for a warp's rows; returns how many slots moved.
template <class Id, class W>
SERE_INLINE int apply(
    const Call<Id, W>& call, const Thread& thread, const Block& block, const Slot<Id, W>& slot
) {
    const bool padding = slot.budget < 0;
    Outcome mine = {slot.inside ? static_cast<int>(slot.id) : -1, 0.0, false, false, false};
    mine.merging = slot.there && slot.inside && (padding || slot.valid);
    mine.weight = mine.merging && !padding ? static_cast<double>(W::read(slot.bits)) : 0.0;
    bool moves = false;
    if (mine.merging) {
        const int target = padding ? block.lowest : block.target[mine.expert];
        moves = !padding && target != mine.expert;
        if (moves && call.scale != nullptr) mine.weight *= call.scale[mine.expert * call.E + target];
        mine.expert = target;
    }
    if (call.merge != MERGE_NONE) merge_row(call, thread, mine);
    if (call.merge == MERGE_DISTINCT) fill_distinct(call, thread, block, mine);
    mine.sentinel = call.merge == MERGE_SENTINEL && mine.merging && (padding || mine.freed);
    if (slot.there) write(call, slot, mine);
    return __popc(__ballot_sync(ALL_LANES, moves));
}

// Each block adds the slots that it moved, the first one the rest: all of them saw the same batch.
template <class Id, class W>
SERE_INLINE void count(const Call<Id, W>& call, const Thread& thread, Block& block, int moved) {
    if (thread.lane == 0) atomicAdd(&block.moved, moved);
    __syncthreads();
    if (thread.index >= 7 || (blockIdx.x > 0 && thread.index != 5)) return;
    const int step[7] = {1, block.rows, block.before, block.primaries + block.criticals, block.slots,
                         block.moved, block.criticals};
    int amount = 0;
#pragma unroll
    for (int i = 0; i < 7; ++i) amount = i == thread.index ? step[i] : amount;
    atomicAdd(&call.counters[thread.index], static_cast<unsigned long long>(amount));
}

template <class Id, class W>
SERE_INLINE void reroute(const Call<Id, W>& call, Block& block) {
    const Thread thread = this_thread();
    const int rows = 32 >> call.lane_bits;
    // Every load of the first trip to memory comes before the first look at one.
    Words real = {};
    if (call.num_tokens != nullptr) real = Words::fetch(call.num_tokens, 0, call.given & WIDE_NUM_TOKENS);
    const Slot<Id, W> first = Slot<Id, W>::load(call, thread, thread.warp * rows);
    const unsigned char kept = call.keep[thread.index < call.E ? thread.index : 0];
    Ahead ahead;
    ahead.fetch(call, thread, thread.warp);
    clear(call, thread, block, kept);
    const int N = real_rows(call, real);
    __syncthreads();
    vote(call, thread, block, first, N);
    __syncthreads();
    take_census(call, thread, block);
    __syncthreads();
    if (block.primaries < call.min_active) fill_up(call, thread, block, N);
    const bool some = block.primaries > 0;
    const int passes = call.given & ACTIVE_TARGETS ? 2 : 1;
#pragma unroll 1
    for (int pass = 0; pass < passes; ++pass) {
        choose_targets(call, thread, block, ahead, pass > 0);
        __syncthreads();
    }
    if (call.merge == MERGE_DISTINCT) list_active(call, thread, block);

    const int place = blockIdx.x * thread.warps + thread.warp;
    const int stride = static_cast<int>(gridDim.x) * thread.warps * rows;
    int moved = 0;
#pragma unroll 1
    for (int row = place * rows; row < call.T; row += stride) {
        const Slot<Id, W> slot = Slot<Id, W>::read(call, thread, row, N);
        if (some) {
            moved += apply(call, thread, block, slot);
        } else if (slot.there) {
            call.new_ids[slot.at] = slot.id;
            call.new_weights[slot.at] = slot.bits;
        }
    }
    if (some && call.counters != nullptr) count(call, thread, block, moved);
}
