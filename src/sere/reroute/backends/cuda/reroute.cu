// The entries, one per id and weight type. All arguments are 64 bits wide, in the order of Call.

#include "kernel.cuh"

#define SERE_ENTRY(NAME, ID, WEIGHT)                                                                              \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) NAME(                                           \
        const ID* ids, const WEIGHT::Bits* weights, ID* new_ids, WEIGHT::Bits* new_weights, const Eight* lists,   \
        const int* limits, const unsigned char* keep, const float* sensitivity, const Pair* substitutes,          \
        const void* budgets, const void* num_tokens, unsigned long long* counters, long long T, long long K,      \
        long long E, long long N,                                                                                 \
        long long merge, long long given, long long lane_bits, long long sentinel                                 \
    ) {                                                                                                           \
        __shared__ Block block;                                                                                   \
        const Call<ID, WEIGHT> call = {                                                                           \
            ids, weights, new_ids, new_weights, lists, limits, keep, sensitivity, substitutes, budgets,           \
            num_tokens, counters,                                                                                 \
            static_cast<int>(T), static_cast<int>(K), static_cast<int>(E), static_cast<int>(N),                   \
            static_cast<int>(merge), static_cast<int>(given), static_cast<int>(lane_bits), sentinel               \
        };                                                                                                        \
        reroute(call, block);                                                                                     \
    }

SERE_ENTRY(reroute_int32_float32, int, F32)
SERE_ENTRY(reroute_int32_bfloat16, int, BF16)
SERE_ENTRY(reroute_int32_float16, int, F16)
SERE_ENTRY(reroute_int32_float64, int, F64)
SERE_ENTRY(reroute_int64_float32, long long, F32)
SERE_ENTRY(reroute_int64_bfloat16, long long, BF16)
SERE_ENTRY(reroute_int64_float16, long long, F16)
SERE_ENTRY(reroute_int64_float64, long long, F64)
