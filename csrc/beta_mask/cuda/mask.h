// What the torch side (beta_mask.cu) and the kernels (mask.cu) share: plain data.
#pragma once
#include <stdint.h>

#include "common/prior.h"

namespace seq2exp {

constexpr int kMaskThreads = 256;              // of a block, one base each
constexpr int kMaskTile = kMaskThreads - 1;    // bases that a block of the forward writes: its first thread has the base before

// (batch, L, channels) with any strides, in elements. storage: 0 float, 1 bfloat16, 2 float16.
struct GpuChannels {
  void* data;  // null: absent
  int64_t batch, position, channel;
  int storage;
};

struct GpuMask {
  int64_t batch, length, tiles;  // tiles of a row
  int tracks;
  GpuChannels logits, signals;
  const float *weights, *betas;                      // (tracks)
  float minimum, signal_scale, z_scale;              // minimum: beta_min + 1e-8
  float alpha_shift, beta_shift;                     // what a track adds beside signal or beta times signal_scale, before its weight
  BetaPrior prior;
  bool sample, hard;
  float threshold;
  uint32_t key0, key1;
  const int64_t* rows;                               // (batch)
  int64_t centre_begin, centre_end;
  const bool *exclude, *include, *selected;          // (batch, L) or null; selected: in place of the threshold
  float *mask, *soft, *alpha, *beta, *logit;         // (batch, L); logit only with `sample`
  uint8_t* marks;                                    // (batch, L), see beta_mask/marks.h
  float *sums, *lowest;                              // (batch, tiles, 3): divergence, |steps|, non-finite signals; smallest
                                                     // signal, alpha, beta
  // backward only
  const float *grad_mask, *grad_soft, *grad_alpha, *grad_beta;  // (batch, L) or null
  const float *grad_divergence, *grad_continuity;               // scalars or null
  float of_bases, of_steps;                                     // 1 / bases, 1 / (batch (L + 1))
  GpuChannels grad_logits, grad_signals;                        // grad_signals may be absent
  float* grad_sums;                                             // (gpu_mask_blocks, tracks + 2) or null: of the gradient of alpha
                                                                // times signal (0 without), of the gradients of alpha, beta
};

inline int64_t gpu_mask_tiles(int64_t length) { return (length + kMaskTile - 1) / kMaskTile; }
inline int64_t gpu_mask_blocks(int64_t bases) { return (bases + kMaskThreads - 1) / kMaskThreads; }

// `stream` is a cudaStream_t.
void gpu_mask_forward(const GpuMask&, void* stream);
void gpu_mask_backward(const GpuMask&, void* stream);

}  // namespace seq2exp
