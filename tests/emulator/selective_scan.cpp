// The CUDA scan of one storage type (SCALAR) as a CPU library: C names for the host functions of the GPU build, which run
// its kernels in the emulator. All take the plain description of a scan; those that run kernels return null or what went
// wrong.
#include "cuda_emulator.h"
#include "common/storage.cuh"
#include "selective_scan/cuda/scan.h"

using namespace seq2exp;

extern "C" {

int64_t scan_bytes() { return sizeof(GpuScan); }
int64_t scan_chunk() { return SCAN_GPU_CHUNK; }
int64_t scan_chunks(const GpuScan* a) { return gpu_chunks(*a); }
int64_t scan_forward_segments(const GpuScan* a) { return gpu_forward_segments(*a); }
int64_t scan_backward_segments(const GpuScan* a) { return gpu_backward_segments(*a); }
int64_t scan_forward_workspace(const GpuScan* a) { return gpu_forward_workspace(*a); }
int64_t scan_backward_workspace(const GpuScan* a) { return gpu_backward_workspace(*a); }

const char* scan_forward(const GpuScan* a) {
  return emulator::message_of([=] { gpu_forward<SCALAR>(*a, nullptr); });
}

const char* scan_backward(const GpuScan* a) {
  return emulator::message_of([=] { gpu_backward<SCALAR>(*a, nullptr); });
}

}  // extern "C"
