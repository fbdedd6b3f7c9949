// PyTorch's current stream, for the torch side of CUDA ops.
#pragma once
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

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

}  // namespace
}  // namespace seq2exp
