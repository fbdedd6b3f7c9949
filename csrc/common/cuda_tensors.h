// The torch side of the CUDA kernels: PyTorch's current stream, storage types, errors of launches.
#pragma once
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "common/storage.cuh"

namespace seq2exp {
namespace {

// libtorch_cuda is not linked, so that the extension loads beside a CPU build of torch; it is there when tensors are on a GPU.
inline void* current_stream(int32_t device) {
  using Get = int32_t (*)(int32_t, void**);
  static const auto get = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Get>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(get && get(device, &stream) == 0, "seq2exp: PyTorch's current CUDA stream cannot be had");
  return stream;
}

// Calls f with a value of the storage type that x has. what: x in an error message.
template <class F>
void with_storage_type(const torch::stable::Tensor& x, const char* what, F f) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float: f(float{}); break;
    case ScalarType::BFloat16: f(bfloat16{}); break;
    case ScalarType::Half: f(float16{}); break;
    default: STD_TORCH_CHECK(false, what, " must be float32, bfloat16 or float16");
  }
}

// Raises what the launches of this thread left behind.
inline void check_launches(const char* op) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

}  // namespace
}  // namespace seq2exp
