// The scan kernels, compiled once per instruction set. Channels lie in the lanes of a vector, states in a loop, so that the
// recurrence needs no work across lanes. Inputs pass through small tiles in scan order: any dtype, any strides, one core.
#pragma once
#include <initializer_list>

#include "selective_scan/cpu/vector.h"

namespace seq2exp {
namespace {

constexpr int64_t W = WIDTH;
constexpr int64_t CHUNK = SCAN_CHUNK;
constexpr int64_t MAX_RUN = 8;               // vectors that share one reading of B and C

struct Shape {  // derived sizes
  int64_t padded;      // states, rounded up to whole quads
  int64_t ld;          // row of a B or C tile
  int64_t per_group;   // channels
  int64_t n;           // vectors of a group
  explicit Shape(const ScanArgs& a)
      : padded(ceil_div(a.state, 4) * 4), ld(ceil_div(a.state, W) * W), per_group(a.dim / a.groups), n(ceil_div(per_group, W)) {}
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

// Buffers for a chunk of one vector, (positions, W) each. u, delta and z are for rows that cannot be read in place.
struct Tile {
  float *u, *delta, *z, *dt, *x, *y;
};
Tile take_tile(Scratch& s) {
  return {s.take(CHUNK * W), s.take(CHUNK * W), s.take(CHUNK * W), s.take(CHUNK * W), s.take(CHUNK * W), s.take(CHUNK * W)};
}

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
  Lines lines[6];
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

Rows read_channels(float* buffer, const ScanArgs& a, const Strided& x, const Place& p, int64_t k, int64_t n) {
  return rows_of_tile(buffer, x, p.b, p.channel, p.lanes, k, n, a.length, a.reverse);
}

void load_states(const ScanArgs& a, const Strided& x, int64_t groups, const Place& p, int64_t k, int64_t n, const Shape& s, float* dst) {
  for (int64_t r = 0; r < a.state; r += W)
    read_tile(dst + r, s.ld, x, p.b, p.group * groups / a.groups, r, a.state - r < W ? a.state - r : W, k, n, a.length, a.reverse);
}

struct Inputs {
  Rows u, delta;
  bool wide;  // some exponent may leave the range of exp2_fast
};

// Reads u and delta of [k, k + n); fills dt, x = dt u and y = D u.
Inputs load_inputs(const ScanArgs& a, const Place& p, Vec top, int64_t k, int64_t n, Tile tile) {
  const Rows u = read_channels(tile.u, a, a.u, p, k, n), delta = read_channels(tile.delta, a, a.delta, p, k, n);
  const Vec bias = load_lanes(a.bias ? a.bias + p.channel : nullptr, p.lanes);
  const Vec D = load_lanes(a.D ? a.D + p.channel : nullptr, p.lanes);
  Vec longest = {};
  for (int64_t t = 0; t < n; ++t) {
    const Vec raw = delta[t] + bias;
    const Vec dt = a.softplus ? softplus(raw) : raw;
    store(tile.dt + t * W, dt);
    store(tile.x + t * W, dt * u[t]);
    store(tile.y + t * W, a.D ? D * u[t] : Vec{});
    const Vec m = finite_or_inf(absolute(dt));
    longest = m > longest ? m : longest;
  }
  return {u, delta, EXP2_LIMITED && any(~(longest * top <= splat<Vec>(EXP2_LIMIT)))};
}

template <bool ANY>
S2E_INLINE Vec decay_step(Vec a, Vec dt) {
  return ANY ? exp2_product_any(a, dt) : exp2_fast(a, dt);
}

// h = exp(dt A) h + x B, y += sum over NB states of C h, over n positions.
template <int NB, bool ANY>
__attribute__((noinline)) void forward_block(const float* dt, const float* x, const float* B, const float* C, int64_t ld,
                                             const float* decay, float* h, float* y, int64_t n, const Ahead& ahead) {
  Vec state[NB];
#pragma GCC unroll 16
  for (int i = 0; i < NB; ++i) state[i] = load(h + i * W);
  for (int64_t t = 0; t < n; ++t) {
    ahead.fetch(t);
    const Vec d = load(dt + t * W), v = load(x + t * W);
    Vec sum = load(y + t * W);
#pragma GCC unroll 16
    for (int i = 0; i < NB; ++i) {
      state[i] = decay_step<ANY>(load(decay + i * W), d) * state[i] + v * B[t * ld + i];
      sum = state[i] * C[t * ld + i] + sum;
    }
    store(y + t * W, sum);
  }
#pragma GCC unroll 16
  for (int i = 0; i < NB; ++i) store(h + i * W, state[i]);
}

template <bool ANY>
void forward_segment(const float* dt, const float* x, const float* B, const float* C, const Shape& s, const float* decay, float* h,
                     float* y, int64_t n, const Ahead& ahead) {
  int64_t i = 0;
  for (; i + FORWARD_STATES <= s.padded; i += FORWARD_STATES)
    forward_block<FORWARD_STATES, ANY>(dt, x, B + i, C + i, s.ld, decay + i * W, h + i * W, y, n, ahead);
  for (; i < s.padded; i += 4) forward_block<4, ANY>(dt, x, B + i, C + i, s.ld, decay + i * W, h + i * W, y, n, ahead);
}

void save_states(const ScanArgs& a, const Place& p, int64_t chunk, const float* h) {
  float* dst = a.states + ((p.b * ceil_div(a.length, CHUNK) + chunk) * a.state) * a.dim + p.channel;
  for (int64_t n = 0; n < a.state; ++n) store_some<Storage::float32>(dst + n * a.dim, 1, p.lanes, load(h + n * W));
}

void save_last(const ScanArgs& a, const Place& p, int64_t sequence, const float* h) {
  const int64_t row = p.b * a.sequences + (a.reverse ? a.sequences - 1 - sequence : sequence);
  write_rows<Storage::float32>(h, W, a.last_state + (row * a.dim + p.channel) * a.state, a.state, 1, p.lanes, a.state);
}

// One chunk of one vector, cut where sequences start. Returns the sequence of the next position.
int64_t forward_chunk(const ScanArgs& a, const Shape& s, const Place& p, int64_t begin, int64_t end, int64_t sequence, const Tile& tile,
                      const float* B, const float* C, const float* decay, Vec top, float* h, const Ahead& ahead) {
  const int64_t n = end - begin;
  const bool wide = load_inputs(a, p, top, begin, n, tile).wide;
  for (int64_t k = begin; k < end;) {
    while (a.starts[sequence + 1] <= k) ++sequence;
    if (k == a.starts[sequence]) zero(h, s.padded * W);
    if (a.states && k == begin) save_states(a, p, k / CHUNK, h);
    const int64_t stop = end < a.starts[sequence + 1] ? end : a.starts[sequence + 1], i = k - begin;
    (wide ? forward_segment<true> : forward_segment<false>)(tile.dt + i * W, tile.x + i * W, B + i * s.ld, C + i * s.ld, s, decay, h,
                                                            tile.y + i * W, stop - k, ahead);
    k = stop;
    if (k == a.starts[sequence + 1]) save_last(a, p, sequence, h);
  }
  if (a.z.data) {
    const Rows gate = read_channels(tile.z, a, a.z, p, begin, n);
    for (int64_t t = 0; t < n; ++t) {
      const Vec z = gate[t];
      store(tile.y + t * W, load(tile.y + t * W) * (z * sigmoid(z)));
    }
  }
  write_tile(tile.y, W, a.out, p.b, 0, p.channel, p.lanes, begin, n, a.length, a.reverse);
  return sequence;
}

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

int64_t forward_scratch(const ScanArgs& a) {
  const Shape s(a);
  return 6 * CHUNK * W + 2 * CHUNK * s.ld + 2 * MAX_RUN * s.padded * W + 16 * 16;
}

void forward(const ScanArgs& a, int64_t vector_begin, int64_t vector_end, float* memory) {
  const Shape s(a);
  Scratch scratch{memory};
  const Tile tile = take_tile(scratch);
  float *B = scratch.take(CHUNK * s.ld), *C = scratch.take(CHUNK * s.ld);
  float *decay = scratch.take(MAX_RUN * s.padded * W), *h = scratch.take(MAX_RUN * s.padded * W);
  for_runs(s, vector_begin, vector_end, [&](int64_t v0, int64_t v1) {
    Vec top[MAX_RUN];
    for (int64_t v = v0; v < v1; ++v) top[v - v0] = load_decay(a, s, Place(a, s, v), decay + (v - v0) * s.padded * W);
    int64_t sequence = 0;
    for (int64_t k = 0; k < a.length; k += CHUNK) {
      const int64_t end = k + CHUNK < a.length ? k + CHUNK : a.length;
      load_states(a, a.B, a.groups_b, Place(a, s, v0), k, end - k, s, B);
      load_states(a, a.C, a.groups_c, Place(a, s, v0), k, end - k, s, C);
      int64_t after = sequence;
      for (int64_t v = v0; v < v1; ++v) {
        const int64_t offset = (v - v0) * s.padded * W;
        const Place p(a, s, v), next(a, s, v + 1 < v1 ? v + 1 : v0);
        const int64_t next_k = v + 1 < v1 ? k : end;
        Ahead ahead;
        ahead.add_channels(a, a.out, p, k);
        for (const Strided* x : {&a.u, &a.delta, &a.z}) ahead.add_channels(a, *x, next, next_k);
        if (v == v0) ahead.add_states(a, p, end);
        after = forward_chunk(a, s, p, k, end, sequence, tile, B, C, decay + offset, top[v - v0], h + offset, ahead);
      }
      sequence = after;
    }
  });
}

// Backward: one chunk at a time from the last, states recomputed from the one saved at its first position.

// Fills states (n, NB, W), after each position, and decays (n, NB, W); adds sum C h to y when GATED.
template <int NB, bool ANY, bool GATED>
__attribute__((noinline)) void recompute_block(const float* dt, const float* x, const float* B, const float* C, int64_t ld,
                                               const float* decay, const float* h, float* states, float* decays, float* y, int64_t n,
                                               const Ahead& ahead) {
  Vec state[NB], a[NB];
#pragma GCC unroll 16
  for (int i = 0; i < NB; ++i) state[i] = load(h + i * W), a[i] = load(decay + i * W);
  for (int64_t t = 0; t < n; ++t) {
    ahead.fetch(t);
    const Vec d = load(dt + t * W), v = load(x + t * W);
    Vec sum = {};
    if (GATED) sum = load(y + t * W);
#pragma GCC unroll 16
    for (int i = 0; i < NB; ++i) {
      const Vec e = decay_step<ANY>(a[i], d);
      state[i] = e * state[i] + v * B[t * ld + i];
      store(decays + (t * NB + i) * W, e);
      store(states + (t * NB + i) * W, state[i]);
      if (GATED) sum = state[i] * C[t * ld + i] + sum;
    }
    if (GATED) store(y + t * W, sum);
  }
}

struct Adjoint {  // running sums of the backward of one chunk
  float *from_x, *from_decay;        // (n, W): sum over states of dh B; of (dh decay h_prev) A log2(e)
  float *partial_b, *partial_c;      // (n, padded state): sums over lanes
};

// dh = carry + g C, from the last of n positions to the first; h is the state before the first of them.
template <int NB>
__attribute__((noinline)) void adjoint_block(const float* dt, const float* x, const float* g, const float* B, const float* C, int64_t ld,
                                             const float* decay, const float* h, const float* states, const float* decays, float* carry,
                                             float* sum_a, const Adjoint& out, int64_t padded, int64_t n, const Ahead& ahead) {
  Vec c[NB], da[NB];
#pragma GCC unroll 16
  for (int i = 0; i < NB; ++i) c[i] = load(carry + i * W), da[i] = load(sum_a + i * W);
  for (int64_t t = n - 1; t >= 0; --t) {
    ahead.fetch(t);
    const Vec d = load(dt + t * W), v = load(x + t * W), gt = load(g + t * W);
    Vec from_x = load(out.from_x + t * W), from_decay = load(out.from_decay + t * W);
    const float* before = t > 0 ? states + (t - 1) * NB * W : h;
    Vec b_term[NB], c_term[NB];
#pragma GCC unroll 16
    for (int i = 0; i < NB; ++i) {
      const Vec dh = gt * C[t * ld + i] + c[i];
      b_term[i] = dh * v;
      c_term[i] = gt * load(states + (t * NB + i) * W);
      from_x = dh * B[t * ld + i] + from_x;
      c[i] = dh * load(decays + (t * NB + i) * W);
      const Vec w = c[i] * load(before + i * W);
      from_decay = w * load(decay + i * W) + from_decay;
      da[i] = w * d + da[i];
      if (i % 4 == 3) {
        *reinterpret_cast<Quad*>(out.partial_b + t * padded + i - 3) = sum_lanes(b_term[i - 3], b_term[i - 2], b_term[i - 1], b_term[i]);
        *reinterpret_cast<Quad*>(out.partial_c + t * padded + i - 3) = sum_lanes(c_term[i - 3], c_term[i - 2], c_term[i - 1], c_term[i]);
      }
    }
    store(out.from_x + t * W, from_x);
    store(out.from_decay + t * W, from_decay);
  }
#pragma GCC unroll 16
  for (int i = 0; i < NB; ++i) store(carry + i * W, c[i]), store(sum_a + i * W, da[i]);
}

void add_to(double* sum, Vec x) {
  for (int i = 0; i < WIDTH; ++i) sum[i] += static_cast<double>(x[i]);
}

struct BackwardScratch {
  Tile tile;
  float *g, *grad, *from_x, *from_decay, *B, *C, *decay, *states, *decays, *h, *sum_a;
  int64_t segments[CHUNK + 1];  // first positions of the pieces between sequence starts, then the end
  bool restart[CHUNK];          // the piece begins a sequence
  int64_t count;
  Ahead inputs, outputs;        // of the next vector, of this one
};

// The states [i, i + NB) of one chunk and vector.
template <int NB, bool ANY>
void backward_states(const ScanArgs& a, const Shape& s, const Place& p, int64_t begin, const BackwardScratch& m, const float* decay,
                     int64_t v, int64_t offset, int64_t i) {
  const float* saved = a.states + ((p.b * ceil_div(a.length, CHUNK) + begin / CHUNK) * a.state) * a.dim + p.channel;
  float* h = m.h;
  float* none = m.h + NB * W;  // the zero state
  for (int64_t j = 0; j < NB; ++j) {
    store(h + j * W, i + j < a.state ? load_lanes(saved + (i + j) * a.dim, p.lanes) : Vec{});
    store(none + j * W, Vec{});
  }
  const float *B = m.B + i, *C = m.C + i, *dec = decay + i * W;
  const auto recompute = a.z.data ? recompute_block<NB, ANY, true> : recompute_block<NB, ANY, false>;
  for (int64_t q = 0; q < m.count; ++q) {
    const int64_t t = m.segments[q] - begin, n = m.segments[q + 1] - m.segments[q];
    recompute(m.tile.dt + t * W, m.tile.x + t * W, B + t * s.ld, C + t * s.ld, s.ld, dec, m.restart[q] ? none : h, m.states + t * NB * W,
              m.decays + t * NB * W, m.tile.y + t * W, n, m.inputs);
  }
  float* carry = a.carry + (v * s.padded + i) * W;
  zero(m.sum_a, NB * W);
  for (int64_t q = m.count - 1; q >= 0; --q) {
    const int64_t t = m.segments[q] - begin, n = m.segments[q + 1] - m.segments[q];
    const Adjoint out{m.from_x + t * W, m.from_decay + t * W, a.partial_b + (v * a.span + offset + t) * s.padded + i,
                      a.partial_c + (v * a.span + offset + t) * s.padded + i};
    adjoint_block<NB>(m.tile.dt + t * W, m.tile.x + t * W, m.g + t * W, B + t * s.ld, C + t * s.ld, s.ld, dec, m.restart[q] ? none : h,
                      m.states + t * NB * W, m.decays + t * NB * W, carry, m.sum_a, out, s.padded, n, m.outputs);
    if (m.restart[q]) zero(carry, NB * W);
  }
  for (int64_t j = 0; j < NB; ++j) add_to(a.sum_a + (v * s.padded + i + j) * W, load(m.sum_a + j * W));
}

template <bool ANY>
void backward_all_states(const ScanArgs& a, const Shape& s, const Place& p, int64_t begin, const BackwardScratch& m, const float* decay,
                         int64_t v, int64_t offset) {
  int64_t i = 0;
  for (; i + BACKWARD_STATES <= s.padded; i += BACKWARD_STATES) backward_states<BACKWARD_STATES, ANY>(a, s, p, begin, m, decay, v, offset, i);
  for (; i < s.padded; i += 4) backward_states<4, ANY>(a, s, p, begin, m, decay, v, offset, i);
}

void backward_chunk(const ScanArgs& a, const Shape& s, const Place& p, int64_t begin, int64_t end, int64_t span_begin, const BackwardScratch& m,
                    const float* decay, Vec top, int64_t v) {
  const int64_t n = end - begin;
  const Tile& tile = m.tile;
  const Inputs in = load_inputs(a, p, top, begin, n, tile);
  const Rows grad = read_channels(m.grad, a, a.grad, p, begin, n);
  const Rows gate = a.z.data ? read_channels(tile.z, a, a.z, p, begin, n) : Rows{};
  if (a.z.data) {
    for (int64_t t = 0; t < n; ++t) store(m.g + t * W, grad[t] * (gate[t] * sigmoid(gate[t])));
  } else {
    for (int64_t t = 0; t < n; ++t) store(m.g + t * W, grad[t]);
  }
  zero(m.from_x, n * W);
  zero(m.from_decay, n * W);
  (in.wide ? backward_all_states<true> : backward_all_states<false>)(a, s, p, begin, m, decay, v, begin - span_begin);

  const Vec bias = load_lanes(a.bias ? a.bias + p.channel : nullptr, p.lanes);
  const Vec D = load_lanes(a.D ? a.D + p.channel : nullptr, p.lanes);
  Vec sum_d = {}, sum_bias = {};
  for (int64_t t = 0; t < n; ++t) {
    const Vec u = in.u[t], g = load(m.g + t * W), from_x = load(m.from_x + t * W);
    Vec ddelta = u * from_x + load(m.from_decay + t * W) * LN2;
    if (a.softplus) ddelta *= sigmoid(in.delta[t] + bias);
    store(tile.u + t * W, D * g + load(tile.dt + t * W) * from_x);
    store(tile.delta + t * W, ddelta);
    sum_d += g * u;
    sum_bias += ddelta;
  }
  write_tile(tile.u, W, a.du, p.b, 0, p.channel, p.lanes, begin, n, a.length, a.reverse);
  write_tile(tile.delta, W, a.ddelta, p.b, 0, p.channel, p.lanes, begin, n, a.length, a.reverse);
  add_to(a.sum_d + v * W, sum_d);
  add_to(a.sum_bias + v * W, sum_bias);
  if (a.z.data) {
    for (int64_t t = 0; t < n; ++t) {
      const Vec z = gate[t], q = sigmoid(z);
      store(tile.z + t * W, grad[t] * load(tile.y + t * W) * (q * (z * (splat<Vec>(1.f) - q) + 1.f)));
    }
    write_tile(tile.z, W, a.dz, p.b, 0, p.channel, p.lanes, begin, n, a.length, a.reverse);
  }
}

int64_t backward_scratch(const ScanArgs& a) {
  const Shape s(a);
  return (10 + 2 * BACKWARD_STATES) * CHUNK * W + 2 * CHUNK * s.ld + MAX_RUN * s.padded * W + 3 * BACKWARD_STATES * W + 20 * 16;
}

void find_segments(const ScanArgs& a, int64_t begin, int64_t end, int64_t sequence, BackwardScratch& m) {
  m.count = 0;
  for (int64_t k = begin; k < end; k = m.segments[m.count]) {
    while (a.starts[sequence + 1] <= k) ++sequence;
    m.restart[m.count] = k == a.starts[sequence];
    m.segments[m.count++] = k;
    m.segments[m.count] = end < a.starts[sequence + 1] ? end : a.starts[sequence + 1];
  }
}

int64_t find_sequence(const ScanArgs& a, int64_t k) {  // the last one that starts at or before k
  int64_t low = 0, high = a.sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.starts[middle] <= k ? low : high) = middle;
  }
  return low;
}

void backward(const ScanArgs& a, int64_t begin, int64_t end, int64_t vector_begin, int64_t vector_end, float* memory) {
  const Shape s(a);
  Scratch scratch{memory};
  BackwardScratch m;
  m.tile = take_tile(scratch);
  m.g = scratch.take(CHUNK * W);
  m.grad = scratch.take(CHUNK * W);
  m.from_x = scratch.take(CHUNK * W);
  m.from_decay = scratch.take(CHUNK * W);
  m.B = scratch.take(CHUNK * s.ld);
  m.C = scratch.take(CHUNK * s.ld);
  m.states = scratch.take(CHUNK * BACKWARD_STATES * W);
  m.decays = scratch.take(CHUNK * BACKWARD_STATES * W);
  m.decay = scratch.take(MAX_RUN * s.padded * W);
  m.h = scratch.take(2 * BACKWARD_STATES * W);
  m.sum_a = scratch.take(BACKWARD_STATES * W);
  for_runs(s, vector_begin, vector_end, [&](int64_t v0, int64_t v1) {
    Vec top[MAX_RUN];
    for (int64_t v = v0; v < v1; ++v) top[v - v0] = load_decay(a, s, Place(a, s, v), m.decay + (v - v0) * s.padded * W);
    for (int64_t k = begin + (end - 1 - begin) / CHUNK * CHUNK; k >= begin; k -= CHUNK) {
      const int64_t stop = k + CHUNK < end ? k + CHUNK : end;
      load_states(a, a.B, a.groups_b, Place(a, s, v0), k, stop - k, s, m.B);
      load_states(a, a.C, a.groups_c, Place(a, s, v0), k, stop - k, s, m.C);
      find_segments(a, k, stop, find_sequence(a, k), m);
      for (int64_t v = v0; v < v1; ++v) {
        const Place p(a, s, v), next(a, s, v + 1 < v1 ? v + 1 : v0);
        const int64_t next_k = v + 1 < v1 ? k : k - CHUNK;
        m.inputs = m.outputs = {};
        for (const Strided* x : {&a.u, &a.delta, &a.grad, &a.z}) m.inputs.add_channels(a, *x, next, next_k);
        for (const Strided* x : {&a.du, &a.ddelta, &a.dz}) m.outputs.add_channels(a, *x, p, k);
        if (v == v0) m.inputs.add_states(a, p, k - CHUNK);
        backward_chunk(a, s, p, k, stop, begin, m, m.decay + (v - v0) * s.padded * W, top[v - v0], v);
      }
    }
  });
}

// Adds the partial sums of the vectors of a B/C group, always in the order of their numbers.
void reduce(const ScanArgs& a, const float* partial, const Strided& out, int64_t groups, int64_t begin, int64_t end, int64_t task_begin,
            int64_t task_end, float* sum) {
  const Shape s(a);
  const int64_t chunks = ceil_div(end - begin, CHUNK), vectors = a.groups / groups * s.n;
  for (int64_t task = task_begin; task < task_end; ++task) {
    const int64_t group = task / chunks % groups, b = task / chunks / groups;
    const int64_t k = begin + task % chunks * CHUNK, n = end - k < CHUNK ? end - k : CHUNK;
    zero(sum, n * s.padded);
    for (int64_t v = (b * groups + group) * vectors; v < (b * groups + group + 1) * vectors; ++v) {
      const float* src = partial + (v * a.span + k - begin) * s.padded;
      for (int64_t i = 0; i < n * s.padded; i += W) store(sum + i, load(sum + i) + load(src + i));  // a chunk holds whole vectors
    }
    for (int64_t r = 0; r < a.state; r += W)
      write_tile(sum + r, s.padded, out, b, group, r, a.state - r < W ? a.state - r : W, k, n, a.length, a.reverse);
  }
}

void reduce_b(const ScanArgs& a, int64_t begin, int64_t end, int64_t task_begin, int64_t task_end, float* scratch) {
  reduce(a, a.partial_b, a.dB, a.groups_b, begin, end, task_begin, task_end, scratch);
}
void reduce_c(const ScanArgs& a, int64_t begin, int64_t end, int64_t task_begin, int64_t task_end, float* scratch) {
  reduce(a, a.partial_c, a.dC, a.groups_c, begin, end, task_begin, task_end, scratch);
}

constexpr ScanKernels kernels(const char* name) {
  return {name, W, forward_scratch, backward_scratch, forward, backward, reduce_b, reduce_c};
}

}  // namespace
}  // namespace seq2exp
