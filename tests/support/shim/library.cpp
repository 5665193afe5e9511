// What ctypes calls: one launch, on fibers.

#include <algorithm>
#include <cstdlib>

#include "entries.hpp"
#include "fibers.cpp"

extern "C" const char* shim_launch(const char* name, int blocks, int threads, unsigned seed, const long long* kernel_args) {
    const Body entry = find_entry(name);
    return entry == nullptr ? "no such entry" : run_grid(entry, kernel_args, blocks, threads, seed);
}
