// Forward of the selective scan, and the pass that gives every segment of L its initial state (for the backward: its
// adjoint). See kernels/selective_scan/README.md.
#pragma once
#include "selective_scan/cuda/tile.cuh"

namespace seq2exp {
namespace {

// A step of the scan over lanes: what lane - d (kUp) or lane + d has, where there is such a lane, goes before what this
// lane has. p decays over the positions that (p, h) stands for.
template <bool kUp>
__device__ __forceinline__ void combine_lanes(float& p, float& h, int d, int lane) {
#ifdef SEQ2EXP_EMULATOR
  const float h_other = kUp ? __shfl_up_sync(kAllLanes, h, d) : __shfl_down_sync(kAllLanes, h, d);
  const float p_other = kUp ? __shfl_up_sync(kAllLanes, p, d) : __shfl_down_sync(kAllLanes, p, d);
  if (kUp ? lane >= d : lane + d < 32) {
    h += p * h_other;
    p *= p_other;
  }
#else
  (void)lane;  // the shuffle itself tells whether the other lane exists
  const int clamp = kUp ? 0 : 31;
  if (kUp) {
    asm volatile("{.reg .f32 a, b; .reg .pred q; shfl.sync.up.b32 a|q, %0, %2, %3, 0xffffffff; shfl.sync.up.b32 b, %1, %2, %3, 0xffffffff;"
        "@q fma.rn.f32 %0, %1, a, %0; @q mul.rn.f32 %1, %1, b;}"
        : "+f"(h), "+f"(p)
        : "r"(d), "r"(clamp));
  } else {
    asm volatile("{.reg .f32 a, b; .reg .pred q; shfl.sync.down.b32 a|q, %0, %2, %3, 0xffffffff; shfl.sync.down.b32 b, %1, %2, %3, 0xffffffff;"
        "@q fma.rn.f32 %0, %1, a, %0; @q mul.rn.f32 %1, %1, b;}"
        : "+f"(h), "+f"(p)
        : "r"(d), "r"(clamp));
  }
#endif
}

// Inclusive scan of h <- p h + h' over the lanes, p the decay over a lane's positions: from lane 0 on, or from lane 31 down
// (kUp false). Returns what enters the lane; `carry` enters the first lane and becomes what leaves the last.
template <bool kUp>
__device__ __forceinline__ float scan_lanes(float p, float h, float& carry, int lane) {
  constexpr int kFirst = kUp ? 0 : 31;
  if (lane == kFirst) h += p * carry;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) combine_lanes<kUp>(p, h, d, lane);
  const float rotated = __shfl_sync(kAllLanes, h, (lane + (kUp ? 31 : 1)) & 31);
  const float enters = lane == kFirst ? carry : rotated;
  carry = rotated;  // right in the first lane, which is where it is kept
  return enters;
}

// A state of the channel of a warp, in shared memory.
struct alignas(16) ForwardState {
  float rate, h;    // log2(e) A, state at the end of the walk so far
  float enters[2];  // state at the first position of each chunk of the tile
};

// Blocks of a multiprocessor for which there are to be registers.
template <int K>
constexpr int kForwardBlocks = K == 16 ? 2 : 3;

// Grid: (sequence, segment, group, block of channels). Shared: per state of a tile B, then C; then the channels' states.
// entry: (sequences, segments, dim, state), what enters each segment; null: zeros.
template <class T, int K, bool kDescending, bool kMixer>
__device__ __forceinline__ void forward_block(const GpuScan& a, const float* entry, unsigned segments) {
  constexpr int kTile = 32 * K, kChunks = kTile / SCAN_GPU_CHUNK, kChunkLanes = 32 / kChunks;
  S2E_DYNAMIC_SHARED(float, shared);
  const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32), warps = blockDim.x / 32;
  const int state = static_cast<int>(a.state);
  ForwardState* const own = reinterpret_cast<ForwardState*>(shared + least(state, kStateBlock) * 2 * kTile) + warp * state;

  const int group_channels = static_cast<int>(a.dim) / static_cast<int>(a.groups);
  const Work work(blockIdx.x, (group_channels + warps - 1) / warps, static_cast<unsigned>(a.groups), segments);
  const Sequence seq = sequence_of(a, work.sequence);
  const Interval span = interval_of(seq.length, kTile, work.segment, segments);
  const int in_group = work.block * warps + warp, channel = work.group * group_channels + in_group;
  const bool active = in_group < group_channels;  // otherwise the warp only helps to stage
  const int n = seq.length, first_time = kDescending ? seq.begin + n - 1 : seq.begin;
  __shared__ Channel<T> channels[kMostWarps];
  __shared__ Walk<T> b_walk, c_walk, low_walk;
  Channel<T>& mine = channels[warp];
  if (active) fill<kDescending>(mine, a, seq, channel, first_time, lane);
  if (threadIdx.x == 0) {
    b_walk = walk<kDescending, T>(a.B, seq.row, group_of(work.group, a.groups, a.groups_b), 0, first_time);
    c_walk = walk<kDescending, T>(a.C, seq.row, group_of(work.group, a.groups, a.groups_c), 0, first_time);
    if (kMixer) low_walk = walk<kDescending, T>(a.low, seq.row, 0, 0, first_time).from(0, a.low);
  }
  if (active) {
    const int64_t place = (static_cast<int64_t>(work.sequence) * segments + work.segment) * a.dim + channel;
#pragma unroll 1
    for (int i = lane; i < state; i += 32) {
      S2E_MARK(kMarkInit);
      own[i] = {LOG2E * a.A[static_cast<int64_t>(channel) * state + i], entry ? entry[place * state + i] : 0.f, {}};
    }
  }
  __syncthreads();

  for (int begin = span.begin; begin < span.end; begin += kTile) {
    S2E_MARK(kMarkTile);
    const bool full = begin + kTile <= n;
    const int k = begin + lane * K;
    float dt[K], x[K], y[K];
    if (active) {
      raw_steps<kMixer, K, kDescending>(a, mine, low_walk, channel, k, n, full, dt);
      load<K, kDescending>(mine.rows[GPU_U], k, n, full, x);
      step_sizes<kMixer>(a, mine.bias, k, n, full, dt);
      const float skip = mine.skip;
#pragma unroll
      for (int i = 0; i < K; ++i) {
        y[i] = skip * x[i];
        x[i] *= dt[i];
      }
    }
    const float sum_dt = active ? total(dt) : 0.f;
    for (int first = 0; first < state; first += kStateBlock) {
      S2E_MARK(kMarkStates);
      const int states = least(state - first, kStateBlock);
      __syncthreads();
      stage<K, kDescending>(b_walk.from(first, a.B), a.B.row, begin, n, states, shared, 2 * kTile);
      stage<K, kDescending>(c_walk.from(first, a.C), a.C.row, begin, n, states, shared + kTile, 2 * kTile);
      __syncthreads();
      if (!active) continue;
      ForwardState* at = own + first;
      float* row = shared;
#pragma unroll 1
      for (ForwardState* const end = at + states; at < end; ++at, row += 2 * kTile) {
        S2E_MARK(kMarkState);
        const float rate = at->rate;
        float carry = at->h, e[K], b[K], h = 0.f;
#pragma unroll
        for (int i = 0; i < K; i += 4) {
          const float4 four = *quad<K>(row, lane, i);
          b[i] = x[i] * four.x, b[i + 1] = x[i + 1] * four.y, b[i + 2] = x[i + 2] * four.z, b[i + 3] = x[i + 3] * four.w;
        }
#pragma unroll
        for (int i = 0; i < K; ++i) {
          e[i] = fast_exp2(dt[i] * rate);
          h = i ? e[i] * h + b[i] : b[i];
        }
        h = scan_lanes<true>(fast_exp2(sum_dt * rate), h, carry, lane);
        if (lane % kChunkLanes == 0) at->enters[lane / kChunkLanes] = h;
        if (lane == 0) at->h = carry;
#pragma unroll
        for (int i = 0; i < K; i += 4) {
          const float4 four = *quad<K>(row + kTile, lane, i);
          h = e[i] * h + b[i], y[i] += four.x * h;
          h = e[i + 1] * h + b[i + 1], y[i + 1] += four.y * h;
          h = e[i + 2] * h + b[i + 2], y[i + 2] += four.z * h;
          h = e[i + 3] * h + b[i + 3], y[i + 3] += four.w * h;
        }
      }
      __syncwarp();
    }
    if (!active) continue;
    if (a.states) {
      float* const saved = mine.states + begin / SCAN_GPU_CHUNK * a.dim * state;
#pragma unroll 1
      for (int i = lane; i < state; i += 32) {
        S2E_MARK(kMarkSave);
#pragma unroll
        for (int c = 0; c < kChunks; ++c)
          if (begin + c * SCAN_GPU_CHUNK < n) saved[c * a.dim * state + i] = own[i].enters[c];
      }
    }
    if (kMixer && a.rows[GPU_ADD].data) {
      float other[K];
      load<K, kDescending>(mine.rows[GPU_ADD], opaque(begin) + lane * K, n, full, other);
#pragma unroll
      for (int i = 0; i < K; ++i) y[i] += other[i];
    }
    if (a.rows[GPU_Z].data) {
      float gate[K];
      load<K, kDescending>(mine.rows[GPU_Z], opaque(begin) + lane * K, n, full, gate);
#pragma unroll
      for (int i = 0; i < K; ++i) y[i] *= gate[i] * fast_sigmoid(gate[i]);
    }
    store<K, kDescending>(mine.rows[GPU_OUT], opaque(begin) + lane * K, n, full, y);
  }
  if (!kMixer && active && work.segment == static_cast<int>(segments) - 1) {
#pragma unroll 1
    for (int i = lane; i < state; i += 32) {
      S2E_MARK(kMarkLast);
      a.last_state[(static_cast<int64_t>(work.sequence) * a.dim + opaque(channel)) * state + i] = own[i].h;
    }
  }
}

template <class T, int K, bool kDescending>
__global__ void __launch_bounds__(256, kForwardBlocks<K>) selective_scan_fwd_kernel(const __grid_constant__ GpuScan a, const float* entry, unsigned segments) {
  forward_block<T, K, kDescending, false>(a, entry, segments);
}

// A state of the channel of a warp, in shared memory: log2(e) A, state at the end of the walk so far.
struct SegmentState {
  float rate, h;
};

// What a segment adds to the state that enters it (kAdjoint: to the adjoint, walking from its end), and its sum of dt.
// part: (sequences, segments, dim, state), decays: (sequences, segments, dim). Tiles of the segment are `tile` long.
template <class T, int K, bool kDescending, bool kAdjoint, bool kMixer>
__device__ __forceinline__ void segment_block(const GpuScan& a, float* part, float* decays, unsigned segments, int tile) {
  constexpr int kTile = 32 * K;
  S2E_DYNAMIC_SHARED(float, shared);
  const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32), warps = blockDim.x / 32;
  const int state = static_cast<int>(a.state);
  SegmentState* const own = reinterpret_cast<SegmentState*>(shared + least(state, kStateBlock) * kTile) + warp * state;

  const int group_channels = static_cast<int>(a.dim) / static_cast<int>(a.groups);
  const Work work(blockIdx.x, (group_channels + warps - 1) / warps, static_cast<unsigned>(a.groups), segments);
  if (work.segment == (kAdjoint ? 0 : static_cast<int>(segments) - 1)) return;  // the walk's last: nothing follows it
  const Sequence seq = sequence_of(a, work.sequence);
  const Interval span = interval_of(seq.length, tile, work.segment, segments);
  const int in_group = work.block * warps + warp, channel = work.group * group_channels + in_group;
  const bool active = in_group < group_channels;

  // The walk covers the segment in n steps; position 0 of the scan is at the first time, or the last when reverse.
  const int n = span.end > span.begin ? span.end - span.begin : 0;
  const int start = kAdjoint ? span.end - 1 : span.begin;
  const int first_time = a.reverse ? seq.begin + seq.length - 1 - start : seq.begin + start;
  const GpuStrided& source = kAdjoint ? a.C : a.B;

  __shared__ Channel<T> channels[kMostWarps];
  __shared__ Walk<T> source_walk, low_walk;
  Channel<T>& mine = channels[warp];
  if (active) fill<kDescending>(mine, a, seq, channel, first_time, lane);
  if (threadIdx.x == 0) {
    source_walk = walk<kDescending, T>(source, seq.row, group_of(work.group, a.groups, kAdjoint ? a.groups_c : a.groups_b), 0, first_time);
    if (kMixer) low_walk = walk<kDescending, T>(a.low, seq.row, 0, 0, first_time).from(0, a.low);
  }
  float sum = 0.f;
  if (active) {
#pragma unroll 1
    for (int i = lane; i < state; i += 32) {
      S2E_MARK(kMarkInit);
      own[i] = {LOG2E * a.A[static_cast<int64_t>(channel) * state + i], 0.f};
    }
  }
  __syncthreads();

  for (int begin = 0; begin < n; begin += kTile) {
    S2E_MARK(kMarkTile);
    const bool full = begin + kTile <= n;
    const int k = begin + lane * K;
    float dt[K], x[K];
    if (active) {
      raw_steps<kMixer, K, kDescending>(a, mine, low_walk, channel, k, n, full, dt);
      load<K, kDescending>(mine.rows[kAdjoint ? GPU_GRAD : GPU_U], k, n, full, x);
      step_sizes<kMixer>(a, mine.bias, k, n, full, dt);
      if (kAdjoint && a.rows[GPU_Z].data) {
        float gate[K];
        load<K, kDescending>(mine.rows[GPU_Z], k, n, full, gate);
#pragma unroll
        for (int i = 0; i < K; ++i) x[i] *= gate[i] * fast_sigmoid(gate[i]);
      }
      if (!kAdjoint) {
#pragma unroll
        for (int i = 0; i < K; ++i) x[i] *= dt[i];
      }
    }
    const float sum_dt = active ? total(dt) : 0.f;
    sum += sum_dt;
    for (int first = 0; first < state; first += kStateBlock) {
      S2E_MARK(kMarkStates);
      const int states = least(state - first, kStateBlock);
      __syncthreads();
      stage<K, kDescending>(source_walk.from(first, source), source.row, begin, n, states, shared, kTile);
      __syncthreads();
      if (!active) continue;
      SegmentState* at = own + first;
      float* row = shared;
#pragma unroll 1
      for (SegmentState* const end = at + states; at < end; ++at, row += kTile) {
        S2E_MARK(kMarkState);
        const float rate = at->rate;
        float h = 0.f;
#pragma unroll
        for (int i = 0; i < K; i += 4) {
          const float4 four = *quad<K>(row, lane, i);
          const float in[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const float e = fast_exp2(dt[i + q] * rate), b = x[i + q] * in[q];
            h = kAdjoint ? e * (h + b) : e * h + b;
          }
        }
        // the last lane's view of the whole tile
        float p = fast_exp2(sum_dt * rate);
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
          const float before = __shfl_up_sync(kAllLanes, h, d), lost = __shfl_up_sync(kAllLanes, p, d);
          h += p * before;
          p *= lost;
        }
        if (lane == 31) at->h = p * at->h + h;
      }
      __syncwarp();
    }
  }
  if (!active) return;
  const int64_t place = (static_cast<int64_t>(work.sequence) * segments + work.segment) * a.dim + channel;
#pragma unroll 1
  for (int i = lane; i < state; i += 32) {
    S2E_MARK(kMarkLast);
    part[place * state + i] = own[i].h;
  }
  sum = warp_total(sum);
  if (lane == 0) decays[place] = sum;
}

template <class T, int K, bool kDescending, bool kAdjoint>
__global__ void __launch_bounds__(256, 2) selective_scan_segment_kernel(const __grid_constant__ GpuScan a, float* part, float* decays, unsigned segments, int tile) {
  segment_block<T, K, kDescending, kAdjoint, false>(a, part, decays, segments, tile);
}

// In place: what each segment adds becomes what enters it. kAdjoint: from the last segment to the first.
// A thread per (sequence, channel, state).
template <bool kAdjoint>
__global__ void selective_scan_chain_kernel(const __grid_constant__ GpuScan a, float* part, const float* decays, unsigned segments) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, row = a.dim * a.state;
  if (i >= a.sequences * row) return;
  const int64_t sequence = i / row, channel = i % row / a.state;
  const float rate = LOG2E * a.A[i % row];
  float enters = 0.f;
  for (unsigned j = 0; j < segments; ++j) {
    S2E_MARK(kMarkChain);
    const int64_t segment = sequence * segments + (kAdjoint ? segments - 1 - j : j);
    float* const at = part + segment * row + i % row;
    const float own = *at;
    *at = enters;
    enters = fast_exp2(rate * decays[segment * a.dim + channel]) * enters + own;
  }
}

}  // namespace
}  // namespace seq2exp
