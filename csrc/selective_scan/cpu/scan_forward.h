// Forward: one tile at a time, the vectors of a run one after the other.
#pragma once
#include "selective_scan/cpu/scan_tile.h"

namespace seq2exp {
namespace {

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

// Buffers for a tile of one vector, (TILE, W) each; `copy` is for rows that cannot be read in place.
struct Tile {
  float *dt, *x, *y, *copy;
};

// Fills dt, x = dt u and y = D u + add for [k, k + n). Returns whether decays need care.
bool load_inputs(const ScanArgs& a, const Place& p, const Shape& s, Vec top, const float* low, const float* projection, int64_t k,
                 int64_t n, const Tile& tile) {
  const Rows u = read_channels(tile.copy, a, a.u, p, k, n), raw = raw_steps(tile.dt, a, p, s, low, projection, k, n);
  const Rows other = a.add.data ? read_channels(tile.y, a, a.add, p, k, n) : Rows{};
  const Vec bias = load_lanes(a.bias ? a.bias + p.channel : nullptr, p.lanes);
  const Vec D = load_lanes(a.D ? a.D + p.channel : nullptr, p.lanes);
  Vec longest = {};
  for (int64_t t = 0; t < n; ++t) {
    const Vec biased = raw[t] + bias;
    const Vec dt = a.softplus ? softplus(biased) : biased;
    store(tile.dt + t * W, dt);
    store(tile.x + t * W, dt * u[t]);
    Vec y = a.D ? D * u[t] : Vec{};
    if (a.add.data) y += other[t];
    store(tile.y + t * W, y);
    const Vec m = finite_or_inf(absolute(dt));
    longest = m > longest ? m : longest;
  }
  return too_wide(longest, top);
}

// One tile of one vector, cut where sequences start. Returns the sequence of the next position.
int64_t forward_tile(const ScanArgs& a, const Shape& s, const Place& p, int64_t begin, int64_t end, int64_t sequence, const Tile& tile,
                     const Shared& shared, const float* decay, const float* projection, Vec top, float* h, const Ahead& ahead) {
  const int64_t n = end - begin;
  const bool wide = load_inputs(a, p, s, top, shared.low, projection, begin, n, tile);
  for (int64_t k = begin; k < end;) {
    while (a.starts[sequence + 1] <= k) ++sequence;
    if (k == a.starts[sequence]) zero(h, s.padded * W);
    if (a.states && k % CHUNK == 0) save_states(a, p, k / CHUNK, h);
    const int64_t stop = end < a.starts[sequence + 1] ? end : a.starts[sequence + 1], i = k - begin;
    (wide ? forward_segment<true> : forward_segment<false>)(tile.dt + i * W, tile.x + i * W, shared.B + i * s.ld, shared.C + i * s.ld, s,
                                                            decay, h, tile.y + i * W, stop - k, ahead);
    k = stop;
    if (a.last_state && k == a.starts[sequence + 1]) save_last(a, p, sequence, h);
  }
  if (a.z.data) {
    const Rows gate = read_channels(tile.copy, a, a.z, p, begin, n);
    for (int64_t t = 0; t < n; ++t) {
      const Vec z = gate[t];
      store(tile.y + t * W, load(tile.y + t * W) * (z * sigmoid(z)));
    }
  }
  write_tile(tile.y, W, a.out, p.b, 0, p.channel, p.lanes, begin, n, a.length, a.reverse);
  return sequence;
}

int64_t forward_scratch(const ScanArgs& a) {
  const Shape s(a);
  return TILE * (4 * W + 2 * s.ld + s.ld_low) + MAX_RUN * (2 * s.padded + a.rank) * W + 16 * 16;
}

void forward(const ScanArgs& a, int64_t vector_begin, int64_t vector_end, float* memory) {
  const Shape s(a);
  Scratch scratch{memory};
  const Tile tile{scratch.take(TILE * W), scratch.take(TILE * W), scratch.take(TILE * W), scratch.take(TILE * W)};
  const Shared shared{scratch.take(TILE * s.ld), scratch.take(TILE * s.ld), scratch.take(TILE * s.ld_low)};
  float *decay = scratch.take(MAX_RUN * s.padded * W), *h = scratch.take(MAX_RUN * s.padded * W);
  float* projection = scratch.take(MAX_RUN * a.rank * W);
  for_runs(s, vector_begin, vector_end, [&](int64_t v0, int64_t v1) {
    Vec top[MAX_RUN];
    for (int64_t v = v0; v < v1; ++v) {
      const Place p(a, s, v);
      top[v - v0] = load_decay(a, s, p, decay + (v - v0) * s.padded * W);
      load_projection(a, p, projection + (v - v0) * a.rank * W);
    }
    int64_t sequence = 0;
    for (int64_t k = 0; k < a.length; k += TILE) {
      const int64_t end = k + TILE < a.length ? k + TILE : a.length;
      const Place p0(a, s, v0);
      load_states(a, a.B, a.groups_b, p0, k, end - k, s, shared.B);
      load_states(a, a.C, a.groups_c, p0, k, end - k, s, shared.C);
      load_low(a, p0, k, end - k, s, shared.low);
      int64_t after = sequence;
      for (int64_t v = v0; v < v1; ++v) {
        const int64_t offset = (v - v0) * s.padded * W;
        const Place p(a, s, v), next(a, s, v + 1 < v1 ? v + 1 : v0);
        const int64_t next_k = v + 1 < v1 ? k : end;
        Ahead ahead;
        ahead.add_channels(a, a.out, p, k);
        for (const Strided* x : {&a.u, &a.delta, &a.add, &a.z}) ahead.add_channels(a, *x, next, next_k);
        if (v == v0) ahead.add_states(a, p, end);
        after = forward_tile(a, s, p, k, end, sequence, tile, shared, decay + offset, projection + (v - v0) * a.rank * W, top[v - v0],
                             h + offset, ahead);
      }
      sequence = after;
    }
  });
}

}  // namespace
}  // namespace seq2exp
