// What the torch side (add_norm.cpp) and the kernels (one translation unit per instruction set) share: plain data.
#pragma once
#include "common/strided.h"

namespace seq2exp {

// (rows, dim) with adjacent channels; stride in elements.
struct NormRows {
  void* data = nullptr;  // null: absent
  Storage storage = Storage::float32;
  int64_t stride = 0;
};

struct NormArgs {
  int64_t rows, dim;
  float epsilon;
  const float *weight, *gate;  // (dim), (rows); gate may be null
  NormRows r;                  // what is normalised: forward residual + x, or x itself; backward given
  // forward
  NormRows x, residual, h;
  // backward
  NormRows grad, grad_residual, dr;  // grad_residual may be absent
  float* dgate;                      // (rows); null without gate
  float* dweight;                    // (parts, dim): sums over the rows of each part
  int64_t part;                      // rows of a part
};

struct NormKernels {
  void (*forward)(const NormArgs&, int64_t row_begin, int64_t row_end);
  void (*backward)(const NormArgs&, int64_t part_begin, int64_t part_end);
};

const NormKernels* norm_kernels_portable();
#ifdef SEQ2EXP_X86
const NormKernels* norm_kernels_avx2();
const NormKernels* norm_kernels_avx512();
#endif

}  // namespace seq2exp
