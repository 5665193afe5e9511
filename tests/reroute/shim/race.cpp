// The kernel on threads of the system, to be compiled with ThreadSanitizer: which batches, and that they agree.
//
// Prints one line and ends with 0 where every geometry gave the same result. What is right is tested elsewhere.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "entries.hpp"

namespace {

thread_local shim::Place place;

struct Batch {
    int T, K, E;
    std::vector<int> ids, budgets;
    std::vector<short> lists;
    std::vector<float> weights, scale;
    std::vector<unsigned char> keep;
};

Batch random_batch(int T, int K, int E, unsigned seed) {
    std::minstd_rand random(seed);
    const int pieces = (E + 31) / 32;
    Batch batch{T, K, E, {}, {}, std::vector<short>((E + 7) / 8 * pieces * 256), {}, {}, std::vector<unsigned char>(E)};
    for (int i = 0; i < T * K; ++i) {
        batch.ids.push_back(static_cast<int>(random() % (E + 2)) - 1);  // a sentinel now and then
        batch.weights.push_back(static_cast<float>(random() % 8) / 8);  // ties and zeros
    }
    for (int t = 0; t < T; ++t) batch.budgets.push_back(static_cast<int>(random() % (K + 2)) - 1);
    for (int e = 0; e < E; ++e) {
        std::vector<int> row(E);
        for (int p = 0; p < E; ++p) row[p] = p;
        std::shuffle(row.begin(), row.end(), random);
        const int count = static_cast<int>(random() % E);
        for (int place = 0; place < 32 * pieces; ++place) {
            const int piece = e / 8 * pieces + place / 32, neighbour = place < count ? row[place] : e;
            batch.lists[(piece * 32 + place % 32) * 8 + e % 8] = static_cast<short>(neighbour);
        }
        batch.keep[e] = random() % 16 == 0;
    }
    for (int i = 0; i < E * E; ++i) batch.scale.push_back(1 + static_cast<float>(random() % 4) / 4);
    return batch;
}

struct Result {
    std::vector<int> ids;
    std::vector<float> weights;
    std::vector<unsigned long long> counters = std::vector<unsigned long long>(7);
    bool operator==(const Result&) const = default;
};

long long address(const void* pointer) { return static_cast<long long>(reinterpret_cast<intptr_t>(pointer)); }

void run_blocks(const long long* words, int blocks, int threads) {
    gridDim.x = static_cast<unsigned>(blocks);
    for (int block = 0; block < blocks; ++block) {
        blockIdx.x = static_cast<unsigned>(block);
        shim::Meeting meeting;
        std::vector<shim::Meeting> warps(threads / 32);
        std::vector<std::thread> team;
        for (int i = 0; i < threads; ++i) {
            team.emplace_back([&, i] {
                place = {static_cast<unsigned>(i), &warps[i / 32], &meeting, 32, threads};
                call_entry<reroute_int32_float32>(words);
            });
        }
        for (std::thread& thread : team) thread.join();
    }
}

Result run(const Batch& batch, int merge, int given, int min_active, int blocks, int threads) {
    Result result{std::vector<int>(batch.ids.size(), 77), std::vector<float>(batch.ids.size(), 77)};
    int lane_bits = 3;
    while (1 << lane_bits < batch.K) ++lane_bits;
    const long long words[] = {
        address(batch.ids.data()), address(batch.weights.data()), address(result.ids.data()),
        address(result.weights.data()), address(batch.lists.data()), address(batch.keep.data()),
        address(batch.scale.data()), address(batch.budgets.data()), 0,
        address(result.counters.data()), batch.T, batch.K, batch.E, batch.T - 1, 1, min_active, merge, given,
        lane_bits, -1,
    };
    run_blocks(words, blocks, threads);
    return result;
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
    int runs = 0;
    for (int merge = 0; merge < 4; ++merge) {
        const int given = merge % 2 ? ACTIVE_TARGETS : 0, E = merge < 2 ? 13 : 70;
        const Batch batch = random_batch(20, 5, E, 1 + static_cast<unsigned>(merge));
        // Without a floor, which saves barriers, and with one that the vote does not reach: experts join by mass.
        for (const int floor : {0, merge < 2 ? 12 : 40}) {
            const Result expected = run(batch, merge, given, floor, 1, 96);
            for (const auto& [blocks, threads] : {std::pair{1, 160}, {2, 96}, {1, 128}}) {
                if (!(run(batch, merge, given, floor, blocks, threads) == expected)) {
                    std::printf("merge %d, floor %d: %d blocks of %d threads differ\n", merge, floor, blocks, threads);
                    return 1;
                }
                ++runs;
            }
        }
    }
    std::printf("%d runs agree\n", runs);
}
