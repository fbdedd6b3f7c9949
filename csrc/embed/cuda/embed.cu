// The torch side of the CUDA embed_bases: strides, allocation, the current stream.
#include "embed/cuda/embed.h"

#include <vector>

#include "common/cuda_tensors.h"
#include "embed/tensors.h"

namespace seq2exp {
namespace {

// Calls f with values of the types of data and of the signals, and the current stream.
template <class F>
void run(const Tensor& data, const Optional& signals, F f) {
  void* const stream = current_stream(data.get_device_index());
  with_storage_type(data, "embed_bases: dtype", [&](auto of_data) {
    if (signals) {
      with_storage_type(*signals, "embed_bases: signals", [&](auto of_signals) { f(of_data, of_signals, stream); });
    } else {
      f(of_data, float{}, stream);
    }
  });
  check_launches("embed_bases");
}

// data: (rows, d), the output or its gradient.
GpuEmbed arguments(const Inputs& in, const Tensor& data) {
  constexpr int64_t most = INT32_MAX / 2;  // of what is counted in int
  STD_TORCH_CHECK(in.dim() <= most && in.tracks() <= 1024 && in.batch() <= most / 64, "embed_bases: too many channels, tracks or rows");
  GpuEmbed a{};
  a.rows = in.rows(), a.places = in.places(), a.length = divider(in.length()), a.batch = in.batch();
  a.dim = static_cast<int>(in.dim()), a.tracks = static_cast<int>(in.tracks()), a.complement = in.complement;
  a.codes = static_cast<const uint8_t*>(in.codes.data_ptr());
  a.table = in.table_floats(), a.weight = in.weight_floats(), a.mask = in.mask_floats();
  if (const Optional& s = in.signals)
    a.signals = s->data_ptr(), a.signal_batch = s->stride(0), a.signal_time = s->stride(1), a.signal_track = s->stride(2);
  if (in.positions) {
    a.positions = static_cast<const float*>(in.positions->data_ptr());
    a.position_stride = in.positions->stride(0);
  }
  if (in.indices) a.indices = static_cast<const int64_t*>(in.indices->data_ptr());
  a.data = data.data_ptr(), a.stride = data.stride(0);
  a.vectors = a.dim % kItems == 0 && a.stride * data.element_size() % 16 == 0 && a.position_stride % 4 == 0;
  for (const void* p : {static_cast<const void*>(a.table), static_cast<const void*>(a.weight), static_cast<const void*>(a.positions),
                        static_cast<const void*>(a.data)})
    a.vectors = a.vectors && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return a;
}

Tensor forward(Tensor codes, Tensor table, Optional signals, Optional signal_weight, Optional positions, Optional mask,
               Optional indices, bool complement, ScalarType dtype) {
  const Inputs in{codes, table, signals, signal_weight, positions, mask, indices, complement};
  in.check();
  const torch::stable::accelerator::DeviceGuard guard(codes.get_device_index());
  Tensor out = torch::stable::new_empty(table, {in.rows(), in.dim()}, dtype);
  const GpuEmbed a = arguments(in, out);
  run(out, signals, [&](auto of_out, auto of_signals, void* stream) {
    gpu_embed_forward<decltype(of_out), decltype(of_signals)>(a, stream);
  });
  return out;
}

// A tensor for a gradient of the places; zero where not all of them have a row.
Tensor of_places(const Inputs& in, std::vector<int64_t> shape) {
  Tensor x = torch::stable::new_empty(in.table, shape);
  return in.indices ? torch::stable::zero_(x) : x;
}

// The parts of the sums (parts, 5 + tracks, d), then the gradients of positions, mask and signals that are asked for, the
// latter two in parts (segments, batch, L[, tracks]).
std::vector<Tensor> backward(Tensor grad, Tensor codes, Tensor table, Optional signals, Optional signal_weight, Optional positions,
                             Optional mask, Optional indices, Optional row_at, bool complement, bool for_positions, bool for_mask,
                             bool for_signals) {
  const Inputs in{codes, table, signals, signal_weight, positions, mask, indices, complement};
  in.check();
  check_grad(grad, in);
  const torch::stable::accelerator::DeviceGuard guard(codes.get_device_index());
  GpuEmbed a = arguments(in, grad);
  a.row_at = row_of_places(row_at, in, for_positions);
  a.units = for_positions ? in.length() : a.rows;
  const int64_t segments = embed_segments(a.dim);
  std::vector<Tensor> results;
  const auto added = [&](Tensor x) {
    results.push_back(x);
    return static_cast<float*>(x.data_ptr());
  };
  a.sums = added(torch::stable::new_empty(table, {embed_parts(a), kCodes + a.tracks, a.dim}));
  if (for_positions) a.dpositions = added(torch::stable::new_empty(table, {in.length(), a.dim}));
  if (for_mask) a.dmask = added(of_places(in, {segments, in.batch(), in.length()}));
  if (for_signals) a.dsignals = added(of_places(in, {segments, in.batch(), in.length(), in.tracks()}));
  run(grad, signals, [&](auto of_grad, auto of_signals, void* stream) {
    gpu_embed_backward<decltype(of_grad), decltype(of_signals)>(a, stream);
  });
  return results;
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CUDA, m) {
  m.impl("embed_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("embed_bwd", TORCH_BOX(&seq2exp::backward));
}
