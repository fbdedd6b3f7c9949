// Both convolutions of a mixer with their silu, and their gradients. A block has positions of one channel, a thread K in a
// row, which it reads together with the kHalo positions on either side: those come from the first-level cache, where the
// neighbouring threads brought them. See kernels/bimamba/README.md.
#pragma once
#include "bimamba/cuda/conv.h"
#include "selective_scan/cuda/tile.cuh"

namespace seq2exp {
namespace {

constexpr int kHalo = kConvTaps - 1;
constexpr int kConvSums = 2 * (kConvTaps + 1);  // of a block: both directions' taps from the own position outwards, bias

// Positions of a thread. The backward computes kHalo more in each direction; float has less time to do so than memory takes.
constexpr int kForwardItems = 8;
template <class T>
constexpr int kBackwardItems = sizeof(T) == 4 ? 8 : 16;

// Which part of the work a block has: a span of the positions of a channel.
struct ConvPlace {
  int span, channel, batch;

  __device__ __forceinline__ ConvPlace(unsigned id, unsigned spans, unsigned dim) {
    span = id % spans, id /= spans;
    channel = id % dim, batch = id / dim;
  }
  template <int K>
  __device__ __forceinline__ int64_t first(int turn) const {
    return ((static_cast<int64_t>(span) * kConvTurns + turn) * kConvThreads + threadIdx.x) * K;
  }
};

// Window of K positions from j on: x[p] is position j - kHalo + p, 0 outside of [0, n). j is a multiple of K.
template <int K, class T>
__device__ __forceinline__ void load_window(const Walk<T>& w, int j, int n, float (&x)[K + 2 * kHalo]) {
  constexpr int V = kVector<T>;
  if (w.vectors && j >= K && j + 2 * K <= n) {
    float edge[V];
    load_vector(w.first + (j - V), edge);
#pragma unroll
    for (int p = 0; p < kHalo; ++p) x[p] = edge[V - kHalo + p];
#pragma unroll
    for (int p = 0; p < K; p += V) load_vector(w.first + (j + p), x + kHalo + p);
    load_vector(w.first + (j + K), edge);
#pragma unroll
    for (int p = 0; p < kHalo; ++p) x[kHalo + K + p] = edge[p];
  } else {
    S2E_MARK_BRANCH(kMarkScalarLoad);
    j = opaque(j);
#pragma unroll
    for (int p = 0; p < K + 2 * kHalo; ++p) {
      const int t = j - kHalo + p;
      x[p] = t >= 0 && t < n ? load_scalar(w.first + t * w.step) : 0.f;
    }
  }
}

// Bit p: a sequence starts at element p of the window of [j, j + K). Ends of the row are no matter: all is 0 beyond.
template <int K>
__device__ __forceinline__ uint32_t sequence_starts(const GpuConv& a, int j) {
  if (!a.cu_seqlens) return 0;
  S2E_MARK_BRANCH(kMarkBegin);
  const int64_t begin = static_cast<int64_t>(j) - kHalo, end = j + K + kHalo;
  int64_t low = 0, high = a.sequences;  // the first offset behind `begin` is in [low, high]
  while (low < high) {
    S2E_MARK(kMarkChain);
    const int64_t middle = (low + high) / 2;
    if (a.cu_seqlens[middle] > begin) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  uint32_t starts = 0;
  for (; low < a.sequences && a.cu_seqlens[low] < end; ++low) {
    S2E_MARK(kMarkState);
    starts |= 1u << (a.cu_seqlens[low] - begin);
  }
  return starts;
}

// Are elements p < q of a window in different sequences?
template <bool kPacked>
__device__ __forceinline__ bool apart(uint32_t starts, int p, int q) {
  return kPacked && (starts & ((2u << q) - (2u << p))) != 0;
}

// The taps of a channel from the own position outwards.
template <int W>
struct ConvTaps {
  float tap[W], bias;

  __device__ __forceinline__ ConvTaps(const GpuConvWay& way, int channel) {
    if (!way.weight) return;
#pragma unroll
    for (int s = 0; s < W; ++s) tap[s] = way.weight[static_cast<int64_t>(channel) * W + W - 1 - s];
    bias = way.bias[channel];
  }
};

// The element that tap s of element p reads, and its value: 0 in another sequence.
template <bool kReverse>
__device__ __forceinline__ constexpr int source(int p, int s) {
  return kReverse ? p + s : p - s;
}
template <bool kReverse, bool kPacked, int N>
__device__ __forceinline__ float reached(const float (&x)[N], uint32_t starts, int p, int s) {
  const int q = source<kReverse>(p, s);
  return apart<kPacked>(starts, p < q ? p : q, p < q ? q : p) ? 0.f : x[q];
}

// Before silu.
template <bool kReverse, bool kPacked, int W, int N>
__device__ __forceinline__ float convolved(const float (&x)[N], const ConvTaps<W>& taps, uint32_t starts, int p) {
  float sum = taps.bias + taps.tap[0] * x[p];
#pragma unroll
  for (int s = 1; s < W; ++s) sum += taps.tap[s] * reached<kReverse, kPacked>(x, starts, p, s);
  return sum;
}

template <bool kReverse, bool kPacked, int K, int W>
__device__ __forceinline__ void forward_way(const float (&x)[K + 2 * kHalo], const ConvTaps<W>& taps, uint32_t starts, float (&c)[K]) {
#pragma unroll
  for (int i = 0; i < K; ++i) {
    c[i] = convolved<kReverse, kPacked>(x, taps, starts, i + kHalo);
    c[i] *= fast_sigmoid(c[i]);
  }
}

// Grid: (batch, channel, span).
template <class T, int W>
__global__ void __launch_bounds__(kConvThreads) bimamba_conv_fwd_kernel(const __grid_constant__ GpuConv a, unsigned spans) {
  constexpr int K = kForwardItems;
  const ConvPlace place(blockIdx.x, spans, static_cast<unsigned>(a.dim));
  const int n = static_cast<int>(a.length);
  const Walk<T> x_walk = walk<false, T>(a.x, place.batch, 0, place.channel, 0);
  const Walk<T> c_walks[] = {walk<false, T>(a.ways[0].c, place.batch, 0, place.channel, 0),
                             walk<false, T>(a.ways[1].c, place.batch, 0, place.channel, 0)};
  const ConvTaps<W> taps[] = {{a.ways[0], place.channel}, {a.ways[1], place.channel}};
#pragma unroll 1
  for (int turn = 0; turn < kConvTurns; ++turn) {
    const int64_t first = place.first<K>(turn);
    if (first >= n) return;
    S2E_MARK(kMarkTile);
    const int j = static_cast<int>(first);
    float x[K + 2 * kHalo], c[K];
    load_window<K>(x_walk, j, n, x);
    const uint32_t starts = sequence_starts<K>(a, j);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!a.ways[i].weight) continue;
      if (starts) {
        S2E_MARK_BRANCH(kMarkRagged);
        i ? forward_way<true, true>(x, taps[i], starts, c) : forward_way<false, true>(x, taps[i], starts, c);
      } else {
        i ? forward_way<true, false>(x, taps[i], starts, c) : forward_way<false, false>(x, taps[i], starts, c);
      }
      store<K, false>(c_walks[i], j, n, j + K <= n, c);
    }
  }
}

// Adds to dx and to the gradients of the taps and the bias (sums), at a thread's K positions.
template <bool kReverse, bool kPacked, int K, int W>
__device__ __forceinline__ void backward_way(const float (&x)[K + 2 * kHalo], const float (&grad)[K + 2 * kHalo], const ConvTaps<W>& taps,
                                             uint32_t starts, float (&dx)[K], float (&sums)[W + 1]) {
  constexpr int first = kReverse ? kHalo - (W - 1) : kHalo, end = kHalo + K + (kReverse ? 0 : W - 1);  // elements that read ours
#pragma unroll
  for (int p = first; p < end; ++p) {
    const bool mine = p >= kHalo && p < kHalo + K;
    const float before = convolved<kReverse, kPacked>(x, taps, starts, p), gate = fast_sigmoid(before);
    const float g = grad[p] * gate * (1.f + before * (1.f - gate));
#pragma unroll
    for (int s = 0; s < W; ++s) {
      const int q = source<kReverse>(p, s);
      const float here = apart<kPacked>(starts, p < q ? p : q, p < q ? q : p) ? 0.f : g;
      if (q >= kHalo && q < kHalo + K) dx[q - kHalo] += taps.tap[s] * here;
      if (mine) sums[s] += g * reached<kReverse, kPacked>(x, starts, p, s);
    }
    if (mine) sums[W] += g;
  }
}

// Grid: (batch, channel, span). a.sums: (batch, spans, dim, kConvSums).
template <class T, int W>
__global__ void __launch_bounds__(kConvThreads) bimamba_conv_bwd_kernel(const __grid_constant__ GpuConv a, unsigned spans) {
  constexpr int K = kBackwardItems<T>;
  const ConvPlace place(blockIdx.x, spans, static_cast<unsigned>(a.dim));
  const int n = static_cast<int>(a.length);
  const Walk<T> x_walk = walk<false, T>(a.x, place.batch, 0, place.channel, 0);
  const ConvTaps<W> taps[] = {{a.ways[0], place.channel}, {a.ways[1], place.channel}};
  float sums[2][W + 1] = {};
#pragma unroll 1
  for (int turn = 0; turn < kConvTurns; ++turn) {
    const int64_t first = place.first<K>(turn);
    if (first >= n) break;
    S2E_MARK(kMarkTile);
    const int j = static_cast<int>(first);
    float x[K + 2 * kHalo], dx[K] = {};
    load_window<K>(x_walk, j, n, x);
    const uint32_t starts = sequence_starts<K>(a, j);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const GpuConvWay& way = a.ways[i];
      if (!way.weight) continue;
      float grad[K + 2 * kHalo];
      load_window<K>(walk<false, T>(way.c, place.batch, 0, place.channel, 0), j, n, grad);
      if (starts) {
        S2E_MARK_BRANCH(kMarkRagged);
        i ? backward_way<true, true>(x, grad, taps[i], starts, dx, sums[i]) : backward_way<false, true>(x, grad, taps[i], starts, dx, sums[i]);
      } else {
        i ? backward_way<true, false>(x, grad, taps[i], starts, dx, sums[i]) : backward_way<false, false>(x, grad, taps[i], starts, dx, sums[i]);
      }
    }
    store<K, false>(walk<false, T>(a.dx, place.batch, 0, place.channel, 0), j, n, j + K <= n, dx);
  }

  // over the lanes, then over the warps in order
  constexpr int warps = kConvThreads / 32;
  __shared__ float totals[warps][kConvSums];
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int s = 0; s <= W; ++s) {
      const float total = warp_total(sums[i][s]);
      if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32][i * (kConvTaps + 1) + (s < W ? s : kConvTaps)] = total;
    }
  __syncthreads();
  if (threadIdx.x >= kConvSums) return;
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < warps; ++i) total += totals[i][threadIdx.x];
  const int64_t part = static_cast<int64_t>(place.batch) * spans + place.span;
  a.sums[(part * a.dim + place.channel) * kConvSums + threadIdx.x] = total;
}

// Adds the sums of all blocks of a channel, in a fixed order. A warp for each channel and sum.
__global__ void __launch_bounds__(kConvThreads) bimamba_conv_sum_kernel(const __grid_constant__ GpuConv a, int64_t parts) {
  const int64_t id = (static_cast<int64_t>(blockIdx.x) * kConvThreads + threadIdx.x) / 32;
  const int64_t channel = id / kConvSums;
  const int i = static_cast<int>(id % kConvSums), s = i % (kConvTaps + 1), lane = threadIdx.x % 32;
  if (channel >= a.dim) return;
  const GpuConvWay& way = a.ways[i / (kConvTaps + 1)];
  if (!way.weight || (s >= a.width && s < kConvTaps)) return;
  float sum = 0.f;
  for (int64_t part = lane; part < parts; part += 32) {
    S2E_MARK(kMarkSums);
    sum += a.sums[(part * a.dim + channel) * kConvSums + i];
  }
  sum = warp_total(sum);
  if (lane > 0) return;
  if (s == kConvTaps) {
    way.dbias[channel] = sum;
  } else {
    way.dweight[channel * a.width + a.width - 1 - s] = sum;
  }
}

inline int64_t spans_of(const GpuConv& a, int items) {
  const int64_t each = static_cast<int64_t>(kConvTurns) * kConvThreads * items;
  return (a.length + each - 1) / each;
}

template <class T, int W>
void forward(const GpuConv& a, cudaStream_t stream) {
  const int64_t spans = spans_of(a, kForwardItems);
  launch(bimamba_conv_fwd_kernel<T, W>, a.batch * a.dim * spans, kConvThreads, 0, stream, a, static_cast<unsigned>(spans));
}

template <class T, int W>
void backward(const GpuConv& a, cudaStream_t stream) {
  const int64_t spans = spans_of(a, kBackwardItems<T>), warps = a.dim * kConvSums;
  launch(bimamba_conv_bwd_kernel<T, W>, a.batch * a.dim * spans, kConvThreads, 0, stream, a, static_cast<unsigned>(spans));
  launch(bimamba_conv_sum_kernel, (warps * 32 + kConvThreads - 1) / kConvThreads, kConvThreads, 0, stream, a, a.batch * spans);
}

}  // namespace

template <class T>
int64_t gpu_conv_workspace(const GpuConv& a) {
  return a.batch * spans_of(a, kBackwardItems<T>) * a.dim * kConvSums;
}

template <class T>
void gpu_conv_forward(const GpuConv& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.width == 2 ? forward<T, 2>(a, s) : a.width == 3 ? forward<T, 3>(a, s) : forward<T, 4>(a, s);
}

template <class T>
void gpu_conv_backward(const GpuConv& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.width == 2 ? backward<T, 2>(a, s) : a.width == 3 ? backward<T, 3>(a, s) : backward<T, 4>(a, s);
}

}  // namespace seq2exp
