// Block shapes, and into how many parts L is cut: from shapes alone, for the same bits on every GPU.
#include "selective_scan/cuda/scan.h"

#include <algorithm>

namespace seq2exp {
namespace {

constexpr int64_t FORWARD_WARPS = 2048;   // enough to fill a chip; fewer and L is cut, at the price of a second pass
constexpr int64_t BACKWARD_BLOCKS = 1024;

GpuShape shape{16, 8};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t workspace(const GpuScan& a, int64_t segments) { return a.sequences * segments * a.dim * (a.state + 1); }

}  // namespace

void set_gpu_shape(GpuShape s) { shape = {s.items ? s.items : 16, s.warps ? s.warps : 8}; }
GpuShape gpu_shape() { return shape; }

int64_t gpu_forward_segments(const GpuScan& a) {
  const int64_t tiles = ceil_div(a.length, 32 * shape.items);
  return std::clamp(FORWARD_WARPS / (a.sequences * a.dim), int64_t(1), tiles);
}

int64_t gpu_backward_segments(const GpuScan& a) {
  const int64_t tiles = ceil_div(a.length, SCAN_GPU_CHUNK);
  return std::clamp(ceil_div(BACKWARD_BLOCKS, a.sequences * a.groups), int64_t(1), tiles);
}

int64_t gpu_forward_workspace(const GpuScan& a) {
  const int64_t segments = gpu_forward_segments(a);
  return segments > 1 ? workspace(a, segments) : 0;
}

int64_t gpu_backward_workspace(const GpuScan& a) { return workspace(a, gpu_backward_segments(a)); }

}  // namespace seq2exp
