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

// The inputs of both directions; signal_weight is (tracks, d).
struct Inputs {
  const Tensor &codes, &table;
  const Optional &signals, &signal_weight, &positions, &mask, &indices;
  bool complement;

  int64_t batch() const { return codes.size(0); }
  int64_t length() const { return codes.size(1); }
  int64_t places() const { return codes.numel(); }
  int64_t dim() const { return table.size(1); }
  int64_t tracks() const { return signals ? signals->size(2) : 0; }
  int64_t rows() const { return indices ? indices->numel() : places(); }

  void check() const {
    STD_TORCH_CHECK(codes.dim() == 2 && codes.numel() > 0 && codes.scalar_type() == ScalarType::Byte && codes.is_contiguous(),
                    "embed_bases: codes must be dense uint8 (batch, L), not empty");
    STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == 5, "embed_bases: table must be (5, d)");
    STD_TORCH_CHECK(signals.has_value() == signal_weight.has_value(), "embed_bases: signals go with signal_weight");
    STD_TORCH_CHECK(!signals || (signals->dim() == 3 && signals->size(0) == batch() && signals->size(1) == length()),
                    "embed_bases: signals must be (batch, L, tracks)");
    STD_TORCH_CHECK(!positions || (positions->dim() == 2 && positions->size(0) == length() && positions->size(1) == dim() &&
                                   positions->scalar_type() == ScalarType::Float && (dim() == 1 || positions->stride(1) == 1)),
                    "embed_bases: positions must be float32 (L, d) with adjacent channels");
    STD_TORCH_CHECK(!indices || (indices->dim() == 1 && indices->scalar_type() == ScalarType::Long && indices->is_contiguous()),
                    "embed_bases: indices must be dense int64 (total,)");
    STD_TORCH_CHECK(rows() > 0, "embed_bases: there must be rows");
  }

  const float* table_floats() const { return floats(table, 5 * dim(), "table"); }
  const float* weight_floats() const { return signals ? floats(*signal_weight, tracks() * dim(), "signal_weight") : nullptr; }
  const float* mask_floats() const { return mask ? floats(*mask, places(), "mask") : nullptr; }

 private:
  static const float* floats(const Tensor& x, int64_t numel, const char* name) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.numel() == numel && x.is_contiguous(), "embed_bases: ", name,
                    " must be dense float32");
    return static_cast<const float*>(x.data_ptr());
  }
};

// (rows, d) with adjacent channels.
inline void check_grad(const Tensor& grad, const Inputs& in) {
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == in.rows() && grad.size(1) == in.dim() && (in.dim() == 1 || grad.stride(1) == 1),
                  "embed_bases: grad must be (rows, d) with adjacent channels");
}

// The row of each place: where positions have a gradient and not all places have a row.
inline const int64_t* row_of_places(const Optional& row_at, const Inputs& in, bool for_positions) {
  STD_TORCH_CHECK(row_at.has_value() == (in.indices && for_positions), "embed_bases: row_at goes with indices and positions");
  if (!row_at) return nullptr;
  STD_TORCH_CHECK(row_at->scalar_type() == ScalarType::Long && row_at->numel() == in.places() && row_at->is_contiguous(),
                  "embed_bases: row_at must be dense int64 (batch * L,)");
  return static_cast<const int64_t*>(row_at->data_ptr());
}

}  // namespace
}  // namespace seq2exp
