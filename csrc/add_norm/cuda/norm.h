// What the torch side (add_norm.cu) and the kernels (one translation unit per storage type of x) share: plain data.
#pragma once
#include <stdint.h>

#include "common/items.h"

namespace seq2exp {

constexpr int kMostThreads = 512;      // of a block: kItems times as many channels of a row
constexpr int kTurns = 16;             // rows of a group in the backward

// (rows, dim) with adjacent channels; stride in elements.
struct GpuNormRows {
  void* data;  // null: absent
  int64_t stride;
};

struct GpuNorm {
  int64_t rows;
  int dim;
  float epsilon;
  bool vectors;                      // all rows and weight begin at 16-byte words, dim is a multiple of 8
  const float *weight, *gate;        // (dim), (rows); gate may be null
  GpuNormRows r;                     // what is normalised: forward residual + x, or x itself; backward given
  GpuNormRows x, residual, h;        // forward; residual may be absent
  GpuNormRows grad, grad_residual, dr;  // backward; grad_residual may be absent
  float* dgate;                      // (rows); null without gate
  float* dweight;                    // (gpu_norm_parts, dim): sums over the rows of each block
};

// Threads of a row: a power of two that divides a warp, or the block; threads of a block; rows that a block has at once.
struct NormShape {
  int group, threads, rows;
};

inline NormShape norm_shape(int dim) {
  constexpr int several = 256;  // threads of a block with several rows
  const int warps = (dim + 32 * kItems - 1) / (32 * kItems), group = lanes_of(dim);
  return warps > 1 ? NormShape{warps * 32, warps * 32, 1} : NormShape{group, several, several / group};
}

// Blocks of the backward: from shapes alone, hence so are the bits.
inline int64_t gpu_norm_parts(int64_t rows, int dim) {
  const int64_t each = kTurns * norm_shape(dim).rows;
  return (rows + each - 1) / each;
}

// X: storage of x, h, grad. R: of residual, r, grad_residual, dr. float, bfloat16 or float16. `stream` is a cudaStream_t.
template <class X, class R>
void gpu_norm_forward(const GpuNorm&, void* stream);
template <class X, class R>
void gpu_norm_backward(const GpuNorm&, void* stream);

}  // namespace seq2exp
