// The shipped source, compiled for the CPU, and its entries by name.
#pragma once

#include <cstring>
#include <utility>

#include "cuda_intrinsics.hpp"
#include "reroute.cu"

using Body = void (*)(const void*);

template <auto ENTRY, class... Arguments, size_t... POSITION>
void call_with(void (*)(Arguments...), const long long* kernel_args, std::index_sequence<POSITION...>) {
    ENTRY(shim::unpack<Arguments>(static_cast<uint64_t>(kernel_args[POSITION]))...);
}

template <auto ENTRY>
void call_entry(const void* kernel_args) {
    auto as_pack = []<class... A>(void (*)(A...)) { return std::index_sequence_for<A...>{}; };
    call_with<ENTRY>(ENTRY, static_cast<const long long*>(kernel_args), as_pack(ENTRY));
}

// All entries take the same number of arguments.
template <class... Arguments>
constexpr size_t how_many(void (*)(Arguments...)) { return sizeof...(Arguments); }
constexpr size_t ARGUMENTS = how_many(reroute_int32_float32);

inline Body find_entry(const char* name) {
#define SHIM_ENTRY(NAME) if (std::strcmp(name, #NAME) == 0) return call_entry<NAME>
    SHIM_ENTRY(reroute_int32_float32);
    SHIM_ENTRY(reroute_int32_bfloat16);
    SHIM_ENTRY(reroute_int32_float16);
    SHIM_ENTRY(reroute_int32_float64);
    SHIM_ENTRY(reroute_int64_float32);
    SHIM_ENTRY(reroute_int64_bfloat16);
    SHIM_ENTRY(reroute_int64_float16);
    SHIM_ENTRY(reroute_int64_float64);
    return nullptr;
}
