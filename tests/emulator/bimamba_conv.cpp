// A mixer's CUDA convolutions of one storage type (SCALAR) as a CPU library: C names for the host functions of the GPU build,
// which run its kernels in the emulator. Those that run kernels return null or what went wrong.
#include "cuda_emulator.h"
#include "common/storage.cuh"
#include "bimamba/cuda/conv.h"

using namespace seq2exp;

extern "C" {

// Where each field of GpuConv begins, and where it ends; in the order of the Python side.
const int64_t* conv_layout() {
#define AT(field) int64_t(offsetof(GpuConv, field))
  static const int64_t offsets[] = {AT(batch), AT(dim), AT(length), AT(width), AT(cu_seqlens), AT(sequences), AT(x), AT(dx),
                                    AT(ways[0]), AT(ways[1]), AT(sums), sizeof(GpuConv)};
  return offsets;
}

int64_t conv_workspace(const GpuConv* a) { return gpu_conv_workspace<SCALAR>(*a); }

const char* conv_forward(const GpuConv* a) {
  return emulator::message_of([=] { gpu_conv_forward<SCALAR>(*a, nullptr); });
}

const char* conv_backward(const GpuConv* a) {
  return emulator::message_of([=] { gpu_conv_backward<SCALAR>(*a, nullptr); });
}

}  // extern "C"
