// The torch side of the CUDA mask: strides, allocation, the current stream. kernels/beta_mask/cuda.py adds what is summed over
// blocks, in a fixed order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "beta_mask/cuda/mask.h"
#include "common/cuda_tensors.h"

namespace seq2exp {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

constexpr double EPSILON = 1e-8;

// The arguments common to both directions, with the tensors that keep their memory alive.
struct Problem {
  GpuMask a{};
  torch::stable::accelerator::DeviceGuard guard;
  std::vector<Tensor> keep;

  Problem(const Tensor& logits, const Tensor& weights, const Tensor& betas, double beta_min, double signal_scale, double z_scale, double p,
          double q, bool sample, bool product)
      : guard(logits.get_device_index()) {
    STD_TORCH_CHECK(logits.dim() == 3 && logits.size(2) == 2 && logits.numel() > 0, "beta_mask: seq_logits must be (batch, L, 2), not empty");
    a.batch = logits.size(0), a.length = logits.size(1), a.tracks = static_cast<int>(weights.numel());
    STD_TORCH_CHECK(a.length < INT32_MAX, "beta_mask: L must be below 2^31 - 1");
    a.tiles = gpu_mask_tiles(a.length);
    a.logits = channels(logits, 2, "seq_logits");
    a.weights = dense<float>(weights, ScalarType::Float, a.tracks, "signal_weights");
    a.betas = dense<float>(betas, ScalarType::Float, a.tracks, "signal_betas");
    a.minimum = static_cast<float>(beta_min + EPSILON);
    a.signal_scale = static_cast<float>(signal_scale), a.z_scale = static_cast<float>(z_scale);
    a.alpha_shift = static_cast<float>(beta_min * signal_scale + EPSILON - product);
    a.beta_shift = static_cast<float>(beta_min * signal_scale - product);
    a.prior = beta_prior(p, q);
    a.sample = sample;
  }
  Problem(const Problem&) = delete;

  template <class T>
  T* dense(const Tensor& x, ScalarType dtype, int64_t numel, const char* name) {
    STD_TORCH_CHECK(x.scalar_type() == dtype && x.numel() == numel, "beta_mask: ", name, " must have ", numel, " elements of its dtype");
    keep.push_back(torch::stable::contiguous(x));
    return static_cast<T*>(keep.back().data_ptr());
  }
  template <class T>
  T* maybe(const Optional& x, ScalarType dtype, int64_t numel, const char* name) {
    return x ? dense<T>(*x, dtype, numel, name) : nullptr;
  }

  GpuChannels channels(const Tensor& x, int64_t n, const char* name) const {
    STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == a.batch && x.size(1) == a.length && x.size(2) == n, "beta_mask: ", name,
                    " must be (batch, L, channels)");
    const auto type = x.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, "beta_mask: ", name,
                    " must be float32, bfloat16 or float16");
    return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), type == ScalarType::Float ? 0 : type == ScalarType::BFloat16 ? 1 : 2};
  }

  int64_t bases() const { return a.batch * a.length; }
};

float* floats(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

// mask, soft_mask, alpha, beta, logit, marks, and of every tile sums and smallest values as in mask.h.
std::vector<Tensor> forward(Tensor logits, Tensor signals, Tensor weights, Tensor betas, Optional exclude, Optional include,
                            Optional selected, Tensor rows, double beta_min, double signal_scale, double z_scale, double prior_p,
                            double prior_q, bool sample, bool hard, double threshold, int64_t center, bool product, int64_t seed) {
  Problem p(logits, weights, betas, beta_min, signal_scale, z_scale, prior_p, prior_q, sample, product);
  GpuMask& a = p.a;
  a.signals = p.channels(signals, a.tracks, "signals");
  a.rows = p.dense<int64_t>(rows, ScalarType::Long, a.batch, "rows");
  a.key0 = static_cast<uint32_t>(static_cast<uint64_t>(seed)), a.key1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  a.hard = hard, a.threshold = static_cast<float>(threshold);
  a.centre_begin = (a.length - center) / 2, a.centre_end = a.centre_begin + center;
  a.exclude = p.maybe<bool>(exclude, ScalarType::Bool, p.bases(), "exclude");
  a.include = p.maybe<bool>(include, ScalarType::Bool, p.bases(), "include");
  a.selected = p.maybe<bool>(selected, ScalarType::Bool, p.bases(), "selected");
  const auto empty = [&](std::vector<int64_t> shape, ScalarType dtype) { return torch::stable::new_empty(logits, shape, dtype); };
  const std::vector<int64_t> shape{a.batch, a.length}, of_tiles{a.batch * a.tiles, 3};
  Tensor mask = empty(shape, ScalarType::Float), soft = empty(shape, ScalarType::Float), alpha = empty(shape, ScalarType::Float);
  Tensor beta = empty(shape, ScalarType::Float), logit = empty(sample ? shape : std::vector<int64_t>{0}, ScalarType::Float);
  Tensor marks = empty(shape, ScalarType::Byte), sums = empty(of_tiles, ScalarType::Float), lowest = empty(of_tiles, ScalarType::Float);
  a.mask = floats(mask), a.soft = floats(soft), a.alpha = floats(alpha), a.beta = floats(beta), a.logit = floats(logit);
  a.marks = static_cast<uint8_t*>(marks.data_ptr()), a.sums = floats(sums), a.lowest = floats(lowest);
  gpu_mask_forward(a, current_stream(logits.get_device_index()));
  check_launches("beta_mask");
  return {mask, soft, alpha, beta, logit, marks, sums, lowest};
}

// Gradients of seq_logits, of signals if asked, and if asked the sums of every block as in mask.h.
std::vector<Tensor> backward(Optional grad_mask, Optional grad_soft, Optional grad_alpha, Optional grad_beta, Optional grad_kl,
                             Optional grad_continuity, Tensor logits, Optional signals, Tensor weights, Tensor betas, Tensor alpha,
                             Tensor beta, Tensor logit, Tensor marks, double beta_min, double signal_scale, double z_scale, double prior_p,
                             double prior_q, bool sample, bool product, bool for_signals, bool for_tracks) {
  Problem p(logits, weights, betas, beta_min, signal_scale, z_scale, prior_p, prior_q, sample, product);
  GpuMask& a = p.a;
  const auto dense = [&](const Optional& x, int64_t numel, const char* name) { return p.maybe<float>(x, ScalarType::Float, numel, name); };
  a.grad_mask = dense(grad_mask, p.bases(), "grad_mask"), a.grad_soft = dense(grad_soft, p.bases(), "grad_soft_mask");
  a.grad_alpha = dense(grad_alpha, p.bases(), "grad_alpha"), a.grad_beta = dense(grad_beta, p.bases(), "grad_beta");
  a.grad_divergence = dense(grad_kl, 1, "grad_kl"), a.grad_continuity = dense(grad_continuity, 1, "grad_continuity");
  a.of_bases = static_cast<float>(1.0 / p.bases()), a.of_steps = static_cast<float>(1 / (a.batch * (a.length + 1.0)));
  a.alpha = p.dense<float>(alpha, ScalarType::Float, p.bases(), "alpha");
  a.beta = p.dense<float>(beta, ScalarType::Float, p.bases(), "beta");
  a.logit = p.dense<float>(logit, ScalarType::Float, sample ? p.bases() : 0, "logit");
  a.marks = p.dense<uint8_t>(marks, ScalarType::Byte, p.bases(), "marks");
  std::vector<Tensor> results{torch::stable::new_empty(logits, {a.batch, a.length, 2})};
  a.grad_logits = p.channels(results[0], 2, "grad_logits");
  if (signals) a.signals = p.channels(*signals, a.tracks, "signals");
  if (for_signals) {
    STD_TORCH_CHECK(signals.has_value(), "beta_mask: the gradient of signals needs signals");
    results.push_back(torch::stable::new_empty(*signals, {a.batch, a.length, a.tracks}));
    a.grad_signals = p.channels(results.back(), a.tracks, "grad_signals");
  }
  if (for_tracks) {
    results.push_back(torch::stable::new_empty(weights, {gpu_mask_blocks(p.bases()), a.tracks + 2}));
    a.grad_sums = floats(results.back());
  }
  gpu_mask_backward(a, current_stream(logits.get_device_index()));
  check_launches("beta_mask");
  return results;
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CUDA, m) {
  m.impl("beta_mask_cuda_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("beta_mask_cuda_bwd", TORCH_BOX(&seq2exp::backward));
}
