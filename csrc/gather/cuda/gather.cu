// The torch side of the CUDA kernels of select, pack_selected and unpack_selected: strides, allocation, the current stream.
#include <tuple>
#include <vector>

#include "common/cuda_tensors.h"
#include "gather/cuda/gather.h"
#include "gather/tensors.h"

namespace seq2exp {
namespace {

using Guard = torch::stable::accelerator::DeviceGuard;

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// A length behind which there is no second row where rows follow one another.
int64_t length_of(const Tensor& x) {
  const bool one = x.size(0) == 1 || x.stride(0) == x.size(1) * x.stride(1);
  return one ? x.size(0) * x.size(1) : x.size(1);
}

GpuMarks marks(const Tensor& x) {
  int storage = 0;
  with_storage_type(x, "pack_selected: mask", [&](auto of_x) {
    storage = std::is_same_v<decltype(of_x), float> ? 0 : std::is_same_v<decltype(of_x), bfloat16> ? 1 : 2;
  });
  return {x.data_ptr(), storage, length_of(x), x.stride(0), x.stride(1)};
}

GpuRows dense_rows(const Tensor& x) { return {x.data_ptr(), length_of(x), x.stride(0), x.stride(1), x.stride(2)}; }

GpuRows packed_rows(const Tensor& x) { return {x.data_ptr(), x.size(0), 0, x.stride(0), x.stride(1)}; }

// Whether every row can be read as 16-byte words.
bool in_vectors(const GpuRows& x, int64_t dim, int64_t element_size) {
  const int64_t items = 16 / element_size;
  return (x.channel == 1 || dim == 1) && dim % items == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.batch % items == 0 &&
         x.time % items == 0;
}

GpuSelect selection(const Tensor& mask) {
  STD_TORCH_CHECK(mask.dim() == 2 && mask.numel() > 0, "pack_selected: mask must be (batch, L), not empty");
  GpuSelect a{};
  a.mask = marks(mask);
  a.batch = mask.size(0), a.length = mask.size(1), a.tiles = (a.length + kSelectTile - 1) / kSelectTile;
  return a;
}

// (tiles + 1,): how many are selected before each tile, and in all.
Tensor select_offsets(Tensor mask) {
  const Guard guard(mask.get_device_index());
  GpuSelect a = selection(mask);
  Tensor offsets = torch::stable::new_empty(mask, {a.batch * a.tiles + 1}, ScalarType::Long);
  a.offsets = data<int64_t>(offsets);
  gpu_select_count(a, current_stream(mask.get_device_index()));
  check_launches("pack_selected");
  return offsets;
}

// indices (size,) and cu_seqlens; padded: of a selection with a capacity, see kernels/gather/ops.py.
std::tuple<Tensor, Tensor> select_places(Tensor mask, Tensor offsets, int64_t size, bool padded) {
  const Guard guard(mask.get_device_index());
  GpuSelect a = selection(mask);
  check_shape(offsets, {a.batch * a.tiles + 1}, "offsets");
  Tensor indices = torch::stable::new_empty(mask, {size}, ScalarType::Long);
  Tensor cu_seqlens = torch::stable::new_empty(mask, {a.batch + 1 + padded}, ScalarType::Long);
  a.offsets = const_cast<int64_t*>(dense_longs(offsets, "offsets"));
  a.indices = data<int64_t>(indices), a.cu_seqlens = data<int64_t>(cu_seqlens), a.size = size, a.padded = padded;
  gpu_select_place(a, current_stream(mask.get_device_index()));
  check_launches("pack_selected");
  return {indices, cu_seqlens};
}

// (total, d): the rows of x (batch, L, d) at the indices, times the mask where there is one. Without a place: 0, and NaN at -1
// of a masked one.
Tensor pack_rows(Tensor x, Optional mask, Tensor indices) {
  const Guard guard(x.get_device_index());
  STD_TORCH_CHECK(x.dim() == 3, "pack_selected: x must be (batch, L, d)");
  GpuGather a{};
  a.total = indices.numel(), a.bases = x.size(0) * x.size(1), a.dim = x.size(2);
  a.indices = dense_longs(indices, "indices");
  Tensor values = torch::stable::new_empty(x, {a.total, a.dim});
  a.dense = dense_rows(x), a.out = values.data_ptr();
  a.vectors = in_vectors(a.dense, a.dim, x.element_size());
  if (mask) {
    check_shape(*mask, {x.size(0), x.size(1)}, "mask");
    a.mask = marks(*mask);
  }
  with_storage_type(x, "pack_selected: x", [&](auto of_x) { gpu_pack<decltype(of_x)>(a, current_stream(x.get_device_index())); });
  check_launches("pack_selected");
  return values;
}

// (batch, L, d): values (total, d) at the indices, times the mask where there is one; zero elsewhere. With x and mask also the
// gradient of the mask (batch, L) where that of its pack is `values`.
std::vector<Tensor> unpack_rows(Tensor values, Tensor indices, Optional x, Optional mask, int64_t batch, int64_t length) {
  const Guard guard(values.get_device_index());
  STD_TORCH_CHECK(values.dim() == 2 && x.has_value() == mask.has_value() && batch * length > 0,
                  "unpack_selected: values must be (total, d), batch and L at least 1");
  GpuGather a{};
  a.total = indices.numel(), a.bases = batch * length, a.dim = values.size(1);
  a.indices = dense_longs(indices, "indices");
  check_shape(values, {a.total, a.dim}, "values");
  std::vector<Tensor> results{torch::stable::new_empty(values, {batch, length, a.dim})};
  a.packed = packed_rows(values), a.out = results[0].data_ptr();
  a.vectors = in_vectors(a.packed, a.dim, values.element_size());
  if (mask) {
    check_shape(*mask, {batch, length}, "mask");
    check_shape(*x, {batch, length, a.dim}, "x");
    STD_TORCH_CHECK(x->scalar_type() == values.scalar_type(), "pack_selected: grad must have the dtype of x");
    results.push_back(torch::stable::new_empty(*mask, {batch, length}));
    a.mask = marks(*mask), a.dense = dense_rows(*x), a.grad_mask = results[1].data_ptr();
    a.vectors = a.vectors && in_vectors(a.dense, a.dim, values.element_size());
  }
  with_storage_type(values, "unpack_selected: values",
                    [&](auto of_x) { gpu_unpack<decltype(of_x)>(a, current_stream(values.get_device_index())); });
  check_launches("unpack_selected");
  return results;
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CUDA, m) {
  m.impl("select_offsets", TORCH_BOX(&seq2exp::select_offsets));
  m.impl("select_places", TORCH_BOX(&seq2exp::select_places));
  m.impl("pack_rows", TORCH_BOX(&seq2exp::pack_rows));
  m.impl("unpack_rows", TORCH_BOX(&seq2exp::unpack_rows));
}
