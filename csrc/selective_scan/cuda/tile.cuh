// How a block walks L: a warp is a channel, its 32 lanes hold K consecutive positions each, a tile is 32 K positions.
#pragma once
#include "common/storage.cuh"
#include "selective_scan/cuda/scan.h"

namespace seq2exp {
namespace {

constexpr int kStateBlock = 16;  // states whose B and C are in shared memory at once
constexpr int kMostWarps = 8;    // of a block
constexpr unsigned kAllLanes = 0xffffffffu;

// What bench/scan_trips.py counts: each loop, and each conditional block that does not always run.
enum Mark {
  kMarkTile = 1, kMarkState, kMarkStates, kMarkStage, kMarkScalarLoad, kMarkScalarStore, kMarkRagged,
  kMarkChannels, kMarkBegin, kMarkRound, kMarkEnd, kMarkSums, kMarkChain, kMarkSave, kMarkInit, kMarkLast, kMarkFinish,
  kMarkRanks, kMarkRank, kMarkScalarLow, kMarkScalarRank
};

template <class I>
__device__ __forceinline__ I least(I a, I b) {
  return a < b ? a : b;
}

// x, of which the compiler knows nothing: what follows from it is computed where it is used, not kept in registers.
__device__ __forceinline__ int opaque(int x) {
#ifndef SEQ2EXP_EMULATOR
  asm volatile("" : "+r"(x));
#endif
  return x;
}

__device__ __forceinline__ int ceil_div(int a, int b) { return static_cast<int>((static_cast<unsigned>(a) + b - 1) / b); }

// Positions and times are int (L < 2^31 - 2^10); whatever counts elements of memory is int64_t.
struct Sequence {
  int row, begin, length;  // batch row, first time, positions
  int64_t first_chunk;     // that of position 0
};

__device__ __forceinline__ Sequence sequence_of(const GpuScan& a, int i) {
  const int length = static_cast<int>(a.length);
  if (!a.cu_seqlens) return {i, 0, length, static_cast<int64_t>(i) * ceil_div(length, SCAN_GPU_CHUNK)};
  const int begin = static_cast<int>(a.cu_seqlens[i]), end = static_cast<int>(a.cu_seqlens[i + 1]);
  return {0, begin, end - begin, begin / SCAN_GPU_CHUNK + i};
}

// Which part of the work a block has. Neighbouring blocks share B and C.
struct Work {
  int sequence, segment, group, block;  // block of channels within the group

  __device__ __forceinline__ Work(unsigned id, unsigned blocks, unsigned groups, unsigned segments) {
    block = id % blocks, id /= blocks;
    group = id % groups, id /= groups;
    segment = id % segments, sequence = id / segments;
  }
};

// The group of B or C that serves a joint group.
__device__ __forceinline__ int group_of(int group, int64_t groups, int64_t own_groups) {
  return group / (static_cast<int>(groups) / static_cast<int>(own_groups));
}

// x in a form that the compiler knows to be the same for the lanes of a warp.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(kAllLanes, x, 0); }

// Positions [begin, end) of a sequence that a segment covers: whole tiles, split evenly.
struct Interval {
  int begin, end;
};

__device__ __forceinline__ Interval interval_of(int length, int tile, int segment, int segments) {
  const int tiles = ceil_div(length, tile), each = tiles / segments, more = tiles % segments;  // the first `more` have one more
  const int begin = (segment * each + least(segment, more)) * tile;
  return {begin, least(begin + (each + (segment < more)) * tile, length)};
}

// One row of memory (a channel, or a state of B or C) seen in walking order: element j is first[j * step].
template <class T>
struct Walk {
  T* first;
  int64_t step;
  bool vectors;  // elements follow each other and K of them from a multiple of K on lie in whole 16-byte words

  // the walk of a later row of x
  __device__ __forceinline__ Walk from(int row, const GpuStrided& x) const {
    return {first + row * x.row, step, vectors && x.row % kVector<T> == 0};
  }
};

// The walk starts at `time` and goes to later times, or earlier ones when kDescending.
template <bool kDescending, class T>
__device__ __forceinline__ Walk<T> walk(const GpuStrided& x, int64_t batch, int64_t group, int64_t row, int time) {
  T* const first = static_cast<T*>(x.data) + batch * x.batch + group * x.group + row * x.row + time * x.time;
  return {first, kDescending ? -x.time : x.time, x.time == 1 && reinterpret_cast<uintptr_t>(first + kDescending) % 16 == 0};
}

// What a warp needs of its channel in every tile, in shared memory: registers are short.
template <class T>
struct Channel {
  Walk<T> rows[GPU_ROWS];
  float* states;  // the saved states of chunk 0 of its sequence
  float bias, skip;
};

// Filled by the lanes of a warp, a row each; __syncwarp is the caller's.
template <bool kDescending, class T>
__device__ __forceinline__ void fill(Channel<T>& c, const GpuScan& a, const Sequence& seq, int channel, int time, int lane) {
  if (lane < GPU_ROWS) c.rows[lane] = walk<kDescending, T>(a.rows[lane], seq.row, 0, channel, time);
  if (lane == 0) {
    c.states = a.states + (seq.first_chunk * a.dim + channel) * a.state;
    c.bias = a.bias ? a.bias[channel] : 0.f;
    c.skip = a.D ? a.D[channel] : 0.f;
  }
}

// x[i] = element j + i of a row that `w.vectors` holds for.
template <int K, bool kDescending, class T>
__device__ __forceinline__ void load_words(const T* first, int j, float (&x)[K]) {
  const T* const lowest = kDescending ? first - (j + K - 1) : first + j;
#pragma unroll
  for (int v = 0; v < K; v += kVector<T>) {
    float part[kVector<T>];
    load_vector(lowest + (kDescending ? K - kVector<T> - v : v), part);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) x[v + i] = part[kDescending ? kVector<T> - 1 - i : i];
  }
}

// x[i] = element j + i, 0 beyond n; j is a multiple of K. `full`: the whole warp stays below n.
template <int K, bool kDescending, class T>
__device__ __forceinline__ void load(const Walk<T>& w, int j, int n, bool full, float (&x)[K]) {
  if (full && w.vectors) {
    load_words<K, kDescending>(w.first, j, x);
  } else {
    S2E_MARK_BRANCH(kMarkScalarLoad);
j = opaque(j);
#pragma unroll
    for (int i = 0; i < K; ++i) x[i] = j + i < n ? load_scalar(w.first + (j + i) * w.step) : 0.f;
  }
}

template <int K, bool kDescending, class T>
__device__ __forceinline__ void store(const Walk<T>& w, int j, int n, bool full, const float (&x)[K]) {
  if (full && w.vectors) {
    T* const lowest = kDescending ? w.first - (j + K - 1) : w.first + j;
#pragma unroll
    for (int v = 0; v < K; v += kVector<T>) {
      float part[kVector<T>];
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) part[kDescending ? kVector<T> - 1 - i : i] = x[v + i];
      store_vector(lowest + (kDescending ? K - kVector<T> - v : v), part);
    }
  } else {
    S2E_MARK_BRANCH(kMarkScalarStore);
j = opaque(j);
#pragma unroll
    for (int i = 0; i < K; ++i)
      if (j + i < n) store_scalar(w.first + (j + i) * w.step, x[i]);
  }
}

// Where position p of a tile lies in shared memory: the quads of one register index are side by side over the lanes, so
// that 16-byte accesses of a warp meet no bank twice.
template <int K>
__device__ __forceinline__ int slot(int p) {
  const int lane = p / K, quad = p % K / 4;
  return (quad * 32 + lane) * 4 + p % 4;
}

// The quad of a lane whose first register index is i.
template <int K>
__device__ __forceinline__ float4* quad(float* row, int lane, int i) {
  return reinterpret_cast<float4*>(row) + (i / 4 * 32 + lane);
}

// Copies a tile of `states` rows of B or C, of which w (made by Walk::from) is the first, to shared memory as floats, 0 beyond n; the rows are
// `stride` elements apart in memory, `pitch` floats in shared memory. A row at a time to each warp; barriers are the caller's.
template <int K, bool kDescending, class T>
__device__ __forceinline__ void stage(Walk<T> w, int64_t stride, int begin, int n, int states, float* tile, int pitch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, k = begin + lane * K;
  w.first += warp * stride;
#pragma unroll 1
  for (int state = warp; state < states; state += warps, w.first += warps * stride) {
    S2E_MARK(kMarkStage);
    float x[K];
    load<K, kDescending>(w, k, n, begin + 32 * K <= n, x);
#pragma unroll
    for (int i = 0; i < K; i += 4) *quad<K>(tile + state * pitch, lane, i) = {x[i], x[i + 1], x[i + 2], x[i + 3]};
  }
}

// x += weight[r] low[r] over kRows rows; `first` and `weight` go on to the next row.
template <int kRows, int K, bool kDescending, class T>
__device__ __forceinline__ void add_rows(T*& first, int64_t stride, const float*& weight, int j, float (&x)[K]) {
  float w[kRows], part[kRows][K];
#pragma unroll
  for (int r = 0; r < kRows; ++r, first += stride) {
    w[r] = read_global(weight + r);
    load_words<K, kDescending>(first, j, part[r]);
  }
  weight += kRows;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < K; ++i) x[i] += w[r] * part[r][i];
}

// x = bias + dt_proj low for a lane of a channel; `low` is the walk of the first row. The channels of a block, and its
// neighbours, read the same rows at about the same time: the caches hold them.
template <int K, bool kDescending, class T>
__device__ __forceinline__ void project(const GpuScan& a, Walk<T> low, int channel, float bias, int j, int n, bool full, float (&x)[K]) {
  constexpr int kRankRows = 4;  // whose reads are under way together
  int left = static_cast<int>(a.rank);
  const float* weight = a.dt_proj + static_cast<int64_t>(channel) * left;
#pragma unroll
  for (int i = 0; i < K; ++i) x[i] = bias;
  if (full && low.vectors) {
#pragma unroll 1
    for (; left >= kRankRows; left -= kRankRows) {
      S2E_MARK(kMarkRanks);
      add_rows<kRankRows, K, kDescending>(low.first, a.low.row, weight, j, x);
    }
#pragma unroll 1
    for (; left > 0; --left) {
      S2E_MARK(kMarkRank);
      add_rows<1, K, kDescending>(low.first, a.low.row, weight, j, x);
    }
  } else {
    S2E_MARK_BRANCH(kMarkScalarLow);
    j = opaque(j);
#pragma unroll 1
    for (; left > 0; --left, ++weight, low.first += a.low.row) {
      S2E_MARK(kMarkScalarRank);
      const float w = read_global(weight);
#pragma unroll
      for (int i = 0; i < K; ++i)
        if (j + i < n) x[i] += w * load_scalar(low.first + (j + i) * low.step);
    }
  }
}

// What `step_sizes` starts from: delta, or in a mixer what `project` makes of its factor, the bias included.
template <bool kMixer, int K, bool kDescending, class T>
__device__ __forceinline__ void raw_steps(const GpuScan& a, const Channel<T>& mine, const Walk<T>& low, int channel, int j, int n, bool full, float (&dt)[K]) {
  if constexpr (kMixer)
    project<K, kDescending>(a, low, channel, mine.bias, j, n, full, dt);
  else
    load<K, kDescending>(mine.rows[GPU_DELTA], j, n, full, dt);
}

// Step sizes of a lane; 0 beyond the end, so that the tail neither decays nor adds.
template <bool kMixer, int K>
__device__ __forceinline__ void step_sizes(const GpuScan& a, float bias, int j, int n, bool full, float (&dt)[K]) {
  if constexpr (!kMixer) {
#pragma unroll
    for (int i = 0; i < K; ++i) dt[i] += bias;
  }
  if (kMixer || a.softplus) {
#pragma unroll
    for (int i = 0; i < K; ++i) dt[i] = fast_softplus(dt[i]);
  }
  if (!full) {
    S2E_MARK_BRANCH(kMarkRagged);
#pragma unroll
    for (int i = 0; i < K; ++i) dt[i] = j + i < n ? dt[i] : 0.f;
  }
}

template <int K>
__device__ __forceinline__ float total(const float (&x)[K]) {
  float sum = x[0];
#pragma unroll
  for (int i = 1; i < K; ++i) sum += x[i];
  return sum;
}

__device__ __forceinline__ float warp_total(float x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kAllLanes, x, d);
  return x;
}

}  // namespace
}  // namespace seq2exp
