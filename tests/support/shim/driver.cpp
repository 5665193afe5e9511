// libcuda of the CPU: what cuda-core asks of the driver to load machine code and to launch it.
//
// Machine code is looked through for the entry's name; what then runs, on fibers, is the source as g++ compiles it.
// Like the driver, a launch reads as many arguments as the entry has, 8 bytes each, and looks at nothing beyond.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "entries.hpp"
#include "fibers.cpp"

namespace {

enum Result { SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

// CUlaunchConfig.
struct Config {
    unsigned grid[3], block[3], shared_bytes;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};

}  // namespace

// What a test looks at: how many launches there were, the last one; and sets: whether machine code is taken at all,
// and whether a launch runs the kernel or leaves it at being told.
extern "C" {
int shim_launches, shim_loads = 1, shim_runs = 1;
Config shim_config;
}

namespace {

int the_device;
void* the_context;

int nothing_to_do() { return SUCCESS; }

int one_device(int* found, int index) {
    *found = index;
    return index == 0 ? SUCCESS : INVALID_VALUE;
}

int count_devices(int* found) { return *found = 1, SUCCESS; }

int version(int* found) { return *found = 13000, SUCCESS; }

int primary_context(void** found, int) { return *found = &the_device, SUCCESS; }

int current_context(void** found) { return *found = the_context, SUCCESS; }

int set_context(void* chosen) { return the_context = chosen, SUCCESS; }

int describe(int, const char** found) { return *found = "refused by the shim's driver", SUCCESS; }

// An ELF file ends where its headers of sections or of segments do.
size_t size_of(const char* code) {
    const auto at = [&]<class N>(size_t place, N number) { return std::memcpy(&number, code + place, sizeof number), number; };
    const auto end = [&](size_t start, size_t size, size_t count) {
        return at(start, uint64_t{}) + at(size, uint16_t{}) * size_t{at(count, uint16_t{})};
    };
    return std::max(end(40, 58, 60), end(32, 54, 56));
}

int load(void** found, const char* code, void*, void*, unsigned, void*, void*, unsigned) {
    if (!shim_loads || std::memcmp(code, "\x7f" "ELF", 4) != 0) return INVALID_IMAGE;
    *found = new std::string(code, size_of(code));
    return SUCCESS;
}

int unload(std::string* code) { return delete code, SUCCESS; }

int entry_of(Body* found, const std::string* code, const char* name) {
    *found = find_entry(name);
    return *found != nullptr && code->find(name) != code->npos ? SUCCESS : NOT_FOUND;
}

int launch(const Config* config, Body entry, void** arguments, void**) {
    long long kernel_args[ARGUMENTS];
    for (size_t i = 0; i < ARGUMENTS; ++i) std::memcpy(kernel_args + i, arguments[i], 8);
    shim_config = *config;
    ++shim_launches;
    if (!shim_runs) return SUCCESS;
    const char* why = run_grid(entry, kernel_args, config->grid[0], config->block[0], 1);
    if (why != nullptr) std::fprintf(stderr, "%s\n", why);
    return why == nullptr ? SUCCESS : LAUNCH_FAILED;
}

void* address_of(std::string_view name) {
#define SHIM_DRIVER(NAME, FUNCTION) if (name == #NAME) return reinterpret_cast<void*>(FUNCTION)
    SHIM_DRIVER(cuInit, nothing_to_do);
    SHIM_DRIVER(cuDriverGetVersion, version);
    SHIM_DRIVER(cuDeviceGetCount, count_devices);
    SHIM_DRIVER(cuDeviceGet, one_device);
    SHIM_DRIVER(cuDevicePrimaryCtxRetain, primary_context);
    SHIM_DRIVER(cuDevicePrimaryCtxRelease, nothing_to_do);
    SHIM_DRIVER(cuCtxGetCurrent, current_context);
    SHIM_DRIVER(cuCtxSetCurrent, set_context);
    SHIM_DRIVER(cuGetErrorName, describe);
    SHIM_DRIVER(cuGetErrorString, describe);
    SHIM_DRIVER(cuLibraryLoadData, load);
    SHIM_DRIVER(cuLibraryUnload, unload);
    SHIM_DRIVER(cuLibraryGetKernel, entry_of);
    SHIM_DRIVER(cuLaunchKernelEx, launch);
    return nullptr;
}

}  // namespace

extern "C" int cuGetProcAddress_v2(const char* name, void** found, int, uint64_t, int*) {
    *found = address_of(name);
    return *found == nullptr ? NOT_FOUND : SUCCESS;
}
