// What the torch side (selective_scan.cu) and the kernels (one translation unit per storage type) share: plain data.
#pragma once
#include <stdint.h>

namespace seq2exp {

constexpr int64_t SCAN_GPU_CHUNK = 256;  // positions between saved states, and the tile of the kernels

// (batch, rows, L) with any strides, counted in elements; rows are channels, or states of one B/C group.
struct GpuStrided {
  void* data;  // null: absent
  int64_t batch, group, row, time;
};

enum GpuRows { GPU_DELTA, GPU_U, GPU_Z, GPU_OUT, GPU_GRAD, GPU_DDELTA, GPU_DU, GPU_DZ, GPU_ROWS };
constexpr GpuRows GPU_ADD = GPU_DELTA;  // of a mixer, which has no rows of delta: what is added to y

// A "sequence" is a batch row, or with cu_seqlens one of the spans packed along L (batch 1). Position k counts in the order
// of the scan from the start of its sequence. All pointers are device memory; accumulation and states are float.
struct GpuScan {
  int64_t batch, dim, state, length;
  int64_t groups, groups_b, groups_c;  // groups: channels of one share both B and C, lcm(groups_b, groups_c)
  bool softplus, reverse;
  const int64_t* cu_seqlens;           // (sequences + 1), or null
  int64_t sequences;
  GpuStrided rows[GPU_ROWS];           // channels; only the backward has those from GPU_GRAD on
  GpuStrided B, C;
  const float *A, *D, *bias;           // (dim, state), (dim), (dim); D and bias may be null
  float* last_state;                   // (sequences, dim, state)
  float* states;                       // (chunks, dim, state): at the first position of each chunk; see `gpu_chunks`
  float* workspace;                    // gpu_forward_workspace / gpu_backward_workspace floats, uninitialised
  // backward only
  float *dB, *dC;                      // (batch, groups, state, L)
  float* sums;                         // (sequences, gpu_backward_segments, dim, state + 2): parts of dA, then dD, ddelta_bias
  // mixer only (csrc/bimamba): delta = dt_proj low, and softplus
  GpuStrided low;                      // rows 0..rank - 1
  const float* dt_proj;                // (dim, rank)
  int64_t rank;
};

// Block shapes: positions a lane of the forward (8 or 16), warps a block (at most 8). 0: the default. For all later calls;
// make gpu measures with it.
struct GpuShape {
  int items, warps;
};
void set_gpu_shape(GpuShape);
GpuShape gpu_shape();

// Numbers of parts of L that run side by side. They depend on shapes alone, so the bits of the results do too.
int64_t gpu_forward_segments(const GpuScan&);
int64_t gpu_backward_segments(const GpuScan&);
int64_t gpu_forward_workspace(const GpuScan&);   // floats
int64_t gpu_backward_workspace(const GpuScan&);  // floats

// Chunks of batch row b start at b * ceil(L / chunk); those of sequence i of cu_seqlens at cu_seqlens[i] / chunk + i.
inline int64_t gpu_chunks(const GpuScan& a) {
  const int64_t per_row = (a.length + SCAN_GPU_CHUNK - 1) / SCAN_GPU_CHUNK;
  return a.cu_seqlens ? per_row + a.sequences : per_row * a.batch;
}

// T: float, bfloat16 or float16, the type of everything Strided. `stream` is a cudaStream_t.
template <class T>
void gpu_forward(const GpuScan&, void* stream);
template <class T>
void gpu_backward(const GpuScan&, void* stream);

}  // namespace seq2exp
