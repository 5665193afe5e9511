// A block's threads as fibers of one thread: fast, repeatable, and whoever waits in vain is found.

#include <csetjmp>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_intrinsics.hpp"

namespace {

constexpr size_t STACK = 64 * 1024;

// Started with a context, then switched with jumps: a context's switch asks the system for signal masks.
struct Fiber {
    ucontext_t context;
    jmp_buf place_in_code;
    std::unique_ptr<char[]> stack{new char[STACK]};
    shim::Place place;
    bool started, done;
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<int> order;  // who runs when: shuffled, for no order may matter
size_t turn;
int threads, alive, waits;
ucontext_t main_context;
void (*body)(const void*);
const void* argument;
std::string failure;

Fiber& current() { return *fibers[order[turn]]; }

void next() {
    do turn = (turn + 1) % threads;
    while (current().done);
}

[[noreturn]] void resume(Fiber& fiber) {
    if (fiber.started) _longjmp(fiber.place_in_code, 1);
    fiber.started = true;
    setcontext(&fiber.context);
    std::abort();
}

void run_one() {
    body(argument);
    current().done = true;
    waits = 0;
    if (--alive == 0) setcontext(&main_context);
    next();
    resume(current());
}

}  // namespace

shim::Place& shim::self() { return current().place; }

void shim::note_progress() { waits = 0; }

void shim::refuse(const char* why) {
    failure = why;
    setcontext(&main_context);
    std::abort();
}

void shim::wait() {
    if (++waits > 2 * alive) refuse("threads wait for others that have ended or wait elsewhere");
    Fiber& mine = current();
    next();
    if (&current() != &mine && _setjmp(mine.place_in_code) == 0) resume(current());
}

// Runs body(argument) once per thread of each block; returns why it could not, or nullptr.
const char* run_grid(void (*a_body)(const void*), const void* an_argument, int blocks, int block_size, unsigned seed) {
    body = a_body, argument = an_argument, threads = block_size;
    failure.clear();
    while (fibers.size() < static_cast<size_t>(threads)) fibers.emplace_back(new Fiber);
    order.resize(threads);
    for (int i = 0; i < threads; ++i) order[i] = i;
    if (seed != 0) std::shuffle(order.begin(), order.end(), std::minstd_rand(seed));
    gridDim.x = static_cast<unsigned>(blocks);
    for (int block = 0; block < blocks && failure.empty(); ++block) {
        blockIdx.x = static_cast<unsigned>(block);
        shim::Meeting meeting;
        std::vector<shim::Meeting> warps((threads + 31) / 32);
        for (int i = 0; i < threads; ++i) {
            Fiber& fiber = *fibers[i];
            const int lanes = std::min(32, threads - i / 32 * 32);
            fiber.place = {static_cast<unsigned>(i), &warps[i / 32], &meeting, lanes, threads};
            fiber.started = fiber.done = false;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = STACK;
            makecontext(&fiber.context, run_one, 0);
        }
        alive = threads, turn = 0, waits = 0;
        current().started = true;
        swapcontext(&main_context, &current().context);
    }
    return failure.empty() ? nullptr : failure.c_str();
}
