// Rows of channels, shared out among lanes of kItems channels each, in memory of any storage type.
#pragma once
#include "common/items.h"
#include "common/storage.cuh"

namespace seq2exp {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// The channels of a thread: 8 adjacent ones where rows are read as vectors, else every group-th, so that lanes are adjacent.
template <bool kVectors>
struct Channels {
  int first, step, dim;

  __device__ __forceinline__ Channels(int lane, int group, int dim)
      : first(kVectors ? lane * kItems : lane), step(kVectors ? 1 : group), dim(dim) {}
  __device__ __forceinline__ int at(int i) const { return first + i * step; }
  __device__ __forceinline__ bool any() const { return first < dim; }
};

// 0 for channels that do not exist.
template <class T, bool kVectors>
__device__ __forceinline__ void load_row(const T* row, const Channels<kVectors>& c, float (&x)[kItems]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) x[i] = 0.f;
  if constexpr (kVectors) {
    if (!c.any()) return;
#pragma unroll
    for (int i = 0; i < kItems; i += kVector<T>) load_vector(row + c.first + i, x + i);
  } else {
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (c.at(i) < c.dim) x[i] = load_scalar(row + c.at(i));
  }
}

template <class T, bool kVectors>
__device__ __forceinline__ void store_row(T* row, const Channels<kVectors>& c, const float (&x)[kItems]) {
  if constexpr (kVectors) {
    if (!c.any()) return;
#pragma unroll
    for (int i = 0; i < kItems; i += kVector<T>) store_vector(row + c.first + i, x + i);
  } else {
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (c.at(i) < c.dim) store_scalar(row + c.at(i), x[i]);
  }
}

}  // namespace
}  // namespace seq2exp
