// Backward of the selective scan. A block owns a segment of L and all channels of a group, so that dB and dC are summed
// inside the block, in a fixed order. See kernels/selective_scan/README.md.
#pragma once
#include "selective_scan/cuda/forward.cuh"

namespace seq2exp {
namespace {

// What a channel accumulates over the states, at a lane's K positions.
template <int K>
struct Lane {
  float dt[K], x[K], dy[K];        // step size, dt * u, gradient of y
  float d_dt[K], d_x[K], y[K];     // sums over the states of w A2, g B, C h
  float sum_dt;
};

// A state of the channel of a warp, in shared memory: log2(e) A, state entering the tile, adjoint entering it from the
// right, sum of w dt.
struct alignas(16) Adjoint {
  float rate, h, g, dA;
};

// One state of one channel over a tile: h forwards from the saved state, then the adjoint backwards.
template <int K, bool kGate>
__device__ __forceinline__ void state_backward(Lane<K>& l, Adjoint* own, int lane, float* b_row) {
  float* const c_row = b_row + 32 * K;
  float* const sum_b = c_row + 32 * K;
  float* const sum_c = sum_b + 32 * K;
  const float rate = own->rate;
  float e[K], h[K], ahead = 0.f, back = 0.f;
#pragma unroll
  for (int i = 0; i < K; i += 4) {
    const float4 b = *quad<K>(b_row, lane, i);
    h[i] = l.x[i] * b.x, h[i + 1] = l.x[i + 1] * b.y, h[i + 2] = l.x[i + 2] * b.z, h[i + 3] = l.x[i + 3] * b.w;
  }
#pragma unroll
  for (int i = 0; i < K; ++i) {
    e[i] = fast_exp2(l.dt[i] * rate);
    ahead = i ? e[i] * ahead + h[i] : h[i];
  }
#pragma unroll
  for (int i = K - 4; i >= 0; i -= 4) {
    const float4 c = *quad<K>(c_row, lane, i);
    back = e[i + 3] * (back + l.dy[i + 3] * c.w);
    back = e[i + 2] * (back + l.dy[i + 2] * c.z);
    back = e[i + 1] * (back + l.dy[i + 1] * c.y);
    back = e[i] * (back + l.dy[i] * c.x);
  }
  const float p = fast_exp2(l.sum_dt * rate);
  float h_carry = own->h, g_carry = own->g;
  const float h_enters = scan_lanes<true>(p, ahead, h_carry, lane);
  float g = scan_lanes<false>(p, back, g_carry, lane);  // the adjoint of the state that leaves the position, decayed
  if (lane == 31) own->g = g_carry;

#pragma unroll
  for (int i = 0; i < K; i += 4) {
    const float4 c4 = *quad<K>(c_row, lane, i);
    const float c[4] = {c4.x, c4.y, c4.z, c4.w};
    float4* const at = quad<K>(sum_c, lane, i);
    float add[4] = {at->x, at->y, at->z, at->w};
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int j = i + r;
      h[j] += e[j] * (j ? h[j - 1] : h_enters);
      if (kGate) l.y[j] += c[r] * h[j];
      add[r] += l.dy[j] * h[j];
    }
    *at = {add[0], add[1], add[2], add[3]};
  }
  float dA = 0.f;
#pragma unroll
  for (int i = K - 4; i >= 0; i -= 4) {
    const float4 b4 = *quad<K>(b_row, lane, i), c4 = *quad<K>(c_row, lane, i);
    const float b[4] = {b4.x, b4.y, b4.z, b4.w}, c[4] = {c4.x, c4.y, c4.z, c4.w};
    float4* const at = quad<K>(sum_b, lane, i);
    float add[4] = {at->x, at->y, at->z, at->w};
#pragma unroll
    for (int r = 3; r >= 0; --r) {
      const int j = i + r;
      const float grad = g + l.dy[j] * c[r];  // of h at position j
      add[r] += grad * l.x[j];
      l.d_x[j] += grad * b[r];
      g = e[j] * grad;
      const float w = g * (j ? h[j - 1] : h_enters);
      l.d_dt[j] += w * rate;
      dA += w * l.dt[j];
    }
    *at = {add[0], add[1], add[2], add[3]};
  }
  dA = warp_total(dA);
  if (lane == 0) own->dA += dA;
}

// What is the same for all threads of a block; kept in shared memory, since registers are short.
struct BlockPlace {
  Sequence seq;
  Interval span;
  int first_time, first_channel, joint_group;
  int64_t part;  // (sequence, segment) * dim
};

// dB, dC of a tile between global memory (batch, groups, state, L) and the sums in shared memory.
template <int K, class F>
__device__ __forceinline__ void each_sum(const GpuScan& a, const BlockPlace& place, int begin, int first, int states, F f) {
  const Sequence& seq = place.seq;
  constexpr int kTile = 32 * K;
#pragma unroll 1
  for (int unit = threadIdx.x; unit < states * kTile; unit += blockDim.x) {
    S2E_MARK(kMarkSums);
    const int state = unit / kTile, p = unit % kTile;
    const int k = begin + p, time = seq.begin + (a.reverse ? seq.length - 1 - k : k);
    if (k < seq.length) f(((seq.row * a.groups + place.joint_group) * a.state + first + state) * a.length + time, state * 4 * kTile + slot<K>(p));
  }
}

// Forms of the backward: without and with a gate, and the two of a mixer: that of the direction that only writes its y, and
// that of the one that adds the other's y to its own and closes the gate over both.
enum class Form { kBare, kGated, kOpen, kClosing };

template <Form kForm>
constexpr bool kIsMixer = kForm == Form::kOpen || kForm == Form::kClosing;

// Writes what a form writes of y (without gate) at a lane's positions; y is lost. j: see `load`.
template <int K, bool kDescending, Form kForm, class T>
__device__ __forceinline__ void finish_gate(const GpuScan& a, const Channel<T>& mine, int j, int n, bool full, float (&y)[K], float (&dy)[K]) {
  if (kForm == Form::kOpen) {
    store<K, kDescending>(mine.rows[GPU_OUT], j, n, full, y);
    return;
  }
  if (kForm == Form::kClosing && a.rows[GPU_ADD].data) {
    float other[K];
    load<K, kDescending>(mine.rows[GPU_ADD], j, n, full, other);
#pragma unroll
    for (int i = 0; i < K; ++i) y[i] += other[i];
  }
  float z[K], grad[K];
  load<K, kDescending>(mine.rows[GPU_Z], j, n, full, z);
  load<K, kDescending>(mine.rows[GPU_GRAD], j, n, full, grad);
#pragma unroll
  for (int i = 0; i < K; ++i) {
    const float gate = fast_sigmoid(z[i]), total = y[i];
    y[i] *= grad[i] * gate * (1.f + z[i] * (1.f - gate));
    if (kForm == Form::kClosing) {
      z[i] *= gate;
      dy[i] = grad[i] * z[i];  // once more, so that du, which may overwrite grad, cannot be written before grad is read
      z[i] *= total;
    }
  }
  store<K, kDescending>(mine.rows[GPU_DZ], j, n, full, y);
  if (kForm == Form::kClosing) store<K, kDescending>(mine.rows[GPU_OUT], j, n, full, z);
}

// Gradients of a channel's inputs over a tile, and what it hands to the tile before.
template <class T, int K, bool kDescending, Form kForm>
__device__ __forceinline__ void finish_channel(const GpuScan& a, Lane<K>& l, const Adjoint* own, const BlockPlace& place,
                                               const Channel<T>& mine, int channel, int begin, float* adjoint) {
  const int lane = threadIdx.x % 32;
  const int n = place.seq.length, k = opaque(begin) + lane * K;
  const bool full = begin + 32 * K <= n;
  if (kForm != Form::kBare) finish_gate<K, kDescending, kForm>(a, mine, k, n, full, l.y, l.dy);
  const float bias = mine.bias, skip = mine.skip;
  float u[K], raw[K], dD = 0.f, dbias = 0.f;
  load<K, kDescending>(mine.rows[GPU_U], k, n, full, u);
  if (!kIsMixer<kForm>) load<K, kDescending>(mine.rows[GPU_DELTA], k, n, full, raw);
#pragma unroll
  for (int i = 0; i < K; ++i) {
    dD += l.dy[i] * u[i];
    const float slope = kIsMixer<kForm> ? fast_softplus_slope(l.dt[i]) : a.softplus ? fast_sigmoid(raw[i] + bias) : 1.f;
    l.d_dt[i] = (LN2 * l.d_dt[i] + u[i] * l.d_x[i]) * slope;
    dbias += l.d_dt[i];
    l.d_x[i] = l.dt[i] * l.d_x[i] + skip * l.dy[i];
  }
  store<K, kDescending>(mine.rows[GPU_DDELTA], k, n, full, l.d_dt);
  store<K, kDescending>(mine.rows[GPU_DU], k, n, full, l.d_x);
  dD = warp_total(dD), dbias = warp_total(dbias);
  const int state = static_cast<int>(a.state);
  float* const sums = a.sums + (place.part + channel) * (state + 2);
  __syncwarp();
#pragma unroll 1
  for (int i = lane; i < state; i += 32) {
    S2E_MARK(kMarkFinish);
    adjoint[(place.part + channel) * state + i] = own[i].g;
    sums[i] += own[i].dA;
  }
  if (lane == 0) sums[state] += dD, sums[state + 1] += dbias;
}

// Grid: (sequence, segment, group). Shared: per state of a tile B, C, the sums of dB and dC; then the channels' states.
// adjoint: (sequences, segments, dim, state), entering each segment from its end; overwritten.
template <class T, bool kDescending, Form kForm>
__device__ __forceinline__ void backward_block(const GpuScan& a, float* adjoint, unsigned segments) {
  constexpr bool kGate = kForm != Form::kBare, kMixer = kIsMixer<kForm>;
  constexpr int kTile = SCAN_GPU_CHUNK, K = kTile / 32, kPitch = 4 * kTile;  // B, C, sums of dB, dC
  S2E_DYNAMIC_SHARED(float, shared);
  const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32), warps = blockDim.x / 32;
  const int state = static_cast<int>(a.state), block_states = least(state, kStateBlock);
  Adjoint* const own = reinterpret_cast<Adjoint*>(shared + block_states * kPitch) + warp * state;

  const int group_channels = static_cast<int>(a.dim) / static_cast<int>(a.groups);
  __shared__ BlockPlace place;
  __shared__ Walk<T> b_walk, c_walk, low_walk;
  __shared__ Channel<T> channels[kMostWarps];
  Channel<T>& mine = channels[warp];
  const Work work(blockIdx.x, 1, static_cast<unsigned>(a.groups), segments);
  if (threadIdx.x == 0) {
    const Sequence seq = sequence_of(a, work.sequence);
    place = {seq,
             interval_of(seq.length, kTile, work.segment, segments),
             kDescending ? seq.begin + seq.length - 1 : seq.begin,
             work.group * group_channels,
             work.group,
             (static_cast<int64_t>(work.sequence) * segments + work.segment) * a.dim};
    b_walk = walk<kDescending, T>(a.B, seq.row, group_of(work.group, a.groups, a.groups_b), 0, place.first_time);
    c_walk = walk<kDescending, T>(a.C, seq.row, group_of(work.group, a.groups, a.groups_c), 0, place.first_time);
    if (kMixer) low_walk = walk<kDescending, T>(a.low, seq.row, 0, 0, place.first_time).from(0, a.low);
  }
  __syncthreads();
  const int turns = (block_states + warps - 1) / warps;  // states of a warp between two barriers
  const bool one_block = state <= kStateBlock;           // of states: B, C and the sums stay for all channels of a tile
  const int last_tile = place.span.end > place.span.begin ? (place.span.end - 1) / kTile * kTile : -1;

  // sums: dA, dD and dbias of the segment
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < static_cast<int64_t>(group_channels) * (state + 2); i += blockDim.x) {
    S2E_MARK(kMarkInit);
    a.sums[(place.part + place.first_channel) * (state + 2) + i] = 0.f;
  }

  for (int begin = last_tile; begin >= uniform(place.span.begin); begin -= kTile) {
    S2E_MARK(kMarkTile);
    for (int base = 0; base < group_channels; base += warps) {
      S2E_MARK(kMarkChannels);
      const bool active = base + warp < group_channels;
      const int channel = place.first_channel + base + warp;
      Lane<K> l;
      if (active) {
        const int n = place.seq.length, k = opaque(begin) + lane * K;
        const bool full = begin + kTile <= n;
        fill<kDescending>(mine, a, place.seq, channel, place.first_time, lane);
        __syncwarp();
        raw_steps<kMixer, K, kDescending>(a, mine, low_walk, channel, k, n, full, l.dt);
        load<K, kDescending>(mine.rows[GPU_U], k, n, full, l.x);
        load<K, kDescending>(mine.rows[GPU_GRAD], k, n, full, l.dy);
        step_sizes<kMixer>(a, mine.bias, k, n, full, l.dt);
        l.sum_dt = total(l.dt);
        if (kGate) {
          float gate[K];
          load<K, kDescending>(mine.rows[GPU_Z], k, n, full, gate);
#pragma unroll
          for (int i = 0; i < K; ++i) l.dy[i] *= gate[i] * fast_sigmoid(gate[i]);
        }
#pragma unroll
        for (int i = 0; i < K; ++i) {
          l.y[i] = mine.skip * l.x[i];
          l.x[i] *= l.dt[i];
          l.d_dt[i] = l.d_x[i] = 0.f;
        }
        const float* const saved = mine.states + begin / kTile * a.dim * state;
#pragma unroll 1
        for (int i = lane; i < state; i += 32) {
          S2E_MARK(kMarkSave);
          own[i] = {LOG2E * a.A[static_cast<int64_t>(channel) * state + i], saved[i], adjoint[(place.part + channel) * state + i], 0.f};
        }
      }
      for (int first = 0; first < state; first += kStateBlock) {
        S2E_MARK(kMarkStates);
        const int states = least(state - first, kStateBlock);
        if (base == 0 || !one_block) {
          S2E_MARK_BRANCH(kMarkBegin);  // all are past the barrier before kMarkEnd: nobody reads what was there
          stage<K, kDescending>(b_walk.from(first, a.B), a.B.row, begin, place.seq.length, states, shared, kPitch);
          stage<K, kDescending>(c_walk.from(first, a.C), a.C.row, begin, place.seq.length, states, shared + kTile, kPitch);
          each_sum<K>(a, place, begin, first, states, [&](int64_t at, int in) {
            shared[2 * kTile + in] = base == 0 ? 0.f : a.dB[at];
            shared[3 * kTile + in] = base == 0 ? 0.f : a.dC[at];
          });
        }
        // in each round every warp has states of its own
        for (int round = 0, mine = warp; round < warps; ++round, mine = mine + 1 < warps ? mine + 1 : 0) {
          S2E_MARK(kMarkRound);
          __syncthreads();
          if (!active) continue;
          const int s = mine * turns;
          float* tile = shared + s * kPitch;
          Adjoint* at = own + first + s;
#pragma unroll 1
          for (int left = opaque(least(turns, states - s)); left > 0; --left, ++at, tile += kPitch) {
            S2E_MARK(kMarkState);
            state_backward<K, kGate>(l, at, lane, tile);
          }
        }
        if (base + warps >= group_channels || !one_block) {
          S2E_MARK_BRANCH(kMarkEnd);
          __syncthreads();
          each_sum<K>(a, place, begin, first, states, [&](int64_t at, int in) {
            a.dB[at] = shared[2 * kTile + in];
            a.dC[at] = shared[3 * kTile + in];
          });
        }
      }
      if (active) finish_channel<T, K, kDescending, kForm>(a, l, own, place, mine, channel, begin, adjoint);
    }
  }
}

template <class T, bool kDescending, bool kGate>
__global__ void __launch_bounds__(256, 2) selective_scan_bwd_kernel(const __grid_constant__ GpuScan a, float* adjoint, unsigned segments) {
  backward_block<T, kDescending, kGate ? Form::kGated : Form::kBare>(a, adjoint, segments);
}

}  // namespace
}  // namespace seq2exp
