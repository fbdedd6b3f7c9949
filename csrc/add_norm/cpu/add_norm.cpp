// The torch side of the CPU add_norm: strides, allocation, threads.
#include <algorithm>
#include <tuple>
#include <vector>

#include "add_norm/cpu/norm.h"
#include "add_norm/tensors.h"
#include "common/cpu.h"
#include "common/cpu_tensors.h"

namespace seq2exp {
namespace {

constexpr int64_t MOST_PARTS = 256;    // of dweight; from shapes alone, so that the bits do not depend on threads
constexpr int64_t FEWEST_ROWS = 64;    // of a part
constexpr int64_t ELEMENTS = 1 << 15;  // that are worth a thread

const NormKernels& kernels() {
  switch (instruction_set()) {
#ifdef SEQ2EXP_X86
    case InstructionSet::avx512: return *norm_kernels_avx512();
    case InstructionSet::avx2: return *norm_kernels_avx2();
#endif
    default: return *norm_kernels_portable();
  }
}

// The arguments common to both directions, with the tensors that keep their memory alive.
struct Problem {
  NormArgs a{};
  std::vector<Tensor> keep;

  Problem(const Tensor& r, const Tensor& weight, const Optional& gate, double epsilon) {
    STD_TORCH_CHECK(r.dim() == 2 && r.numel() > 0, "add_norm: what is normalised must be (rows, d), not empty");
    a.rows = r.size(0), a.dim = r.size(1), a.epsilon = static_cast<float>(epsilon);
    a.weight = floats(weight, a.dim, "weight");
    if (gate) a.gate = floats(*gate, a.rows, "gate");
    a.r = rows(r, r, "residual");
  }
  Problem(const Problem&) = delete;

  const float* floats(const Tensor& x, int64_t numel, const char* name) {
    keep.push_back(dense_floats(x, numel, name));
    return static_cast<const float*>(keep.back().data_ptr());
  }

  NormRows rows(const Tensor& x, const Tensor& first, const char* name) const {
    check_rows(x, first, name);
    return {x.data_ptr(), storage(x, name), x.stride(0)};
  }
};

std::tuple<Tensor, Tensor> forward(Tensor x, Optional residual, Tensor weight, Optional gate, double epsilon) {
  STD_TORCH_CHECK(x.dim() == 2, "add_norm: x must be (rows, d)");
  const std::vector<int64_t> shape{x.size(0), x.size(1)};
  Tensor total = residual ? fresh(*residual, shape) : fresh(x, {0});
  Tensor h = fresh(x, shape);
  Problem p(residual ? total : x, weight, gate, epsilon);
  NormArgs& a = p.a;
  a.x = p.rows(x, x, "x");
  if (residual) a.residual = p.rows(*residual, x, "residual");
  a.h = p.rows(h, x, "h");
  const auto run = kernels().forward;
  torch::stable::parallel_for(0, a.rows, std::max(ELEMENTS / a.dim, int64_t(1)), [&](int64_t begin, int64_t end) { run(a, begin, end); });
  return {h, total};
}

// dr, dweight, and dgate where there is a gate.
std::vector<Tensor> backward(Tensor grad, Optional grad_residual, Tensor r, Tensor weight, Optional gate, double epsilon) {
  Problem p(r, weight, gate, epsilon);
  NormArgs& a = p.a;
  a.grad = p.rows(grad, r, "grad");
  if (grad_residual) {
    a.grad_residual = p.rows(*grad_residual, r, "grad_residual");
    STD_TORCH_CHECK(a.grad_residual.storage == a.r.storage, "add_norm: grad_residual must have the dtype of residual");
  }
  Tensor dr = fresh(r, {a.rows, a.dim}), dweight = fresh(weight, {a.dim});
  std::vector<Tensor> results{dr, dweight};
  if (gate) {
    results.push_back(fresh(*gate, {a.rows}));
    a.dgate = static_cast<float*>(results.back().data_ptr());
  }
  a.dr = p.rows(dr, r, "dr");
  a.part = std::max(FEWEST_ROWS, ceil_div(a.rows, MOST_PARTS));
  const int64_t parts = ceil_div(a.rows, a.part);
  std::vector<float> sums(parts * a.dim);
  a.dweight = sums.data();
  const auto run = kernels().backward;
  torch::stable::parallel_for(0, parts, std::max(ELEMENTS / (a.dim * a.part), int64_t(1)),
                              [&](int64_t begin, int64_t end) { run(a, begin, end); });
  auto* const out = static_cast<float*>(dweight.data_ptr());
  for (int64_t i = 0; i < a.dim; ++i) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * a.dim + i];
    out[i] = static_cast<float>(sum);
  }
  return results;
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CPU, m) {
  m.impl("add_norm_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("add_norm_bwd", TORCH_BOX(&seq2exp::backward));
}
