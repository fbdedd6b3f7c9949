// What kernels need of CUDA, in one place: launching, dynamic shared memory, the scalar functions that have an instruction.
// With SEQ2EXP_EMULATOR the same kernels run on the CPU: see tests/emulator/cuda_emulator.h.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef SEQ2EXP_EMULATOR
#include "cuda_emulator.h"
#else
#include <cuda_runtime.h>

#define S2E_DYNAMIC_SHARED(T, name)                      \
  extern __shared__ __align__(16) unsigned char name##_[]; \
  T* const name = reinterpret_cast<T*>(name##_)

namespace seq2exp {
// Errors, a refused shared memory size among them, are left for cudaGetLastError.
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream, A... args) {
  if (shared_bytes > (48 << 10)) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, stream>>>(args...);
}
}  // namespace seq2exp
#endif

#include "common/marks.h"
#include "common/math.h"

namespace seq2exp {
namespace {

// 2^x by the special function unit: relative error 2^-22, denormal results are 0.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef SEQ2EXP_EMULATOR
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// 1 / x, relative error 2^-23; 0 for infinity.
__device__ __forceinline__ float fast_reciprocal(float x) {
#ifdef SEQ2EXP_EMULATOR
  return 1.f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

__device__ __forceinline__ float fast_sigmoid(float x) { return fast_reciprocal(1.f + fast_exp2(-LOG2E * x)); }

// log(1 + e^x) = max(x, 0) + log1p(y), y = e^-|x|, log1p(y) = 2 atanh(s), s = y / (2 + y) <= 1/3.
__device__ __forceinline__ float fast_softplus(float x) {
  const float y = fast_exp2(-LOG2E * fabsf(x));
  const float s = y * fast_reciprocal(y + 2.f);
  const float q = s * s;
  float p = q * (1.f / 13.f) + 1.f / 11.f;
  p = p * q + 1.f / 9.f;
  p = p * q + 1.f / 7.f;
  p = p * q + 1.f / 5.f;
  p = p * q + 1.f / 3.f;
  p = p * q + 1.f;
  return fmaxf(x, 0.f) + 2.f * s * p;
}

// Slope of softplus where its value is x: 1 - e^-x. Relative error below 1e-6; minimax where the difference would cancel.
__device__ __forceinline__ float fast_softplus_slope(float x) {
  float p = x * -0.03786212f + 0.16612119f;
  p = p * x - 0.49997746f;
  p = p * x + 1.f;
  return x < 0.25f ? p * x : 1.f - fast_exp2(-LOG2E * x);
}

}  // namespace
}  // namespace seq2exp
