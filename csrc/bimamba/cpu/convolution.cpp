// The raw ops of a mixer's convolutions on the CPU. Shapes and dtypes are checked in ops.py; here only what would otherwise
// read out of bounds.
#include "bimamba/cpu/conv.h"
#include "common/cpu.h"
#include "common/cpu_tensors.h"
#include "selective_scan/tensors.h"

namespace seq2exp {
namespace {

constexpr int64_t MAX_SLOTS = 128;

const ConvKernels& conv_kernels() {
  switch (instruction_set()) {
#ifdef SEQ2EXP_X86
    case InstructionSet::avx512: return *conv_kernels_avx512();
    case InstructionSet::avx2: return *conv_kernels_avx2();
#endif
    default: return *conv_kernels_portable();
  }
}

struct ConvProblem {
  ConvArgs a{};
  const ConvKernels& k = conv_kernels();
  std::vector<int64_t> starts;
  std::vector<Tensor> keep;  // tensors whose memory `a` points to

  ConvProblem(const Tensor& x, const Optional& weight_fwd, const Optional& bias_fwd, const Optional& weight_rev, const Optional& bias_rev,
              const Optional& cu_seqlens) {
    STD_TORCH_CHECK(x.dim() == 3 && x.numel() > 0, "bimamba: x must be (batch, dim, L) and not empty");
    a.batch = x.size(0), a.dim = x.size(1), a.length = x.size(2);
    a.x = strided(x, "x");
    set_direction(a.directions[0], weight_fwd, bias_fwd, -1);
    set_direction(a.directions[1], weight_rev, bias_rev, 1);
    if (cu_seqlens) check_offsets(*cu_seqlens, a.batch);
    starts = sequence_starts(cu_seqlens, a.length, false);
    a.starts = starts.data();
    a.sequences = static_cast<int64_t>(starts.size()) - 1;
  }
  ConvProblem(const ConvProblem&) = delete;

  void set_direction(ConvDirection& d, const Optional& weight, const Optional& bias, int64_t sign) {
    d.sign = sign;
    if (!weight) return;
    STD_TORCH_CHECK(bias && weight->dim() == 2 && weight->size(1) >= 2 && weight->size(1) <= CONV_TAPS,
                    "bimamba: weights must be (dim, width), width 2 to ", CONV_TAPS, ", each with a bias");
    d.width = weight->size(1);
    d.weight = floats(*weight, a.dim * d.width, "conv_weight");
    d.bias = floats(*bias, a.dim, "conv_bias");
  }

  const float* floats(const Tensor& x, int64_t numel, const char* name) {
    keep.push_back(dense_floats(x, numel, name));
    return static_cast<const float*>(keep.back().data_ptr());
  }
};

// c of both directions; empty where absent.
std::vector<Tensor> forward(Tensor x, Optional weight_fwd, Optional bias_fwd, Optional weight_rev, Optional bias_rev, Optional cu_seqlens) {
  ConvProblem p(x, weight_fwd, bias_fwd, weight_rev, bias_rev, cu_seqlens);
  std::vector<Tensor> outs;
  for (ConvDirection& d : p.a.directions) {
    outs.push_back(d.weight ? fresh_like(x) : fresh(x, {0}));
    if (d.weight) d.out = strided(outs.back(), "out");
  }
  parallel(conv_blocks(p.a) * conv_groups(p.a), p.k.scratch,
           [&](int64_t begin, int64_t end, float* scratch) { p.k.forward(p.a, begin, end, scratch); });
  return outs;
}

// dx; then the gradients of the weights and of the bias of both directions, empty where absent.
std::vector<Tensor> backward(Tensor x, Optional grad_fwd, Optional grad_rev, Optional weight_fwd, Optional bias_fwd, Optional weight_rev,
                             Optional bias_rev, Optional cu_seqlens) {
  ConvProblem p(x, weight_fwd, bias_fwd, weight_rev, bias_rev, cu_seqlens);
  ConvArgs& a = p.a;
  const Optional grads[2] = {grad_fwd, grad_rev};
  std::vector<Tensor> results{fresh_like(x)};
  a.dx = strided(results[0], "dx");
  a.slots = std::min(conv_blocks(a), MAX_SLOTS);
  Buffer<double> sums[2];
  for (int i = 0; i < 2; ++i) {
    ConvDirection& d = a.directions[i];
    if (!d.weight) continue;
    STD_TORCH_CHECK(grads[i], "bimamba: the gradient of a direction is missing");
    check_channels(*grads[i], a, "grad");
    d.grad = strided(*grads[i], "grad");
    sums[i] = zeros<double>(a.slots * CONV_SUMS * a.dim);
    d.sums = sums[i].get();
  }
  parallel(a.slots * conv_groups(a), p.k.scratch,
           [&](int64_t begin, int64_t end, float* scratch) { p.k.backward(a, begin, end, scratch); });
  for (const ConvDirection& d : a.directions) {
    results.push_back(fresh(x, {d.weight ? a.dim : 0, d.width}, ScalarType::Float));
    results.push_back(fresh(x, {d.weight ? a.dim : 0}, ScalarType::Float));
    if (!d.weight) continue;
    auto* weight = static_cast<float*>(results[results.size() - 2].data_ptr());
    auto* bias = static_cast<float*>(results.back().data_ptr());
    for (int64_t c = 0; c < a.dim; ++c) {
      const auto total = [&](int64_t k) {
        double sum = 0;
        for (int64_t slot = 0; slot < a.slots; ++slot) sum += d.sums[(slot * CONV_SUMS + k) * a.dim + c];
        return static_cast<float>(sum);
      };
      for (int64_t k = 0; k < d.width; ++k) weight[c * d.width + d.width - 1 - k] = total(k);
      bias[c] = total(CONV_TAPS);
    }
  }
  return results;
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CPU, m) {
  m.impl("bimamba_conv_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("bimamba_conv_bwd", TORCH_BOX(&seq2exp::backward));
}
