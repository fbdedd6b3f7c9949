// The torch side of the CPU embed_bases: strides, allocation, threads.
#include "embed/cpu/embed.h"

#include <algorithm>
#include <vector>

#include "common/cpu.h"
#include "common/cpu_tensors.h"
#include "embed/tensors.h"

namespace seq2exp {
namespace {

// Parts of the sums follow from shapes alone, so that the bits do not depend on threads.
constexpr int64_t MOST_PARTS = 256, FEWEST_PARTS = 8;
constexpr int64_t MOST_SUMS = 1 << 22;  // floats of all parts together, beyond FEWEST_PARTS
constexpr int64_t FEWEST_UNITS = 64;    // of a part
constexpr int64_t ELEMENTS = 1 << 15;   // that are worth a thread

const EmbedKernels& kernels() {
  switch (instruction_set()) {
#ifdef SEQ2EXP_X86
    case InstructionSet::avx512: return *embed_kernels_avx512();
    case InstructionSet::avx2: return *embed_kernels_avx2();
#endif
    default: return *embed_kernels_portable();
  }
}

// data: (rows, d), the output or its gradient.
EmbedArgs arguments(const Inputs& in, const Tensor& data) {
  EmbedArgs a{};
  a.rows = in.rows(), a.dim = in.dim(), a.batch = in.batch(), a.length = in.length(), a.tracks = in.tracks();
  a.complement = in.complement;
  a.codes = static_cast<const uint8_t*>(in.codes.data_ptr());
  a.table = in.table_floats(), a.weight = in.weight_floats(), a.mask = in.mask_floats();
  if (const Optional& s = in.signals) a.signals = {s->data_ptr(), storage(*s, "signals"), s->stride(0), 0, s->stride(2), s->stride(1)};
  if (in.positions) {
    a.positions = static_cast<const float*>(in.positions->data_ptr());
    a.position_stride = in.positions->stride(0);
  }
  if (in.indices) a.indices = static_cast<const int64_t*>(in.indices->data_ptr());
  a.data = data.data_ptr(), a.storage = storage(data, "dtype"), a.stride = data.stride(0);
  return a;
}

// Splits [0, n) over the threads, each with scratch for the signals of a base.
template <class F>
void run(F kernel, const EmbedArgs& a, int64_t n, int64_t grain) {
  torch::stable::parallel_for(0, n, std::max(grain, int64_t(1)), [&](int64_t begin, int64_t end) {
    auto scratch = allocate<float>(std::max(a.tracks, int64_t(1)));
    kernel(a, begin, end, scratch.get());
  });
}

Tensor forward(Tensor codes, Tensor table, Optional signals, Optional signal_weight, Optional positions, Optional mask,
               Optional indices, bool complement, ScalarType dtype) {
  const Inputs in{codes, table, signals, signal_weight, positions, mask, indices, complement};
  in.check();
  Tensor out = fresh(table, {in.rows(), in.dim()}, dtype);
  const EmbedArgs a = arguments(in, out);
  run(kernels().forward, a, a.rows, ELEMENTS / a.dim);
  return out;
}

// A tensor for a gradient of the places; zero where not all of them have a row.
Tensor of_places(const Inputs& in, std::vector<int64_t> shape) {
  Tensor x = fresh(in.table, shape);
  return in.indices ? torch::stable::zero_(x) : x;
}

Tensor sum_of_parts(const std::vector<float>& parts, int64_t size, const Inputs& in) {
  std::vector<double> sums(size);
  for (size_t i = 0; i < parts.size(); i += size)
    for (int64_t k = 0; k < size; ++k) sums[k] += parts[i + k];
  Tensor out = fresh(in.table, {CODES + in.tracks(), in.dim()});
  std::copy(sums.begin(), sums.end(), static_cast<float*>(out.data_ptr()));
  return out;
}

// The sums (5 + tracks, d), then the gradients of positions, mask and signals that are asked for.
std::vector<Tensor> backward(Tensor grad, Tensor codes, Tensor table, Optional signals, Optional signal_weight, Optional positions,
                             Optional mask, Optional indices, Optional row_at, bool complement, bool for_positions, bool for_mask,
                             bool for_signals) {
  const Inputs in{codes, table, signals, signal_weight, positions, mask, indices, complement};
  in.check();
  check_grad(grad, in);
  EmbedArgs a = arguments(in, grad);
  a.row_at = row_of_places(row_at, in, for_positions);
  std::vector<Tensor> results;
  const auto added = [&](Tensor x) {
    results.push_back(x);
    return static_cast<float*>(x.data_ptr());
  };
  if (for_positions) a.dpositions = added(fresh(table, {a.length, a.dim}));
  if (for_mask) a.dmask = added(of_places(in, {a.batch, a.length}));
  if (for_signals) a.dsignals = added(of_places(in, {a.batch, a.length, a.tracks}));
  const int64_t size = (CODES + a.tracks) * a.dim, most = std::clamp(MOST_SUMS / size, FEWEST_PARTS, MOST_PARTS);
  a.units = for_positions ? a.length : a.rows;
  a.part = std::max(FEWEST_UNITS, ceil_div(a.units, most));
  const int64_t parts = ceil_div(a.units, a.part);
  std::vector<float> sums(parts * size);
  a.sums = sums.data();
  run(kernels().backward, a, parts, ELEMENTS / (a.dim * a.part));
  results.insert(results.begin(), sum_of_parts(sums, size, in));
  return results;
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CPU, m) {
  m.impl("embed_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("embed_bwd", TORCH_BOX(&seq2exp::backward));
}
