// How a block walks L: a warp is a channel, its 32 lanes hold K consecutive positions each, a tile is 32 K positions.
#pragma once
#include "common/storage.cuh"
#include "selective_scan/cuda/scan.h"

namespace seq2exp {
namespace {

constexpr int kStateBlock = 16;  // states whose B and C are in shared memory at once
constexpr unsigned kAllLanes = 0xffffffffu;

// What bench/scan_trips.py counts: each loop, and each conditional block that does not always run.
enum Mark {
  kMarkTile = 1, kMarkState, kMarkStates, kMarkStage, kMarkStageScalar, kMarkScalarLoad, kMarkScalarStore, kMarkRagged,
  kMarkChannels, kMarkBegin, kMarkRound, kMarkEnd, kMarkSums, kMarkChain, kMarkSave
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
};

// `time` is where the walk starts, `direction` +1 or -1 in time.
template <class T>
__device__ __forceinline__ Walk<T> walk(const GpuStrided& x, int64_t batch, int64_t group, int64_t row, int time, int direction) {
  T* const data = static_cast<T*>(x.data);
  return {data + batch * x.batch + group * x.group + row * x.row + time * x.time, direction * x.time};
}

// The K positions of a lane from j on lie in whole 16-byte words.
template <int K, bool kDescending, class T>
__device__ __forceinline__ bool vectorizable(const Walk<T>& w, int j) {
  const T* const lowest = kDescending ? w.first - (j + K - 1) : w.first + j;
  return w.step == (kDescending ? -1 : 1) && reinterpret_cast<uintptr_t>(lowest) % 16 == 0;
}

// x[i] = element j + i, 0 beyond n. `full`: no lane reaches n; j is a multiple of K beyond the start of the tile.
template <int K, bool kDescending, class T>
__device__ __forceinline__ void load(const Walk<T>& w, int j, int n, bool full, float (&x)[K]) {
  if (full && vectorizable<K, kDescending>(w, j)) {
#pragma unroll
    for (int v = 0; v < K; v += kVector<T>) {
      float part[kVector<T>];
      load_vector(kDescending ? w.first - (j + v + kVector<T> - 1) : w.first + (j + v), part);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) x[v + i] = part[kDescending ? kVector<T> - 1 - i : i];
    }
  } else {
    S2E_MARK_BRANCH(kMarkScalarLoad);
#pragma unroll
    for (int i = 0; i < K; ++i) x[i] = j + i < n ? to_float(w.first[(j + i) * w.step]) : 0.f;
  }
}

template <int K, bool kDescending, class T>
__device__ __forceinline__ void store(const Walk<T>& w, int j, int n, bool full, const float (&x)[K]) {
  if (full && vectorizable<K, kDescending>(w, j)) {
#pragma unroll
    for (int v = 0; v < K; v += kVector<T>) {
      float part[kVector<T>];
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) part[kDescending ? kVector<T> - 1 - i : i] = x[v + i];
      store_vector(kDescending ? w.first - (j + v + kVector<T> - 1) : w.first + (j + v), part);
    }
  } else {
    S2E_MARK_BRANCH(kMarkScalarStore);
#pragma unroll
    for (int i = 0; i < K; ++i)
      if (j + i < n) w.first[(j + i) * w.step] = from_float<T>(x[i]);
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

// Copies positions [j, j + 32 K) of `states` rows of B or C, of which w is the first, to shared memory as floats, 0 beyond
// n; the rows there are `pitch` floats apart. The whole block takes part; barriers are the caller's.
template <int K, bool kDescending, class T>
__device__ __forceinline__ void stage(const GpuStrided& x, const Walk<T>& w, int j, int n, int states, float* tile, int pitch) {
  constexpr int kTile = 32 * K;
  constexpr int kUnits = kTile / kVector<T>;  // 16-byte words of a row
  const bool aligned = x.row % kVector<T> == 0 && j + kTile <= n && vectorizable<kVector<T>, kDescending>(w, j);
  if (aligned) {
#pragma unroll 1
    for (int unit = threadIdx.x; unit < states * kUnits; unit += blockDim.x) {
      S2E_MARK(kMarkStage);
      const int state = unit / kUnits, p = unit % kUnits * kVector<T>;
      float part[kVector<T>];
      const T* const from = w.first + state * x.row + (kDescending ? -(j + p + kVector<T> - 1) : j + p);
      load_vector(from, part);
#pragma unroll
      for (int i = 0; i < kVector<T>; i += 4) {
        float4 four;
        if (kDescending) {
          constexpr int kLast = kVector<T> - 1;
          four = {part[kLast - i], part[kLast - i - 1], part[kLast - i - 2], part[kLast - i - 3]};
        } else {
          four = {part[i], part[i + 1], part[i + 2], part[i + 3]};
        }
        *reinterpret_cast<float4*>(tile + state * pitch + slot<K>(p + i)) = four;
      }
    }
  } else {
    const bool states_together = x.row == 1;  // in memory: then neighbouring threads take neighbouring states
#pragma unroll 1
    for (int unit = threadIdx.x; unit < states * kTile; unit += blockDim.x) {
      S2E_MARK(kMarkStageScalar);
      const int state = states_together ? unit % states : unit / kTile;
      const int p = states_together ? unit / states : unit % kTile;
      tile[state * pitch + slot<K>(p)] = j + p < n ? to_float(w.first[state * x.row + (j + p) * w.step]) : 0.f;
    }
  }
}

// Step sizes of a lane from raw delta; 0 beyond the end, so that the tail neither decays nor adds.
template <int K>
__device__ __forceinline__ void step_sizes(const GpuScan& a, float bias, int j, int n, bool full, float (&dt)[K]) {
#pragma unroll
  for (int i = 0; i < K; ++i) dt[i] += bias;
  if (a.softplus) {
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
