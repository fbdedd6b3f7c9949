// What the torch side (beta_mask.cpp) and the kernels (one translation unit per instruction set) share: plain data.
#pragma once
#include <stdint.h>

#include "beta_mask/marks.h"
#include "common/prior.h"
#include "common/strided.h"

namespace seq2exp {

// Positions of a row that are worked on together, and whose sums are formed together: results do not depend on threads.
constexpr int64_t MASK_BLOCK = 512;

struct MaskArgs {
  int64_t batch, length, tracks, blocks;  // blocks of a row
  Strided logits, signals;                // (batch, L, channels): row is the stride of a channel, time that of a position
  float minimum, signal_scale, z_scale;   // minimum: beta_min + 1e-8
  float track_shift, beta_signals;        // a track adds weight (signal * signal_scale + track_shift); beta_signals: sum over tracks
  const float* weights;                   // (tracks)
  BetaPrior prior;
  bool sample;
  uint32_t key[2];
  const int64_t* rows;                    // (batch)
  float *alpha, *beta, *logit, *soft;     // (batch, L); logit: of the sample, written only with `sample`
  double* divergence;                     // (batch, blocks): sums
  float* lowest;                          // (batch, blocks, 3): smallest signal, alpha and beta; NaN for non-finite signals
  // backward only
  const float *grad_mask, *grad_soft, *grad_alpha, *grad_beta;  // (batch, L) or null
  float grad_divergence, grad_continuity;                       // of a base
  const uint8_t* marks;                                         // (batch, L)
  Strided grad_logits, grad_signals;                            // contiguous; grad_signals may be absent
  double* sums;                                                 // (batch, blocks, tracks + 2): of the gradient of alpha times signal,
                                                                // of the gradients of alpha and beta; track sums only with `signals`
};

// Work items count blocks: (batch, blocks).
struct MaskKernels {
  int64_t scratch;  // floats that a thread needs
  void (*forward)(const MaskArgs&, int64_t begin, int64_t end, float* scratch);
  void (*backward)(const MaskArgs&, int64_t begin, int64_t end, float* scratch);
};

const MaskKernels* mask_kernels_portable();
#ifdef SEQ2EXP_X86
const MaskKernels* mask_kernels_avx2();
const MaskKernels* mask_kernels_avx512();
#endif

}  // namespace seq2exp
