// Backward: one chunk at a time from the last, states recomputed from the one saved at its first position. The inputs of a
// chunk are read tile by tile while its first states are recomputed, and its gradients are written tile by tile.
#pragma once
#include "selective_scan/cpu/scan_tile.h"

namespace seq2exp {
namespace {

// Fills states (n, NB, W), after each position, and decays (n, NB, W); adds sum C h to y when WITH_Y.
template <int NB, bool ANY, bool WITH_Y>
__attribute__((noinline)) void recompute_block(const float* dt, const float* u, const float* B, const float* C, int64_t ld,
                                               const float* decay, const float* h, float* states, float* decays, float* y, int64_t n,
                                               const Ahead& ahead) {
  Vec state[NB], a[NB];
#pragma GCC unroll 16
  for (int i = 0; i < NB; ++i) state[i] = load(h + i * W), a[i] = load(decay + i * W);
  for (int64_t t = 0; t < n; ++t) {
    ahead.fetch(t);
    const Vec d = load(dt + t * W), v = d * load(u + t * W);
    Vec sum = {};
    if (WITH_Y) sum = load(y + t * W);
#pragma GCC unroll 16
    for (int i = 0; i < NB; ++i) {
      const Vec e = decay_step<ANY>(a[i], d);
      state[i] = e * state[i] + v * B[t * ld + i];
      store(decays + (t * NB + i) * W, e);
      store(states + (t * NB + i) * W, state[i]);
      if (WITH_Y) sum = state[i] * C[t * ld + i] + sum;
    }
    if (WITH_Y) store(y + t * W, sum);
  }
}

struct Adjoint {  // running sums of the backward of one chunk
  float *from_x, *from_decay;        // (n, W): sum over states of dh B; of (dh decay h_prev) A log2(e)
  float *partial_b, *partial_c;      // (n, padded state): sums over lanes
};

// dh = carry + g C, from the last of n positions to the first; h is the state before the first of them.
template <int NB>
__attribute__((noinline)) void adjoint_block(const float* dt, const float* u, const float* g, const float* B, const float* C, int64_t ld,
                                             const float* decay, const float* h, const float* states, const float* decays, float* carry,
                                             float* sum_a, const Adjoint& out, int64_t padded, int64_t n, const Ahead& ahead) {
  Vec c[NB], da[NB];
#pragma GCC unroll 16
  for (int i = 0; i < NB; ++i) c[i] = load(carry + i * W), da[i] = load(sum_a + i * W);
  for (int64_t t = n - 1; t >= 0; --t) {
    ahead.fetch(t);
    const Vec d = load(dt + t * W), v = d * load(u + t * W), gt = load(g + t * W);
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

// Positions of a chunk without a sequence start or a tile's start inside.
struct Piece {
  int64_t offset, n;  // in the chunk
  bool restart;       // begins a sequence
  bool tile;          // begins a tile
};

struct BackwardScratch {
  // (CHUNK, W) each. y includes D u and `add`. g: gradient of y; gate: silu(z); slope, dgate: of what ddelta and dz are multiples.
  float *dt, *u, *y, *g, *slope, *gate, *dgate, *from_x, *from_decay;
  Shared shared;  // of a chunk
  float *states, *decays, *h, *sum_a, *decay, *projection;
  Piece pieces[CHUNK + 1];
  int64_t count;
  bool wide[CHUNK / TILE];
};

// One chunk of one vector, and the one that follows.
struct Work {
  Place p, next;
  int64_t v, begin, end, next_begin, span_begin;
  Vec top;
  const float *decay, *projection;
};

Ahead inputs_ahead(const ScanArgs& a, const Place& p, int64_t k) {
  Ahead ahead;
  for (const Strided* x : {&a.u, &a.delta, &a.grad, &a.z, &a.add}) ahead.add_channels(a, *x, p, k);
  return ahead;
}

// Reads the tile at offset i of the chunk.
void load_tile(const ScanArgs& a, const Shape& s, const Work& w, int64_t i, BackwardScratch& m) {
  const Place& p = w.p;
  const int64_t k = w.begin + i, n = w.end - k < TILE ? w.end - k : TILE;
  const Vec bias = load_lanes(a.bias ? a.bias + p.channel : nullptr, p.lanes);
  const Vec D = load_lanes(a.D ? a.D + p.channel : nullptr, p.lanes);
  const Rows raw = raw_steps(m.dt + i * W, a, p, s, m.shared.low + i * s.ld_low, w.projection, k, n);
  const Rows us = read_channels(m.u + i * W, a, a.u, p, k, n), grad = read_channels(m.g + i * W, a, a.grad, p, k, n);
  const Rows add = a.add.data ? read_channels(m.y + i * W, a, a.add, p, k, n) : Rows{};
  const Rows gate = a.z.data ? read_channels(m.gate + i * W, a, a.z, p, k, n) : Rows{};
  Vec longest = {};
  for (int64_t t = 0; t < n; ++t) {
    const int64_t o = (i + t) * W;
    const Vec u = us[t], biased = raw[t] + bias, e = grad[t];
    Vec dt = biased, slope = splat<Vec>(1.f), y = a.D ? D * u : Vec{}, g = e;
    if (a.softplus) dt = softplus(biased, slope);
    if (a.add.data) y += add[t];
    if (a.z.data) {
      const Vec z = gate[t], q = sigmoid(z);
      g = e * (z * q);
      store(m.gate + o, z * q);
      store(m.dgate + o, e * (q * (z * (splat<Vec>(1.f) - q) + 1.f)));
    }
    store(m.dt + o, dt);
    store(m.slope + o, slope);
    store(m.u + o, u);
    store(m.y + o, y);
    store(m.g + o, g);
    const Vec size = finite_or_inf(absolute(dt));
    longest = size > longest ? size : longest;
  }
  m.wide[i / TILE] = too_wide(longest, w.top);
  zero(m.from_x + i * W, n * W);
  zero(m.from_decay + i * W, n * W);
}

// Writes the gradients of the tile at offset i of the chunk.
void finish_tile(const ScanArgs& a, const Work& w, int64_t i, BackwardScratch& m) {
  const Place& p = w.p;
  const int64_t k = w.begin + i, n = w.end - k < TILE ? w.end - k : TILE;
  const Vec D = load_lanes(a.D ? a.D + p.channel : nullptr, p.lanes);
  const auto write = [&](const float* src, const Strided& out) {
    write_tile(src, W, out, p.b, 0, p.channel, p.lanes, k, n, a.length, a.reverse);
  };
  float *du = m.u + i * W, *ddelta = m.from_decay + i * W, *y = m.y + i * W, *dz = m.dgate + i * W;
  Vec sum_d = {}, sum_bias = {};
  for (int64_t t = 0; t < n; ++t) {
    const Vec u = load(du + t * W), g = load(m.g + (i + t) * W), from_x = load(m.from_x + (i + t) * W);
    const Vec dd = (u * from_x + load(ddelta + t * W) * LN2) * load(m.slope + (i + t) * W);
    store(du + t * W, D * g + load(m.dt + (i + t) * W) * from_x);
    store(ddelta + t * W, dd);
    sum_d += g * u;
    sum_bias += dd;
  }
  add_to(a.sum_d + w.v * W, sum_d);
  add_to(a.sum_bias + w.v * W, sum_bias);
  write(du, a.du);
  write(ddelta, a.ddelta);
  if (a.dz.data) {
    for (int64_t t = 0; t < n; ++t) store(dz + t * W, load(dz + t * W) * load(y + t * W));
    write(dz, a.dz);
  }
  if (a.y.data) {
    if (a.gated)
      for (int64_t t = 0; t < n; ++t) store(y + t * W, load(y + t * W) * load(m.gate + (i + t) * W));
    write(y, a.y);
  }
}

// The states [i, i + NB) of one chunk and vector.
template <int NB>
void backward_states(const ScanArgs& a, const Shape& s, const Work& w, BackwardScratch& m, int64_t i) {
  const bool first = i == 0, last = i + NB >= s.padded;
  const float* saved = a.states + ((w.p.b * ceil_div(a.length, CHUNK) + w.begin / CHUNK) * a.state) * a.dim + w.p.channel;
  float* none = m.h + NB * W;  // the zero state
  for (int64_t j = 0; j < NB; ++j) {
    store(m.h + j * W, i + j < a.state ? load_lanes(saved + (i + j) * a.dim, w.p.lanes) : Vec{});
    store(none + j * W, Vec{});
  }
  const auto before = [&](const Piece& q) { return q.restart ? none : q.offset ? m.states + (q.offset - 1) * NB * W : m.h; };
  const float *B = m.shared.B + i, *C = m.shared.C + i, *decay = w.decay + i * W;
  Ahead ahead;
  for (int64_t j = 0; j < m.count; ++j) {
    const Piece q = m.pieces[j];
    const int64_t t = q.offset;
    if (first && q.tile) {
      load_tile(a, s, w, t, m);
      ahead = {};
      if (w.begin + t + TILE < w.end) ahead = inputs_ahead(a, w.p, w.begin + t + TILE);
    }
    const bool wide = m.wide[t / TILE];
    const auto recompute = a.z.data ? (wide ? recompute_block<NB, true, true> : recompute_block<NB, false, true>)
                                    : (wide ? recompute_block<NB, true, false> : recompute_block<NB, false, false>);
    recompute(m.dt + t * W, m.u + t * W, B + t * s.ld, C + t * s.ld, s.ld, decay, before(q), m.states + t * NB * W, m.decays + t * NB * W,
              m.y + t * W, q.n, ahead);
  }
  float* carry = a.carry + (w.v * s.padded + i) * W;
  zero(m.sum_a, NB * W);
  for (int64_t j = m.count - 1; j >= 0; --j) {
    const Piece q = m.pieces[j];
    const int64_t t = q.offset, row = (w.v * a.span + w.begin - w.span_begin + t) * s.padded + i;
    ahead = {};
    if (last) {
      if (t < TILE) ahead = inputs_ahead(a, w.next, w.next_begin);
      for (const Strided* x : {&a.du, &a.ddelta, &a.dz, &a.y}) ahead.add_channels(a, *x, w.p, w.begin + t);
    }
    const Adjoint out{m.from_x + t * W, m.from_decay + t * W, a.partial_b + row, a.partial_c + row};
    adjoint_block<NB>(m.dt + t * W, m.u + t * W, m.g + t * W, B + t * s.ld, C + t * s.ld, s.ld, decay, before(q), m.states + t * NB * W,
                      m.decays + t * NB * W, carry, m.sum_a, out, s.padded, q.n, ahead);
    if (q.restart) zero(carry, NB * W);
    if (last && q.tile) finish_tile(a, w, t, m);
  }
  for (int64_t j = 0; j < NB; ++j) add_to(a.sum_a + (w.v * s.padded + i + j) * W, load(m.sum_a + j * W));
}

void backward_chunk(const ScanArgs& a, const Shape& s, const Work& w, BackwardScratch& m) {
  int64_t i = 0;
  for (; i + BACKWARD_STATES <= s.padded; i += BACKWARD_STATES) backward_states<BACKWARD_STATES>(a, s, w, m, i);
  for (; i < s.padded; i += 4) backward_states<4>(a, s, w, m, i);
}

int64_t backward_scratch(const ScanArgs& a) {
  const Shape s(a);
  return CHUNK * (9 * W + 2 * BACKWARD_STATES * W + 2 * s.ld + s.ld_low) + MAX_RUN * (s.padded + a.rank) * W +
         3 * BACKWARD_STATES * W + 20 * 16;
}

BackwardScratch take_backward(const ScanArgs& a, const Shape& s, float* memory) {
  Scratch scratch{memory};
  BackwardScratch m;
  for (float** x : {&m.dt, &m.u, &m.y, &m.g, &m.slope, &m.gate, &m.dgate, &m.from_x, &m.from_decay}) *x = scratch.take(CHUNK * W);
  m.shared = {scratch.take(CHUNK * s.ld), scratch.take(CHUNK * s.ld), scratch.take(CHUNK * s.ld_low)};
  m.states = scratch.take(CHUNK * BACKWARD_STATES * W);
  m.decays = scratch.take(CHUNK * BACKWARD_STATES * W);
  m.h = scratch.take(2 * BACKWARD_STATES * W);
  m.sum_a = scratch.take(BACKWARD_STATES * W);
  m.decay = scratch.take(MAX_RUN * s.padded * W);
  m.projection = scratch.take(MAX_RUN * a.rank * W);
  return m;
}

void find_pieces(const ScanArgs& a, int64_t begin, int64_t end, int64_t sequence, BackwardScratch& m) {
  m.count = 0;
  for (int64_t k = begin; k < end;) {
    while (a.starts[sequence + 1] <= k) ++sequence;
    int64_t stop = k / TILE * TILE + TILE;
    if (stop > end) stop = end;
    if (stop > a.starts[sequence + 1]) stop = a.starts[sequence + 1];
    m.pieces[m.count++] = {k - begin, stop - k, k == a.starts[sequence], k % TILE == 0};
    k = stop;
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
  BackwardScratch m = take_backward(a, s, memory);
  for_runs(s, vector_begin, vector_end, [&](int64_t v0, int64_t v1) {
    Vec top[MAX_RUN];
    for (int64_t v = v0; v < v1; ++v) {
      const Place p(a, s, v);
      top[v - v0] = load_decay(a, s, p, m.decay + (v - v0) * s.padded * W);
      load_projection(a, p, m.projection + (v - v0) * a.rank * W);
    }
    const Place p0(a, s, v0);
    for (int64_t k = begin + (end - 1 - begin) / CHUNK * CHUNK; k >= begin; k -= CHUNK) {
      const int64_t stop = k + CHUNK < end ? k + CHUNK : end;
      load_states(a, a.B, a.groups_b, p0, k, stop - k, s, m.shared.B);
      load_states(a, a.C, a.groups_c, p0, k, stop - k, s, m.shared.C);
      load_low(a, p0, k, stop - k, s, m.shared.low);
      find_pieces(a, k, stop, find_sequence(a, k), m);
      for (int64_t v = v0; v < v1; ++v) {
        const bool more = v + 1 < v1;
        backward_chunk(a, s,
                       {Place(a, s, v), Place(a, s, more ? v + 1 : v0), v, k, stop, more ? k : k - CHUNK, begin, top[v - v0],
                        m.decay + (v - v0) * s.padded * W, m.projection + (v - v0) * a.rank * W},
                       m);
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

}  // namespace
}  // namespace seq2exp
