// The torch side of the CUDA add_norm: strides, allocation, the current stream.
#include <tuple>
#include <vector>

#include "add_norm/cuda/norm.h"
#include "add_norm/tensors.h"
#include "common/cuda_tensors.h"

namespace seq2exp {
namespace {

// The arguments common to both directions, with the tensors that keep their memory alive.
struct Problem {
  GpuNorm a{};
  torch::stable::accelerator::DeviceGuard guard;
  std::vector<Tensor> keep;

  Problem(const Tensor& r, const Tensor& weight, const Optional& gate, double epsilon) : guard(r.get_device_index()) {
    STD_TORCH_CHECK(r.dim() == 2 && r.numel() > 0, "add_norm: what is normalised must be (rows, d), not empty");
    STD_TORCH_CHECK(r.size(1) <= kItems * kMostThreads, "add_norm: at most ", kItems * kMostThreads, " channels");
    a.rows = r.size(0), a.dim = static_cast<int>(r.size(1)), a.epsilon = static_cast<float>(epsilon);
    a.weight = floats(weight, a.dim, "weight");
    if (gate) a.gate = floats(*gate, a.rows, "gate");
    a.vectors = a.dim % kItems == 0 && reinterpret_cast<uintptr_t>(a.weight) % 16 == 0;
    a.r = rows(r, r, "residual");
  }
  Problem(const Problem&) = delete;

  const float* floats(const Tensor& x, int64_t numel, const char* name) {
    keep.push_back(dense_floats(x, numel, name));
    return static_cast<const float*>(keep.back().data_ptr());
  }

  GpuNormRows rows(const Tensor& x, const Tensor& first, const char* name) {
    check_rows(x, first, name);
    a.vectors = a.vectors && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0 && x.stride(0) * x.element_size() % 16 == 0;
    return {x.data_ptr(), x.stride(0)};
  }
};

// Calls f with values of the types of x and r, and the current stream.
template <class F>
void run(const Tensor& x, const Tensor& r, F f) {
  void* const stream = current_stream(x.get_device_index());
  with_storage_type(x, "add_norm: x", [&](auto of_x) {
    with_storage_type(r, "add_norm: residual", [&](auto of_r) { f(of_x, of_r, stream); });
  });
  check_launches("add_norm");
}

std::tuple<Tensor, Tensor> forward(Tensor x, Optional residual, Tensor weight, Optional gate, double epsilon) {
  STD_TORCH_CHECK(x.dim() == 2, "add_norm: x must be (rows, d)");
  const std::vector<int64_t> shape{x.size(0), x.size(1)};
  Tensor total = torch::stable::new_empty(residual ? *residual : x, residual ? shape : std::vector<int64_t>{0});
  Tensor h = torch::stable::new_empty(x, shape);
  const Tensor& r = residual ? total : x;
  Problem p(r, weight, gate, epsilon);
  p.a.x = p.rows(x, x, "x");
  if (residual) p.a.residual = p.rows(*residual, x, "residual");
  p.a.h = p.rows(h, x, "h");
  run(x, r, [&](auto of_x, auto of_r, void* stream) { gpu_norm_forward<decltype(of_x), decltype(of_r)>(p.a, stream); });
  return {h, total};
}

// dr, the parts of dweight (parts, d), and dgate where there is a gate.
std::vector<Tensor> backward(Tensor grad, Optional grad_residual, Tensor r, Tensor weight, Optional gate, double epsilon) {
  Problem p(r, weight, gate, epsilon);
  GpuNorm& a = p.a;
  a.grad = p.rows(grad, r, "grad");
  if (grad_residual) {
    a.grad_residual = p.rows(*grad_residual, r, "grad_residual");
    STD_TORCH_CHECK(grad_residual->scalar_type() == r.scalar_type(), "add_norm: grad_residual must have the dtype of residual");
  }
  Tensor dr = torch::stable::new_empty(r, {a.rows, a.dim});
  Tensor dweight = torch::stable::new_empty(weight, {gpu_norm_parts(a.rows, a.dim), a.dim});
  std::vector<Tensor> results{dr, dweight};
  if (gate) results.push_back(torch::stable::new_empty(*gate, {a.rows}));
  a.dr = p.rows(dr, r, "dr");
  a.dweight = static_cast<float*>(dweight.data_ptr());
  a.dgate = gate ? static_cast<float*>(results.back().data_ptr()) : nullptr;
  run(grad, r, [&](auto of_x, auto of_r, void* stream) { gpu_norm_backward<decltype(of_x), decltype(of_r)>(a, stream); });
  return results;
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CUDA, m) {
  m.impl("add_norm_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("add_norm_bwd", TORCH_BOX(&seq2exp::backward));
}
