// Forward and backward of one layer's routed experts for training, experts in parallel.
//
// Each thread takes the next expert, gathers its rows into a buffer that stays in the core's cache, runs the
// three (backward: five) matrix products there and adds the result into its own copy of the output.
#include <ATen/Parallel.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// The BLAS that torch itself uses, column-major.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                       const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                       const float* beta, float* c, const int* ldc);

namespace {
void gemm(char transa, char transb, int m, int n, int k, const float* a, int lda, const float* b, int ldb, float* c) {
  const float one = 1.f, zero = 0.f;
  sgemm_(&transa, &transb, &m, &n, &k, &one, a, &lda, b, &ldb, &zero, c, &m);
}
// Row-major C[m, n] = op(A) op(B); the library's gemm is column-major, hence the exchange.
void mm_nn(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
  gemm('N', 'N', n, m, k, b, n, a, k, c);
}
void mm_nt(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {  // B is [n, k]
  gemm('T', 'N', n, m, k, b, k, a, k, c);
}
void mm_tn(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {  // A is [k, m]
  gemm('N', 'T', n, m, k, b, n, a, m, c);
}

void gather(const float* x, const int64_t* rows, float* to, int64_t count, int64_t width) {
  for (int64_t r = 0; r < count; ++r) std::memcpy(to + r * width, x + rows[r] * width, width * sizeof(float));
}
void scatter_add(const float* from, const int64_t* rows, float* to, int64_t count, int64_t width) {
  for (int64_t r = 0; r < count; ++r) {
    float* out = to + rows[r] * width;
    const float* in = from + r * width;
    for (int64_t h = 0; h < width; ++h) out[h] += in[h];
  }
}

// Calls work(expert, out) for every expert that has slots, and sums the threads' copies of out into result.
template <class Work>
void over_experts(int64_t experts, const int64_t* start, float* result, int64_t size, const Work& work) {
  const int64_t threads = at::get_num_threads();
  std::vector<std::vector<float>> partial(threads);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      float* out = result;
      if (i > 0) {
        partial[i].assign(size, 0.f);
        out = partial[i].data();
      }
      for (int64_t e = next++; e < experts; e = next++)
        if (start[e + 1] > start[e]) work(e, out);
    }
  });
  for (int64_t i = 1; i < threads; ++i)
    for (int64_t j = 0; j < static_cast<int64_t>(partial[i].size()); ++j) result[j] += partial[i][j];
}
}  // namespace

// x [tokens, H]; rows, gates and hidden [slots, ...] in the order of experts; start [E + 1]; out [tokens, H], zeroed.
extern "C" void experts_forward(const float* x, const int64_t* rows, const float* gates, const int64_t* start,
                                const float* gate_up, const float* down, float* hidden, float* out,
                                int64_t tokens, int64_t E, int64_t H, int64_t F) {
  over_experts(E, start, out, tokens * H, [&](int64_t e, float* mine) {
    const int64_t s = start[e], n = start[e + 1] - s;
    std::vector<float> xs(n * H), act(n * F);
    gather(x, rows + s, xs.data(), n, H);
    float* h = hidden + s * 2 * F;
    mm_nt(xs.data(), gate_up + e * 2 * F * H, h, n, 2 * F, H);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t f = 0; f < F; ++f) {
        const float g = h[r * 2 * F + f];
        act[r * F + f] = g / (1.f + std::exp(-g)) * h[r * 2 * F + F + f] * gates[s + r];
      }
    mm_nt(act.data(), down + e * H * F, xs.data(), n, H, F);
    scatter_add(xs.data(), rows + s, mine, n, H);
  });
}

// dx [tokens, H] zeroed; dgates [slots]; dgate_up and ddown zeroed.
extern "C" void experts_backward(const float* x, const float* dout, const int64_t* rows, const float* gates,
                                 const int64_t* start, const float* gate_up, const float* down, const float* hidden,
                                 float* dx, float* dgates, float* dgate_up, float* ddown, int64_t tokens, int64_t E,
                                 int64_t H, int64_t F) {
  over_experts(E, start, dx, tokens * H, [&](int64_t e, float* mine) {
    const int64_t s = start[e], n = start[e + 1] - s;
    std::vector<float> xs(n * H), dy(n * H), act(n * F), dact(n * F), dh(n * 2 * F);
    gather(dout, rows + s, dy.data(), n, H);
    mm_nn(dy.data(), down + e * H * F, dact.data(), n, F, H);
    for (int64_t r = 0; r < n; ++r) {
      const float* h = hidden + (s + r) * 2 * F;
      const float scale = gates[s + r];
      float dgate = 0.f;
      for (int64_t f = 0; f < F; ++f) {
        const float g = h[f], u = h[F + f], sigmoid = 1.f / (1.f + std::exp(-g)), silu = g * sigmoid;
        const float d = dact[r * F + f];
        dgate += d * silu * u;
        act[r * F + f] = silu * u * scale;
        dh[r * 2 * F + f] = d * scale * u * (sigmoid + silu * (1.f - sigmoid));
        dh[r * 2 * F + F + f] = d * scale * silu;
      }
      dgates[s + r] = dgate;
    }
    mm_tn(dy.data(), act.data(), ddown + e * H * F, H, F, n);
    gather(x, rows + s, xs.data(), n, H);
    mm_tn(dh.data(), xs.data(), dgate_up + e * 2 * F * H, 2 * F, H, n);
    mm_nn(dh.data(), gate_up + e * 2 * F * H, dy.data(), n, H, 2 * F);
    scatter_add(dy.data(), rows + s, mine, n, H);
  });
}
