// What the torch side (convolution.cpp) and the kernels (one translation unit per instruction set) share: plain data.
#pragma once
#include "common/strided.h"

namespace seq2exp {

constexpr int64_t CONV_TAPS = 4;        // at most
constexpr int64_t CONV_BLOCK = 128;     // positions of a task
constexpr int64_t CONV_CHANNELS = 256;  // channels of a task
constexpr int64_t CONV_SUMS = CONV_TAPS + 1;  // gradients of a channel: taps from the own position outwards, bias

// c_t = silu(bias + sum_k weight[width - 1 - k] x_{t + sign k}), x being 0 outside the sequence of t.
struct ConvDirection {
  const float *weight, *bias;  // (dim, width), (dim); null: direction absent
  int64_t width, sign;         // sign: -1 causal, 1 anti-causal
  Strided out;                 // forward
  Strided grad;                // backward: of c
  double* sums;                // backward: (slots, CONV_SUMS, dim)
};

struct ConvArgs {
  int64_t batch, dim, length;
  const int64_t* starts;  // (sequences + 1) first positions of the sequences, then L
  int64_t sequences;
  Strided x, dx;
  ConvDirection directions[2];
  int64_t slots;  // the blocks of a group of channels are dealt to so many slots, which add up their sums one after the other
};

struct ConvKernels {
  int64_t scratch;  // floats a thread needs
  void (*forward)(const ConvArgs&, int64_t task_begin, int64_t task_end, float* scratch);   // tasks: conv_blocks * conv_groups
  void (*backward)(const ConvArgs&, int64_t task_begin, int64_t task_end, float* scratch);  // tasks: slots * conv_groups
};

static inline int64_t conv_blocks(const ConvArgs& a) { return a.batch * ceil_div(a.length, CONV_BLOCK); }
static inline int64_t conv_groups(const ConvArgs& a) { return ceil_div(a.dim, CONV_CHANNELS); }

const ConvKernels* conv_kernels_portable();
#ifdef SEQ2EXP_X86
const ConvKernels* conv_kernels_avx2();
const ConvKernels* conv_kernels_avx512();
#endif

}  // namespace seq2exp
