// Residual add, RMSNorm and gate. A thread has 8 channels of a row; a row has a group of lanes, a power of two, or from 257
// channels on a whole block. See kernels/add_norm/README.md.
#pragma once
#include "add_norm/cuda/norm.h"
#include "common/rows.cuh"

namespace seq2exp {
namespace {

template <class T>
__device__ __forceinline__ T* row_of(const GpuNormRows& x, int64_t row) {
  return static_cast<T*>(x.data) + row * x.stride;
}

// Sums over the threads of a row, the same bits in all of them.
template <int kSums>
__device__ __forceinline__ void group_totals(float (&x)[kSums], int group) {
  for (int step = (group < 32 ? group : 32) / 2; step > 0; step /= 2) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) x[k] += __shfl_xor_sync(kAllLanes, x[k], step);
  }
  if (group <= 32) return;
  __shared__ float warps[kSums][kMostThreads / 32];
  const int warp = threadIdx.x / 32;
  __syncthreads();  // all have read what the row before left here
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) warps[k][warp] = x[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    x[k] = 0.f;
    for (int i = 0; i < group / 32; ++i) x[k] += warps[k][i];
  }
}

__device__ __forceinline__ float scale_of(float squares, const GpuNorm& a) {
  return 1.f / sqrtf(squares / static_cast<float>(a.dim) + a.epsilon);
}

// Grid: all rows, shape.rows in a block.
template <class X, class R, bool kVectors>
__global__ void __launch_bounds__(kMostThreads) add_norm_fwd_kernel(const __grid_constant__ GpuNorm a, NormShape shape) {
  const Channels<kVectors> c(threadIdx.x % shape.group, shape.group, a.dim);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * shape.rows + threadIdx.x / shape.group;
  const bool active = row < a.rows;
  float r[kItems] = {};
  if (active) {
    if (a.residual.data) {
      float x[kItems];
      load_row(row_of<const X>(a.x, row), c, x);
      load_row(row_of<const R>(a.residual, row), c, r);
#pragma unroll
      for (int i = 0; i < kItems; ++i) r[i] = to_float(from_float<R>(r[i] + x[i]));
      store_row(row_of<R>(a.r, row), c, r);
    } else {
      load_row(row_of<const R>(a.r, row), c, r);
    }
  }
  float squares[1] = {};
#pragma unroll
  for (int i = 0; i < kItems; ++i) squares[0] += r[i] * r[i];
  group_totals(squares, shape.group);
  if (!active) return;
  const float s = scale_of(squares[0], a) * (a.gate ? a.gate[row] : 1.f);
  float weight[kItems];
  load_row(a.weight, c, weight);
#pragma unroll
  for (int i = 0; i < kItems; ++i) r[i] *= s * weight[i];
  store_row(row_of<X>(a.h, row), c, r);
}

// Grid: gpu_norm_parts blocks, each with kTurns times shape.rows rows.
template <class X, class R, bool kVectors>
__global__ void __launch_bounds__(kMostThreads) add_norm_bwd_kernel(const __grid_constant__ GpuNorm a, NormShape shape) {
  const int lane = threadIdx.x % shape.group, slot = threadIdx.x / shape.group;
  const Channels<kVectors> c(lane, shape.group, a.dim);
  float weight[kItems], dweight[kItems] = {};
  load_row(a.weight, c, weight);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTurns * shape.rows;
#pragma unroll 1
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t begin = first + turn * shape.rows, row = begin + slot;
    if (begin >= a.rows) break;
    const bool active = row < a.rows;
    float r[kItems] = {}, dh[kItems] = {}, stream[kItems] = {};
    if (active) {
      load_row(row_of<const R>(a.r, row), c, r);
      load_row(row_of<const X>(a.grad, row), c, dh);
      if (a.grad_residual.data) load_row(row_of<const R>(a.grad_residual, row), c, stream);
    }
    float sums[2] = {};  // of r^2, and of r times the gradient of the ungated row
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      sums[0] += r[i] * r[i];
      sums[1] += r[i] * (dh[i] * weight[i]);
    }
    group_totals(sums, shape.group);
    if (!active) continue;
    const float s = scale_of(sums[0], a), gated = a.gate ? s * a.gate[row] : s;
    const float back = gated * s * s * (sums[1] / static_cast<float>(a.dim));
    if (a.dgate && lane == 0) a.dgate[row] = s * sums[1];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      dh[i] *= gated;
      dweight[i] += dh[i] * r[i];
      r[i] = dh[i] * weight[i] - r[i] * back + stream[i];
    }
    store_row(row_of<R>(a.dr, row), c, r);
  }

  // over the groups of the block, in order
  __shared__ float slots[kMostThreads * kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) slots[slot * shape.group * kItems + c.at(i)] = dweight[i];
  __syncthreads();
  for (int channel = threadIdx.x; channel < a.dim; channel += blockDim.x) {
    float sum = 0.f;
    for (int i = 0; i < shape.rows; ++i) sum += slots[i * shape.group * kItems + channel];
    a.dweight[static_cast<int64_t>(blockIdx.x) * a.dim + channel] = sum;
  }
}

int64_t blocks_of(int64_t rows, int64_t each) { return (rows + each - 1) / each; }

template <class X, class R, bool kVectors>
void forward(const GpuNorm& a, cudaStream_t stream) {
  const NormShape shape = norm_shape(a.dim);
  launch(add_norm_fwd_kernel<X, R, kVectors>, blocks_of(a.rows, shape.rows), shape.threads, 0, stream, a, shape);
}

template <class X, class R, bool kVectors>
void backward(const GpuNorm& a, cudaStream_t stream) {
  const NormShape shape = norm_shape(a.dim);
  launch(add_norm_bwd_kernel<X, R, kVectors>, gpu_norm_parts(a.rows, a.dim), shape.threads, 0, stream, a, shape);
}

}  // namespace

template <class X, class R>
void gpu_norm_forward(const GpuNorm& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.vectors ? forward<X, R, true>(a, s) : forward<X, R, false>(a, s);
}

template <class X, class R>
void gpu_norm_backward(const GpuNorm& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.vectors ? backward<X, R, true>(a, s) : backward<X, R, false>(a, s);
}

#define S2E_NORM(X, R)                                          \
  template void gpu_norm_forward<X, R>(const GpuNorm&, void*);  \
  template void gpu_norm_backward<X, R>(const GpuNorm&, void*);

}  // namespace seq2exp
