// The kernel on threads of the system, to be compiled with ThreadSanitizer: which batches, and that they agree.
//
// Prints one line and ends with 0 where every geometry gave the same result. What is right is tested elsewhere.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "entries.hpp"

namespace {

thread_local shim::Place place;
int runs;

template <class Id>
struct Batch {
    int T, K, E;
    std::vector<Id> ids;
    std::vector<int> budgets;
    std::vector<short> lists;
    std::vector<float> weights;
    std::vector<Pair> substitutes;
    std::vector<unsigned char> keep;
    std::vector<float> sensitivity;
};

// In the first row, which is real, and the last, which is padding, all but one slot hold what memory held before.
template <class Id>
Batch<Id> random_batch(int T, int K, int E, unsigned seed) {
    std::minstd_rand random(seed);
    const int pieces = (E + 31) / 32;
    Batch<Id> batch{T, K, E, {}, {}, std::vector<short>((E + 7) / 8 * pieces * 256), {}, {}, std::vector<unsigned char>(E), {}};
    for (int i = 0; i < T * K; ++i) {
        batch.ids.push_back(static_cast<Id>(random() % (E + 2)) - 1);  // a sentinel now and then
        const float strange[] = {NAN, INFINITY, -INFINITY, 1e38f};
        const bool plain = random() % 9 != 0;
        batch.weights.push_back(plain ? static_cast<float>(random() % 8) / 8 : strange[random() % 4]);  // ties and zeros
    }
    const Id odd[] = {std::numeric_limits<Id>::min(), std::numeric_limits<Id>::max(), E, -2};
    for (const int t : {0, T - 1}) {
        for (int k = 1; k < K; ++k) {
            batch.ids[t * K + k] = odd[k % 4];
            batch.weights[t * K + k] = k % 2 ? NAN : INFINITY;
        }
    }
    for (int t = 0; t < T; ++t) batch.budgets.push_back(static_cast<int>(random() % (K + 2)) - 1);
    for (int e = 0; e < E; ++e) {
        std::vector<int> row(E);
        for (int p = 0; p < E; ++p) row[p] = p;
        std::shuffle(row.begin(), row.end(), random);
        const int count = static_cast<int>(random() % E);
        for (int place = 0; place < 32 * pieces; ++place) {
            const int piece = e / 8 * pieces + place / 32, neighbor = place < count ? row[place] : e;
            batch.lists[(piece * 32 + place % 32) * 8 + e % 8] = static_cast<short>(neighbor);
        }
        batch.keep[e] = random() % 16 == 0;
        batch.sensitivity.push_back(1 - static_cast<float>(random() % 4) / 8);
    }
    for (int i = 0; i < E * E; ++i) {
        const float factor = 1 + static_cast<float>(random() % 4) / 4;
        batch.substitutes.push_back(Pair{factor, static_cast<float>(random() % 4) / 4});
    }
    return batch;
}

template <class Id>
struct Result {
    std::vector<Id> ids;
    std::vector<float> weights;
    std::vector<unsigned long long> counters = std::vector<unsigned long long>(COUNTS);

    // By their bits: a weight may be no number.
    bool operator==(const Result& other) const {
        return ids == other.ids && counters == other.counters &&
               std::memcmp(weights.data(), other.weights.data(), weights.size() * sizeof(float)) == 0;
    }
};

long long address(const void* pointer) { return static_cast<long long>(reinterpret_cast<intptr_t>(pointer)); }

template <auto ENTRY>
void run_blocks(const long long* kernel_args, int blocks, int threads) {
    gridDim.x = static_cast<unsigned>(blocks);
    for (int block = 0; block < blocks; ++block) {
        blockIdx.x = static_cast<unsigned>(block);
        shim::Meeting meeting;
        std::vector<shim::Meeting> warps(threads / 32);
        std::vector<std::thread> team;
        for (int i = 0; i < threads; ++i) {
            team.emplace_back([&, i] {
                place = {static_cast<unsigned>(i), &warps[i / 32], &meeting, 32, threads};
                call_entry<ENTRY>(kernel_args);
            });
        }
        for (std::thread& thread : team) thread.join();
    }
}

template <auto ENTRY, class Id>
Result<Id> run(const Batch<Id>& batch, int merge, int given, int most, int blocks, int threads) {
    Result<Id> result{std::vector<Id>(batch.ids.size(), 77), std::vector<float>(batch.ids.size(), 77)};
    int lane_bits = 3;
    while (1 << lane_bits < batch.K) ++lane_bits;
    std::vector<int> limits(LIMITS, most);
    limits.front() = 1;
    limits.back() = -(1 << 24);
    const long long kernel_args[] = {
        address(batch.ids.data()), address(batch.weights.data()), address(result.ids.data()),
        address(result.weights.data()), address(batch.lists.data()), address(limits.data()),
        address(batch.keep.data()), address(batch.sensitivity.data()), address(batch.substitutes.data()),
        address(batch.budgets.data()), 0,
        address(result.counters.data()), batch.T, batch.K, batch.E, batch.T - 1, merge, given, lane_bits, -1,
    };
    run_blocks<ENTRY>(kernel_args, blocks, threads);
    return result;
}

// Returns whether every geometry gives one result with a merge mode.
template <auto ENTRY, class Id>
bool agree(int merge) {
    const int given = merge % 2 ? ACTIVE_TARGETS : 0, E = merge < 2 ? 13 : 70;
    const Batch<Id> batch = random_batch<Id>(20, 5, E, 1 + static_cast<unsigned>(merge));
    // Without a floor, which saves barriers, and with one that the vote does not reach: experts join by mass.
    for (const int floor : {0, merge < 2 ? 12 : 40}) {
        const Result<Id> expected = run<ENTRY>(batch, merge, given, floor, 1, 96);
        for (const auto& [blocks, threads] : {std::pair{1, 160}, {2, 96}, {1, 128}}) {
            if (!(run<ENTRY>(batch, merge, given, floor, blocks, threads) == expected)) {
                std::printf("merge %d, floor %d: %d blocks of %d threads differ\n", merge, floor, blocks, threads);
                return false;
            }
            ++runs;
        }
    }
    return true;
}

}  // namespace

shim::Place& shim::self() { return place; }
void shim::wait() { std::this_thread::yield(); }
void shim::note_progress() {}
void shim::refuse(const char* why) {
    std::fprintf(stderr, "%s\n", why);
    std::abort();
}

int main() {
    for (const int merge : {0, 2}) {
        if (!agree<reroute_int32_float32, int>(merge)) return 1;
    }
    for (const int merge : {1, 3}) {
        if (!agree<reroute_int64_float32, long long>(merge)) return 1;
    }
    std::printf("%d runs agree\n", runs);
}
