// The CUDA scan of one storage type (SCALAR) as a CPU library: C names for the host functions of the GPU build (FORWARD and
// BACKWARD: gpu_forward or gpu_mixer_forward, ...), which run its kernels in the emulator. All take the plain description of
// a scan; those that run kernels return null or what went wrong.
#include "cuda_emulator.h"
#include "common/storage.cuh"
#include "bimamba/cuda/scan.h"

using namespace seq2exp;

extern "C" {

// Where each field of GpuScan begins, and where it ends; in the order of the Python side.
const int64_t* scan_layout() {
#define AT(field) int64_t(offsetof(GpuScan, field))
#define ROWS(name) AT(rows[GPU_##name])
  static const int64_t offsets[] = {
      AT(batch), AT(dim), AT(state), AT(length), AT(groups), AT(groups_b), AT(groups_c), AT(softplus), AT(reverse),
      AT(cu_seqlens), AT(sequences), ROWS(DELTA), ROWS(U), ROWS(Z), ROWS(OUT), ROWS(GRAD), ROWS(DDELTA), ROWS(DU), ROWS(DZ),
      AT(B), AT(C), AT(A), AT(D), AT(bias), AT(last_state), AT(states), AT(workspace), AT(dB), AT(dC), AT(sums),
      AT(low), AT(dt_proj), AT(rank), sizeof(GpuScan)};
  return offsets;
}

int64_t scan_chunk() { return SCAN_GPU_CHUNK; }
int64_t scan_chunks(const GpuScan* a) { return gpu_chunks(*a); }
int64_t scan_forward_segments(const GpuScan* a) { return gpu_forward_segments(*a); }
int64_t scan_backward_segments(const GpuScan* a) { return gpu_backward_segments(*a); }
int64_t scan_forward_workspace(const GpuScan* a) { return gpu_forward_workspace(*a); }
int64_t scan_backward_workspace(const GpuScan* a) { return gpu_backward_workspace(*a); }

const char* scan_forward(const GpuScan* a) {
  return emulator::message_of([=] { FORWARD<SCALAR>(*a, nullptr); });
}

const char* scan_backward(const GpuScan* a) {
  return emulator::message_of([=] { BACKWARD<SCALAR>(*a, nullptr); });
}

}  // extern "C"
