// Rows between packed and dense places. A row has a group of lanes, a power of two up to a warp; a lane moves 16 bytes at a time
// where rows can be read so, else single values, neighbours next to each other. See kernels/gather/README.md.
#pragma once
#include "common/storage.cuh"
#include "gather/cuda/gather.h"

namespace seq2exp {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMostRows = kGatherThreads * kUnpackTurns;  // of a block that unpacks

// Where a position of batch * L is, in elements; divides only where it must.
template <class Layout>
__device__ __forceinline__ int64_t position(const Layout& x, int64_t i) {
  if (i < x.length) return i * x.time;
  const int64_t b = i / x.length;
  return b * x.batch + (i - b * x.length) * x.time;
}

__device__ __forceinline__ float read_mark(const GpuMarks& x, int64_t i) {
  const int64_t at = position(x, i);
  if (x.storage == 0) return load_scalar(static_cast<const float*>(x.data) + at);
  if (x.storage == 1) return load_scalar(static_cast<const bfloat16*>(x.data) + at);
  return load_scalar(static_cast<const float16*>(x.data) + at);
}

__device__ __forceinline__ void write_mark(void* data, int storage, int64_t i, float x) {
  if (storage == 0) store_scalar(static_cast<float*>(data) + i, x);
  else if (storage == 1) store_scalar(static_cast<bfloat16*>(data) + i, x);
  else store_scalar(static_cast<float16*>(data) + i, x);
}

// What a lane moves at a time.
template <class T, bool kVectors>
struct Piece {
  static constexpr int kItems = kVectors ? kVector<T> : 1;
  float x[kItems] = {};

  __device__ __forceinline__ void load(const T* row, int64_t channel, int64_t step) {
    if constexpr (kVectors) load_vector(row + channel, x);
    else x[0] = load_scalar(row + channel * step);
  }
  __device__ __forceinline__ void store(T* row, int64_t channel) const {
    if constexpr (kVectors) store_vector(row + channel, x);
    else store_scalar(row + channel, x[0]);
  }
};

// Grid: all of total, blockDim.x / group in a block.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kGatherThreads) pack_fwd_kernel(const __grid_constant__ GpuGather a, int group) {
  using Some = Piece<T, kVectors>;
  const int64_t k = static_cast<int64_t>(blockIdx.x) * (kGatherThreads / group) + threadIdx.x / group;
  if (k >= a.total) return;
  const int64_t i = a.indices[k];
  const bool inside = i >= 0 && i < a.bases;
  const float missing = a.mask.data && i == -1 ? bit_cast<float>(0x7fc00000u) : 0.f;
  const float by = inside && a.mask.data ? read_mark(a.mask, i) : 1.f;
  const T* const from = static_cast<const T*>(a.dense.data) + (inside ? position(a.dense, i) : 0);
  T* const to = static_cast<T*>(a.out) + k * a.dim;
  for (int64_t c = threadIdx.x % group * Some::kItems; c < a.dim; c += group * Some::kItems) {
    Some piece;
    if (inside) piece.load(from, c, a.dense.channel);
#pragma unroll
    for (int j = 0; j < Some::kItems; ++j) piece.x[j] = inside ? piece.x[j] * by : missing;
    piece.store(to, c);
  }
}

// How many of the ascending indices are below `bound`. By a whole warp: 32 probes at a time, which cut what is left into 32.
__device__ __forceinline__ int64_t count_below(const int64_t* indices, int64_t n, int64_t bound) {
  const int lane = threadIdx.x % 32;
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t step = (high - low + 31) / 32, probe = low + (lane + 1) * step - 1;
    low += __popc(__ballot_sync(kAllLanes, probe < high && indices[probe] < bound)) * step;
    high = min(low + step - 1, high);
  }
  return low;
}

// Grid: all of bases, rows_of_block in a block; every row is written once. A block looks up where its first row would be among the
// indices, and which of its rows follow there. With a mask this is the backward of the pack: `packed` is its gradient.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kGatherThreads) unpack_fwd_kernel(const __grid_constant__ GpuGather a, int group) {
  using Some = Piece<T, kVectors>;
  __shared__ int places[kMostRows];  // of each row from base on; -1: it has none
  __shared__ int64_t base;
  const int at_once = kGatherThreads / group, rows = at_once * kUnpackTurns;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rows;
  for (int j = threadIdx.x; j < rows; j += kGatherThreads) places[j] = -1;
  if (threadIdx.x < 32) {
    const int64_t found = count_below(a.indices, a.total, first);
    if (threadIdx.x == 0) base = found;
  }
  __syncthreads();
  for (int j = threadIdx.x; j < rows && base + j < a.total; j += kGatherThreads) {
    const int64_t row = a.indices[base + j];
    if (row >= first && row < min(first + rows, a.bases)) places[row - first] = j;
  }
  __syncthreads();

  for (int turn = 0; turn < kUnpackTurns; ++turn) {
    const int slot = turn * at_once + threadIdx.x / group;
    const int64_t row = first + slot;
    const bool active = row < a.bases, selected = active && places[slot] >= 0;
    const float by = selected && a.mask.data ? read_mark(a.mask, row) : 1.f;
    const T* const from = static_cast<const T*>(a.packed.data) + (selected ? (base + places[slot]) * a.packed.time : 0);
    const T* const input = static_cast<const T*>(a.dense.data) + (selected && a.mask.data ? position(a.dense, row) : 0);
    T* const to = static_cast<T*>(a.out) + row * a.dim;
    float dot = 0.f;
    for (int64_t c = threadIdx.x % group * Some::kItems; active && c < a.dim; c += group * Some::kItems) {
      Some piece;
      if (selected) {
        piece.load(from, c, a.packed.channel);
        if (a.mask.data) {
          Some other;
          other.load(input, c, a.dense.channel);
#pragma unroll
          for (int j = 0; j < Some::kItems; ++j) {
            dot += piece.x[j] * other.x[j];
            piece.x[j] *= by;
          }
        }
      }
      piece.store(to, c);
    }
    if (!a.mask.data) continue;
    if (__any_sync(kAllLanes, selected))
      for (int step = group / 2; step > 0; step /= 2) dot += __shfl_xor_sync(kAllLanes, dot, step);
    if (active && threadIdx.x % group == 0) write_mark(a.grad_mask, a.mask.storage, row, dot);
  }
}

// Lanes of a row.
int group_of(int64_t pieces) {
  int group = 1;
  while (group < 32 && group < pieces) group *= 2;
  return group;
}

int64_t blocks_of(int64_t rows, int64_t each) { return (rows + each - 1) / each; }

template <class T, bool kVectors>
void pack(const GpuGather& a, cudaStream_t stream) {
  const int group = group_of(a.dim / Piece<T, kVectors>::kItems);
  if (a.total > 0) launch(pack_fwd_kernel<T, kVectors>, blocks_of(a.total, kGatherThreads / group), kGatherThreads, 0, stream, a, group);
}

template <class T, bool kVectors>
void unpack(const GpuGather& a, cudaStream_t stream) {
  const int group = group_of(a.dim / Piece<T, kVectors>::kItems);
  launch(unpack_fwd_kernel<T, kVectors>, blocks_of(a.bases, kGatherThreads / group * kUnpackTurns), kGatherThreads, 0, stream, a, group);
}

}  // namespace

template <class T>
void gpu_pack(const GpuGather& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.vectors ? pack<T, true>(a, s) : pack<T, false>(a, s);
}

template <class T>
void gpu_unpack(const GpuGather& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.vectors ? unpack<T, true>(a, s) : unpack<T, false>(a, s);
}

#define S2E_GATHER(T)                                 \
  template void gpu_pack<T>(const GpuGather&, void*); \
  template void gpu_unpack<T>(const GpuGather&, void*);

}  // namespace seq2exp
