// What the bare recurrence costs on this CPU: h = 2^(dt A) h + dt u B, y = sum_n C h; fp32, 16 states, one direction, nothing else.
// No softplus, gate, skip, other dtypes, strides or lengths; outputs are written to memory that has been touched before.
// Compiled by bench/scan.py with -O3 -march=native.
#include <immintrin.h>
#include <stdint.h>

#include <thread>
#include <vector>

namespace {

constexpr int STATES = 16, LANES = 16;
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float Any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));

inline Vec load(const float* p) { return *reinterpret_cast<const Any*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<Any*>(p) = x; }

inline Vec exp2(Vec x) {
  const Vec t = x + 12582912.f, f = x - (t - 12582912.f);
  Vec p = f * 1.3264727e-3f + 9.6715126e-3f;
  p = p * f + 5.5507337e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314698e-1f;
  p = p * f + 1.f;
  return (Vec)((Int)p + ((Int)t << 23));
}

inline float sum(Vec x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)x);
#else
  float s = 0;
  for (int i = 0; i < LANES; ++i) s += x[i];
  return s;
#endif
}

template <class F>
void over_blocks(int64_t blocks, int threads, F f) {
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i)
    pool.emplace_back([=] {
      for (int64_t b = blocks * i / threads; b < blocks * (i + 1) / threads; ++b) f(b);
    });
  for (auto& thread : pool) thread.join();
}

}  // namespace

// u, dt, y (dim, L); A times log2(e) (dim, 16); B, C (L, 16). States in the lanes, eight channels share B and C.
extern "C" void floor_channels_first(const float* u, const float* dt, const float* A, const float* B, const float* C, float* y,
                                     int64_t dim, int64_t length, int threads) {
  constexpr int K = 8;
  over_blocks(dim / K, threads, [=](int64_t block) {
    Vec a[K], h[K] = {};
    for (int j = 0; j < K; ++j) a[j] = load(A + (block * K + j) * STATES);
    for (int64_t t = 0; t < length; ++t) {
      const Vec b = load(B + t * STATES), c = load(C + t * STATES);
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) {
        const int64_t i = (block * K + j) * length + t;
        h[j] = exp2(a[j] * dt[i]) * h[j] + b * (dt[i] * u[i]);
        y[i] = sum(c * h[j]);
      }
    }
  });
}

// u, dt, y (L, dim); A times log2(e) (16, dim); B, C (L, 16). Channels in the lanes.
extern "C" void floor_channels_last(const float* u, const float* dt, const float* A, const float* B, const float* C, float* y,
                                    int64_t dim, int64_t length, int threads) {
  over_blocks(dim / LANES, threads, [=](int64_t block) {
    Vec a[STATES], h[STATES] = {};
    for (int n = 0; n < STATES; ++n) a[n] = load(A + n * dim + block * LANES);
    for (int64_t t = 0; t < length; ++t) {
      const int64_t i = t * dim + block * LANES;
      const Vec d = load(dt + i), x = d * load(u + i);
      Vec s = {};
#pragma GCC unroll 16
      for (int n = 0; n < STATES; ++n) {
        h[n] = exp2(a[n] * d) * h[n] + x * B[t * STATES + n];
        s = h[n] * C[t * STATES + n] + s;
      }
      store(y + i, s);
    }
  });
}
