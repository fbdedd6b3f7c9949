// The CUDA add_norm of one storage type of x (SCALAR) as a CPU library: C names for the host functions of the GPU build, which
// run its kernels in the emulator. They return null or what went wrong.
#include "cuda_emulator.h"
#include "add_norm/cuda/norm.h"
#include "common/storage.cuh"

using namespace seq2exp;

namespace {

// residual: storage of the residual stream, 0 float, 1 bfloat16, 2 float16.
template <class F>
const char* run(int residual, F f) {
  return emulator::message_of([=] {
    switch (residual) {
      case 0: return f(float{});
      case 1: return f(bfloat16{});
      default: return f(float16{});
    }
  });
}

}  // namespace

extern "C" {

// Where each field of GpuNorm begins, and where it ends; in the order of the Python side.
const int64_t* norm_layout() {
#define AT(field) int64_t(offsetof(GpuNorm, field))
  static const int64_t offsets[] = {AT(rows), AT(dim), AT(epsilon), AT(vectors), AT(weight), AT(gate), AT(r), AT(x),
                                    AT(residual), AT(h), AT(grad), AT(grad_residual), AT(dr), AT(dgate), AT(dweight),
                                    sizeof(GpuNorm)};
  return offsets;
}

int64_t norm_parts(int64_t rows, int dim) { return gpu_norm_parts(rows, dim); }

const char* norm_forward(const GpuNorm* a, int residual) {
  return run(residual, [=](auto r) { gpu_norm_forward<SCALAR, decltype(r)>(*a, nullptr); });
}

const char* norm_backward(const GpuNorm* a, int residual) {
  return run(residual, [=](auto r) { gpu_norm_backward<SCALAR, decltype(r)>(*a, nullptr); });
}

}  // extern "C"
