// The scan of one direction of a mixer: that of csrc/selective_scan/cuda with step sizes softplus(dt_proj low + bias) formed
// inside. B and C have one group; rows GPU_DELTA and `last_state` are not used.
#pragma once
#include "selective_scan/cuda/scan.h"

namespace seq2exp {

// GPU_OUT = (y + GPU_ADD) silu(GPU_Z); without GPU_ADD or GPU_Z the summand or the factor is left out.
template <class T>
void gpu_mixer_forward(const GpuScan&, void* stream);

// GPU_Z is always there. Without GPU_DZ, GPU_OUT is y. With it, the total is y + GPU_ADD (where there is one), GPU_DZ the
// gradient of the gate over the total, GPU_OUT the gated total.
template <class T>
void gpu_mixer_backward(const GpuScan&, void* stream);

}  // namespace seq2exp
