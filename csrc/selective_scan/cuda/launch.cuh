// Host side of the CUDA selective scan: shapes of the grids, shared memory, workspace. Included once per storage type.
#pragma once
#include "selective_scan/cuda/backward.cuh"

namespace seq2exp {
namespace {

constexpr int kSegmentItems = 16;  // positions a lane

struct Geometry {
  int warps;
  int64_t blocks;  // of channels in a group
};

inline Geometry geometry(const GpuScan& a) {
  const int64_t channels = a.dim / a.groups;
  const int most = gpu_shape().warps;
  const int warps = static_cast<int>(channels < most ? channels : most);
  return {warps, (channels + warps - 1) / warps};
}

// B and C of a tile, or one of them, and `rows` rows of `state` floats for each warp.
inline size_t shared_bytes(const GpuScan& a, int64_t tile, int tiles, int warps, int rows) {
  const int64_t block_states = a.state < kStateBlock ? a.state : kStateBlock;
  return sizeof(float) * (tiles * block_states * tile + warps * rows * a.state);
}

// Turns what each segment adds into what enters it.
template <bool kAdjoint>
void chain(const GpuScan& a, float* part, const float* decays, int64_t segments, cudaStream_t stream) {
  const int64_t threads = a.sequences * a.dim * a.state;
  launch(selective_scan_chain_kernel<kAdjoint>, (threads + 127) / 128, 128, 0, stream, a, part, decays, static_cast<unsigned>(segments));
}

using SegmentKernel = void (*)(GpuScan, float*, float*, unsigned, int);
using ForwardKernel = void (*)(GpuScan, const float*, unsigned);
using BackwardKernel = void (*)(GpuScan, float*, unsigned);

inline void segment_pass(SegmentKernel kernel, const GpuScan& a, float* part, float* decays, int64_t segments, int tile, cudaStream_t stream) {
  const Geometry g = geometry(a);
  launch(kernel, a.sequences * segments * a.groups * g.blocks, g.warps * 32, shared_bytes(a, 32 * kSegmentItems, 1, g.warps, 2), stream, a,
         part, decays, static_cast<unsigned>(segments), tile);
}

// items: positions a lane of the kernel
inline void forward(SegmentKernel segment, ForwardKernel kernel, int items, const GpuScan& a, cudaStream_t stream) {
  const int64_t segments = gpu_forward_segments(a);
  const Geometry g = geometry(a);
  float* entry = nullptr;
  if (segments > 1) {
    entry = a.workspace;
    float* const decays = entry + a.sequences * segments * a.dim * a.state;
    segment_pass(segment, a, entry, decays, segments, 32 * items, stream);
    chain<false>(a, entry, decays, segments, stream);
  }
  launch(kernel, a.sequences * segments * a.groups * g.blocks, g.warps * 32, shared_bytes(a, 32 * items, 2, g.warps, 4), stream, a,
         static_cast<const float*>(entry), static_cast<unsigned>(segments));
}

inline void backward(SegmentKernel segment, BackwardKernel kernel, const GpuScan& a, cudaStream_t stream) {
  const int64_t segments = gpu_backward_segments(a);
  const Geometry g = geometry(a);
  float* const adjoint = a.workspace;
  float* const decays = adjoint + a.sequences * segments * a.dim * a.state;
  if (segments > 1) segment_pass(segment, a, adjoint, decays, segments, SCAN_GPU_CHUNK, stream);
  chain<true>(a, adjoint, decays, segments, stream);
  launch(kernel, a.sequences * segments * a.groups, g.warps * 32, shared_bytes(a, SCAN_GPU_CHUNK, 4, g.warps, 4), stream, a, adjoint,
         static_cast<unsigned>(segments));
}

template <class T, bool kDescending>
void forward(const GpuScan& a, cudaStream_t stream) {
  const SegmentKernel segment = selective_scan_segment_kernel<T, kSegmentItems, kDescending, false>;
  gpu_shape().items == 8 ? forward(segment, selective_scan_fwd_kernel<T, 8, kDescending>, 8, a, stream)
                         : forward(segment, selective_scan_fwd_kernel<T, 16, kDescending>, 16, a, stream);
}

template <class T, bool kDescending>
void backward(const GpuScan& a, cudaStream_t stream) {
  const SegmentKernel segment = selective_scan_segment_kernel<T, kSegmentItems, !kDescending, true>;
  a.rows[GPU_Z].data ? backward(segment, selective_scan_bwd_kernel<T, kDescending, true>, a, stream)
                     : backward(segment, selective_scan_bwd_kernel<T, kDescending, false>, a, stream);
}

}  // namespace

template <class T>
void gpu_forward(const GpuScan& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.reverse ? forward<T, true>(a, s) : forward<T, false>(a, s);
}

template <class T>
void gpu_backward(const GpuScan& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.reverse ? backward<T, true>(a, s) : backward<T, false>(a, s);
}

}  // namespace seq2exp
