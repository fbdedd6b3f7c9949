// The CUDA scan as a CPU library: C names for the host functions of the GPU build, which run its kernels in the emulator.
// All take the plain description of a scan; those that run kernels return null or what went wrong.
#include "cuda_emulator.h"
#include "common/storage.cuh"
#include "selective_scan/cuda/scan.h"

namespace {

using namespace seq2exp;

template <class F>
const char* with_type(int dtype, F f) {
  return emulator::message_of([=] {
    if (dtype == 0) f(float());
    if (dtype == 1) f(bfloat16());
    if (dtype == 2) f(float16());
  });
}

}  // namespace

extern "C" {

int64_t scan_bytes() { return sizeof(GpuScan); }
int64_t scan_chunk() { return SCAN_GPU_CHUNK; }
int64_t scan_chunks(const GpuScan* a) { return gpu_chunks(*a); }
int64_t scan_forward_segments(const GpuScan* a) { return gpu_forward_segments(*a); }
int64_t scan_backward_segments(const GpuScan* a) { return gpu_backward_segments(*a); }
int64_t scan_forward_workspace(const GpuScan* a) { return gpu_forward_workspace(*a); }
int64_t scan_backward_workspace(const GpuScan* a) { return gpu_backward_workspace(*a); }

const char* scan_forward(const GpuScan* a, int dtype) {
  return with_type(dtype, [=](auto scalar) { gpu_forward<decltype(scalar)>(*a, nullptr); });
}

const char* scan_backward(const GpuScan* a, int dtype) {
  return with_type(dtype, [=](auto scalar) { gpu_backward<decltype(scalar)>(*a, nullptr); });
}

}  // extern "C"
