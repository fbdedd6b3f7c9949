// What forward and backward share: how channels are cut into vectors, and what they read.
#pragma once
#include <initializer_list>

#include "common/tile.h"
#include "selective_scan/cpu/scan.h"

namespace seq2exp {
namespace {

constexpr int64_t W = WIDTH;
constexpr int64_t CHUNK = SCAN_CHUNK, TILE = SCAN_TILE;
constexpr int64_t MAX_RUN = 8;               // vectors that share one reading of B and C

struct Shape {  // derived sizes
  int64_t padded;      // states, rounded up to whole quads
  int64_t ld;          // row of a B or C tile
  int64_t per_group;   // channels
  int64_t n;           // vectors of a group
  int64_t ld_low;      // row of a tile of `low`
  explicit Shape(const ScanArgs& a)
      : padded(ceil_div(a.state, 4) * 4), ld(ceil_div(a.state, W) * W), per_group(a.dim / a.groups), n(ceil_div(per_group, W)),
        ld_low(ceil_div(a.rank, W) * W) {}
};

struct Place {  // where a vector of channels lies
  int64_t b, group, channel, lanes;
  Place(const ScanArgs& a, const Shape& s, int64_t v)
      : b(v / (s.n * a.groups)), group(v / s.n % a.groups), channel(group * s.per_group + v % s.n * W),
        lanes((group + 1) * s.per_group - channel < W ? (group + 1) * s.per_group - channel : W) {}
};

struct Scratch {
  float* next;
  float* take(int64_t floats) {
    float* p = next;
    next += ceil_div(floats, 16) * 16;
    return p;
  }
};

Vec load_lanes(const float* p, int64_t lanes) { return p ? load_some<Storage::float32>(p, 1, lanes) : Vec{}; }

void zero(float* p, int64_t n) { memset(p, 0, sizeof(float) * n); }

Vec finite_or_inf(Vec x) { return x == x ? x : splat<Vec>(__builtin_inff()); }

// Memory that is needed soon, fetched a line at a time while a chunk computes: a vector takes one cache line a position, or a few a
// channel, far apart, which no hardware prefetcher follows in time.
struct Ahead {
  struct Lines {
    const char* data;
    int64_t minor, major;  // bytes from line to line, and from W of them to the next W
  };
  Lines lines[10];
  int count = 0;

  // W rows from r on, of batch row b and group g, positions from k on.
  void add(const ScanArgs& a, const Strided& x, int64_t b, int64_t g, int64_t r, int64_t k) {
    if (!x.data) return;
    const int64_t size = x.storage == Storage::float32 ? 4 : 2, time = x.time * (a.reverse ? -1 : 1);
    const int64_t first = b * x.batch + g * x.group + r * x.row + (a.reverse ? a.length - 1 - k : k) * x.time;
    lines[count++] = {static_cast<const char*>(x.data) + size * first, size * (x.row == 1 ? time : x.row), size * W * time};
  }
  void add_channels(const ScanArgs& a, const Strided& x, const Place& p, int64_t k) { add(a, x, p.b, 0, p.channel, k); }
  void add_states(const ScanArgs& a, const Place& p, int64_t k) {
    add(a, a.B, p.b, p.group * a.groups_b / a.groups, 0, k);
    add(a, a.C, p.b, p.group * a.groups_c / a.groups, 0, k);
    add(a, a.low, p.b, 0, 0, k);
  }
  void fetch(int64_t t) const {
    for (int i = 0; i < count; ++i) __builtin_prefetch(lines[i].data + t % W * lines[i].minor + t / W * lines[i].major);
  }
};

// A times log2(e) as (padded state, W), and the largest |A log2 e| of each lane.
Vec load_decay(const ScanArgs& a, const Shape& s, const Place& p, float* decay) {
  zero(decay, s.padded * W);
  read_rows<Storage::float32>(decay, W, a.A + p.channel * a.state, a.state, 1, p.lanes, a.state);
  Vec top = {};
  for (int64_t n = 0; n < a.state; ++n) {
    const Vec x = load(decay + n * W) * LOG2E;
    store(decay + n * W, x);
    const Vec m = finite_or_inf(absolute(x));
    top = m > top ? m : top;
  }
  return top;
}

// (positions, WIDTH) in scan order.
struct Rows {
  const float* data;
  int64_t step;
  Vec operator[](int64_t t) const { return load(data + t * step); }
};

// The same tile to be read once or twice: in place when it is float32 with the rows side by side, else copied to `buffer`.
Rows rows_of_tile(float* buffer, const Strided& x, int64_t b, int64_t r, int64_t rows, int64_t k, int64_t n, int64_t length,
                  bool reverse) {
  if (x.storage == Storage::float32 && x.row == 1 && rows == WIDTH)
    return {address<Storage::float32>(x, b, 0, r, reverse ? length - 1 - k : k), reverse ? -x.time : x.time};
  read_tile(buffer, WIDTH, x, b, 0, r, rows, k, n, length, reverse);
  return {buffer, WIDTH};
}

Rows read_channels(float* buffer, const ScanArgs& a, const Strided& x, const Place& p, int64_t k, int64_t n) {
  return rows_of_tile(buffer, x, p.b, p.channel, p.lanes, k, n, a.length, a.reverse);
}

void load_states(const ScanArgs& a, const Strided& x, int64_t groups, const Place& p, int64_t k, int64_t n, const Shape& s, float* dst) {
  for (int64_t r = 0; r < a.state; r += W)
    read_tile(dst + r, s.ld, x, p.b, p.group * groups / a.groups, r, a.state - r < W ? a.state - r : W, k, n, a.length, a.reverse);
}

void load_low(const ScanArgs& a, const Place& p, int64_t k, int64_t n, const Shape& s, float* dst) {
  for (int64_t r = 0; r < a.rank; r += W)
    read_tile(dst + r, s.ld_low, a.low, p.b, 0, r, a.rank - r < W ? a.rank - r : W, k, n, a.length, a.reverse);
}

// dt_proj as (rank, W).
void load_projection(const ScanArgs& a, const Place& p, float* dst) {
  zero(dst, a.rank * W);
  read_rows<Storage::float32>(dst, W, a.dt_proj + p.channel * a.rank, a.rank, 1, p.lanes, a.rank);
}

// dt_proj low of N positions, projection as (rank, W).
template <int N>
S2E_INLINE void project(float* dst, const float* low, int64_t ld, const float* projection, int64_t rank) {
  Vec sum[N] = {};
  for (int64_t r = 0; r < rank; ++r) {
    const Vec weight = load(projection + r * W);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sum[i] = weight * low[i * ld + r] + sum[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) store(dst + i * W, sum[i]);
}

// Step sizes before bias and softplus, of positions [k, k + n): delta, or dt_proj low, with low as (n, ld_low).
Rows raw_steps(float* buffer, const ScanArgs& a, const Place& p, const Shape& s, const float* low, const float* projection, int64_t k,
               int64_t n) {
  if (a.delta.data) return read_channels(buffer, a, a.delta, p, k, n);
  int64_t t = 0;
  for (; t + 8 <= n; t += 8) project<8>(buffer + t * W, low + t * s.ld_low, s.ld_low, projection, a.rank);
  for (; t < n; ++t) project<1>(buffer + t * W, low + t * s.ld_low, s.ld_low, projection, a.rank);
  return {buffer, W};
}

// Whether some exponent of a tile may leave the range of exp2_fast.
bool too_wide(Vec longest, Vec top) { return EXP2_LIMITED && any(~(longest * top <= splat<Vec>(EXP2_LIMIT))); }

// What a run of vectors shares: B, C and low of a tile.
struct Shared {
  float *B, *C, *low;
};

// Calls f(first vector, one past the last) for runs of vectors that share B and C.
template <class F>
void for_runs(const Shape& s, int64_t begin, int64_t end, F f) {
  for (int64_t v = begin; v < end;) {
    int64_t stop = (v / s.n + 1) * s.n;
    if (stop > end) stop = end;
    if (stop > v + MAX_RUN) stop = v + MAX_RUN;
    f(v, stop);
    v = stop;
  }
}

template <bool ANY>
S2E_INLINE Vec decay_step(Vec a, Vec dt) {
  return ANY ? exp2_product_any(a, dt) : exp2_fast(a, dt);
}

}  // namespace
}  // namespace seq2exp
