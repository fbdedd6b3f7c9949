// The mixer's kernels of the scan and their launches. Included once per storage type.
#pragma once
#include "bimamba/cuda/scan.h"
#include "selective_scan/cuda/launch.cuh"

namespace seq2exp {
namespace {

constexpr int kMixerItems = 16;  // positions a lane of the forward

template <class T, int K, bool kDescending>
__global__ void __launch_bounds__(256, kForwardBlocks<K>) bimamba_scan_fwd_kernel(const __grid_constant__ GpuScan a, const float* entry, unsigned segments) {
  forward_block<T, K, kDescending, true>(a, entry, segments);
}

template <class T, int K, bool kDescending, bool kAdjoint>
__global__ void __launch_bounds__(256, 2) bimamba_scan_segment_kernel(const __grid_constant__ GpuScan a, float* part, float* decays, unsigned segments, int tile) {
  segment_block<T, K, kDescending, kAdjoint, true>(a, part, decays, segments, tile);
}

template <class T, bool kDescending, bool kClosing>
__global__ void __launch_bounds__(256, 2) bimamba_scan_bwd_kernel(const __grid_constant__ GpuScan a, float* adjoint, unsigned segments) {
  backward_block<T, kDescending, kClosing ? Form::kClosing : Form::kOpen>(a, adjoint, segments);
}

template <class T, bool kDescending>
void mixer_forward(const GpuScan& a, cudaStream_t stream) {
  forward(bimamba_scan_segment_kernel<T, kSegmentItems, kDescending, false>, bimamba_scan_fwd_kernel<T, kMixerItems, kDescending>, kMixerItems,
          a, stream);
}

template <class T, bool kDescending>
void mixer_backward(const GpuScan& a, cudaStream_t stream) {
  const SegmentKernel segment = bimamba_scan_segment_kernel<T, kSegmentItems, !kDescending, true>;
  a.rows[GPU_DZ].data ? backward(segment, bimamba_scan_bwd_kernel<T, kDescending, true>, a, stream)
                      : backward(segment, bimamba_scan_bwd_kernel<T, kDescending, false>, a, stream);
}

}  // namespace

template <class T>
void gpu_mixer_forward(const GpuScan& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.reverse ? mixer_forward<T, true>(a, s) : mixer_forward<T, false>(a, s);
}

template <class T>
void gpu_mixer_backward(const GpuScan& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.reverse ? mixer_backward<T, true>(a, s) : mixer_backward<T, false>(a, s);
}

}  // namespace seq2exp
