// Checks of tensor arguments that the CPU and the CUDA side share. Users' mistakes are named in ops.py; here only what
// would otherwise read out of bounds.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

namespace seq2exp {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline void check_shape(const Tensor& x, std::vector<int64_t> shape, const char* name) {
  bool fits = x.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = x.size(i) == shape[i];
  STD_TORCH_CHECK(fits, "pack_selected: ", name, " has another shape than the other arguments");
}

inline const int64_t* dense_longs(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Long && x.dim() == 1 && (x.numel() < 2 || x.stride(0) == 1), "pack_selected: ", name,
                  " must be int64 (n,), contiguous");
  return static_cast<const int64_t*>(x.data_ptr());
}

}  // namespace
}  // namespace seq2exp
