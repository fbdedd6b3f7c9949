// What the torch side (bimamba_conv.cu) and the kernels (one translation unit per storage type) of a mixer's convolutions
// share: plain data.
#pragma once
#include "selective_scan/cuda/scan.h"  // GpuStrided

namespace seq2exp {

constexpr int kConvTaps = 4;     // at most
constexpr int kConvThreads = 128;
constexpr int kConvTurns = 8;    // times that a block's threads take positions of their row

// c_t = silu(bias + sum_s weight[width - 1 - s] x_{t - s}), for the reverse direction x_{t + s}; x is 0 beyond its sequence.
struct GpuConvWay {
  const float *weight, *bias;  // (dim, width), (dim); null: direction absent
  GpuStrided c;                // forward: written; backward: its gradient
  float *dweight, *dbias;      // backward: as weight and bias
};

// All pointers are device memory.
struct GpuConv {
  int64_t batch, dim, length;
  int width;                 // 2 to kConvTaps
  const int64_t* cu_seqlens;  // (sequences + 1), or null
  int64_t sequences;
  GpuStrided x, dx;
  GpuConvWay ways[2];        // causal, anti-causal
  float* sums;               // gpu_conv_workspace floats, uninitialised: sums of each block
};

// T: float, bfloat16 or float16, the type of x, dx and c. `stream` is a cudaStream_t.
template <class T>
int64_t gpu_conv_workspace(const GpuConv&);
template <class T>
void gpu_conv_forward(const GpuConv&, void* stream);
template <class T>
void gpu_conv_backward(const GpuConv&, void* stream);

}  // namespace seq2exp
