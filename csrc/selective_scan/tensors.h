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

// u, delta, z, out and their gradients: (batch, dim, L). `a` has batch, dim, state and length.
template <class Args>
void check_channels(const Tensor& x, const Args& a, const char* name) {
  STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == a.batch && x.size(1) == a.dim && x.size(2) == a.length, "selective_scan: ", name,
                  " must be (batch, dim, L)");
}

// B, C and their gradients: (batch, groups, state, L).
template <class Args>
void check_grouped(const Tensor& x, const Args& a, const char* name) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(0) == a.batch && x.size(1) > 0 && a.dim % x.size(1) == 0 && x.size(2) == a.state &&
                      x.size(3) == a.length,
                  "selective_scan: ", name, " must be (batch, groups, state, L)");
}

inline Tensor dense_floats(const Tensor& x, int64_t numel, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.numel() == numel, "selective_scan: ", name, " must be float32 with ", numel,
                  " elements");
  return torch::stable::contiguous(x);
}

inline void check_offsets(const Tensor& cu_seqlens, int64_t batch) {
  STD_TORCH_CHECK(batch == 1 && cu_seqlens.dim() == 1 && cu_seqlens.size(0) > 1 && cu_seqlens.scalar_type() == ScalarType::Long,
                  "selective_scan: cu_seqlens must be int64 (sequences + 1,), with batch 1");
}

}  // namespace
}  // namespace seq2exp
