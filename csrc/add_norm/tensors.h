// Checks of tensor arguments that the CPU and the CUDA side share. Users' mistakes are named in ops.py; here only what
// would otherwise read out of bounds.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace seq2exp {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// (rows, dim) with adjacent channels, like `first`.
inline void check_rows(const Tensor& x, const Tensor& first, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == first.size(0) && x.size(1) == first.size(1) && (x.size(1) == 1 || x.stride(1) == 1),
                  "add_norm: ", name, " must be (rows, d) with adjacent channels");
}

inline Tensor dense_floats(const Tensor& x, int64_t numel, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.dim() == 1 && x.numel() == numel, "add_norm: ", name, " must be float32 (",
                  numel, ",)");
  return torch::stable::contiguous(x);
}

}  // namespace
}  // namespace seq2exp
