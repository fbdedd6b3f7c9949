// The torch side of the CPU mask: allocation, threads, and what follows the kernels: selection, regions, sums over blocks.
// Shapes and dtypes are checked in ops.py; here only what would otherwise read out of bounds.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "beta_mask/cpu/mask.h"
#include "beta_mask/cpu/select.h"
#include "common/cpu.h"
#include "common/cpu_tensors.h"

namespace seq2exp {
namespace {

using Optional = std::optional<Tensor>;

constexpr double EPSILON = 1e-8;
constexpr int64_t FEWEST_BLOCKS = 8;  // that are worth a thread

const MaskKernels& kernels() {
  switch (instruction_set()) {
#ifdef SEQ2EXP_X86
    case InstructionSet::avx512: return *mask_kernels_avx512();
    case InstructionSet::avx2: return *mask_kernels_avx2();
#endif
    default: return *mask_kernels_portable();
  }
}

float* floats(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

// The arguments common to both directions, with the tensors that keep their memory alive.
struct Problem {
  MaskArgs a{};
  const MaskKernels& k = seq2exp::kernels();
  std::vector<Tensor> keep;
  std::vector<float> track_betas;  // what a track adds to beta, before its weight

  Problem(const Tensor& logits, const Tensor& weights, const Tensor& betas, double beta_min, double signal_scale, double z_scale, double p,
          double q, bool sample, bool product) {
    STD_TORCH_CHECK(logits.dim() == 3 && logits.size(2) == 2, "beta_mask: seq_logits must be (batch, L, 2)");
    a.batch = logits.size(0), a.length = logits.size(1), a.tracks = weights.numel();
    STD_TORCH_CHECK(a.length < std::numeric_limits<int32_t>::max(), "beta_mask: L must be below 2^31 - 1");
    a.blocks = ceil_div(a.length, MASK_BLOCK);
    a.logits = channels(logits, 2, "seq_logits");
    a.minimum = static_cast<float>(beta_min + EPSILON);
    a.signal_scale = static_cast<float>(signal_scale), a.z_scale = static_cast<float>(z_scale);
    a.track_shift = static_cast<float>(beta_min * signal_scale + EPSILON - product);
    a.weights = dense<float>(weights, ScalarType::Float, a.tracks, "signal_weights");
    const float* b = dense<float>(betas, ScalarType::Float, a.tracks, "signal_betas");
    for (int64_t i = 0; i < a.tracks; ++i) {
      track_betas.push_back(static_cast<float>((b[i] + beta_min) * signal_scale - product));
      a.beta_signals += track_betas[i] * a.weights[i];
    }
    a.prior = beta_prior(p, q);
    a.sample = sample;
  }
  Problem(const Problem&) = delete;

  template <class T>
  const T* dense(const Tensor& x, ScalarType dtype, int64_t numel, const char* name) {
    STD_TORCH_CHECK(x.scalar_type() == dtype && x.numel() == numel, "beta_mask: ", name, " must have ", numel, " elements of its dtype");
    keep.push_back(torch::stable::contiguous(x));
    return static_cast<const T*>(keep.back().data_ptr());
  }
  template <class T>
  const T* maybe(const Optional& x, ScalarType dtype, int64_t numel, const char* name) {
    return x ? dense<T>(*x, dtype, numel, name) : nullptr;
  }

  Strided channels(const Tensor& x, int64_t n, const char* name) const {
    STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == a.batch && x.size(1) == a.length && x.size(2) == n, "beta_mask: ", name,
                    " must be (batch, L, channels)");
    return {x.data_ptr(), storage(x, name), x.stride(0), 0, x.stride(2), x.stride(1)};
  }

  int64_t bases() const { return a.batch * a.length; }
  int64_t all_blocks() const { return a.batch * a.blocks; }

  template <class F>
  void over_blocks(F f) const {
    torch::stable::parallel_for(0, all_blocks(), FEWEST_BLOCKS, f);
  }
  void run(void (*kernel)(const MaskArgs&, int64_t, int64_t, float*)) const {
    over_blocks([&](int64_t begin, int64_t end) {
      if (begin < end) kernel(a, begin, end, allocate<float>(k.scratch).get());
    });
  }
};

// What turns m into the mask: selection, then regions.
struct Finish {
  bool hard;
  float threshold;
  int64_t top, smooth;  // top: how many bases of a row; -1: threshold
  int64_t centre_begin, centre_end;
  const bool *exclude, *include;
  const float* soft;
  std::vector<uint8_t> selected;  // (batch, L), where a base depends on others

  bool keeps(int64_t at) const { return selected.empty() ? !hard || soft[at] >= threshold : selected[at]; }
  bool forced_one(int64_t at, int64_t j) const { return (j >= centre_begin && j < centre_end) || (include && include[at]); }
  bool forced_zero(int64_t at) const { return exclude && exclude[at]; }
  float value(int64_t at, int64_t j) const {
    if (forced_one(at, j)) return 1.f;
    if (forced_zero(at) || !keeps(at)) return 0.f;
    return hard ? 1.f : soft[at];
  }
};

void select_rows(const Problem& p, Finish& f) {
  const MaskArgs& a = p.a;
  if (f.top < 0 && f.smooth == 1) return;
  f.selected.resize(p.bases());
  torch::stable::parallel_for(0, a.batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<Key> keys(a.length);
    for (int64_t b = begin; b < end; ++b) {
      const float *alpha = a.alpha + b * a.length, *beta = a.beta + b * a.length, *soft = a.soft + b * a.length;
      for (int64_t j = 0; j < a.length; ++j) keys[j] = key(f.top < 0 ? soft[j] : alpha[j] / (alpha[j] + beta[j]));
      if (f.smooth > 1) max_pool(keys, f.smooth);
      uint8_t* row = f.selected.data() + b * a.length;
      if (f.top < 0) select_from(keys, f.threshold, row);
      else select_top(keys, f.top, row);
    }
  });
}

// The mask and its marks; returns the sum of |steps| of each block.
std::vector<double> finish(const Problem& p, const Finish& f, float* mask, uint8_t* marks) {
  const MaskArgs& a = p.a;
  std::vector<double> steps(p.all_blocks());
  p.over_blocks([&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = block / a.blocks * a.length, first = block % a.blocks * MASK_BLOCK;
      float previous = first ? f.value(row + first - 1, first - 1) : f.value(row, 0);
      double sum = 0;
      for (int64_t j = first; j < std::min(first + MASK_BLOCK, a.length); ++j) {
        const int64_t at = row + j;
        const float m = f.value(at, j);
        const bool open = !f.forced_one(at, j) && !f.forced_zero(at) && (f.hard || f.keeps(at));
        mask[at] = m;
        marks[at] = static_cast<uint8_t>((open ? MARK_OPEN : 0) + MARK_FLAT * (1 + (m > previous) - (m < previous)));
        sum += std::abs(m - previous);
        previous = m;
      }
      steps[block] = sum;
    }
  });
  return steps;
}

Tensor scalar(const Tensor& like, double value) {
  Tensor x = torch::stable::new_empty(like, {}, ScalarType::Float);
  *floats(x) = static_cast<float>(value);
  return x;
}

double total(const std::vector<double>& parts) {
  double sum = 0;
  for (double x : parts) sum += x;
  return sum;
}

// mask, soft_mask, alpha, beta, kl, continuity, logit, marks, and the smallest signal (NaN if one is not finite), alpha, beta.
std::vector<Tensor> forward(Tensor logits, Tensor signals, Tensor weights, Tensor betas, Optional exclude, Optional include, Tensor rows,
                            double beta_min, double signal_scale, double z_scale, double prior_p, double prior_q, bool sample, bool hard,
                            double threshold, int64_t top, int64_t smooth, int64_t center, bool product, int64_t seed) {
  Problem p(logits, weights, betas, beta_min, signal_scale, z_scale, prior_p, prior_q, sample, product);
  MaskArgs& a = p.a;
  STD_TORCH_CHECK(p.bases() > 0 && top <= a.length && smooth > 0, "beta_mask: empty input, or too many bases to select");
  a.signals = p.channels(signals, a.tracks, "signals");
  a.rows = p.dense<int64_t>(rows, ScalarType::Long, a.batch, "rows");
  a.key[0] = static_cast<uint32_t>(static_cast<uint64_t>(seed)), a.key[1] = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  const std::vector<int64_t> shape{a.batch, a.length};
  Tensor mask = fresh(logits, shape, ScalarType::Float), soft = fresh(logits, shape, ScalarType::Float), alpha = fresh(logits, shape, ScalarType::Float), beta = fresh(logits, shape, ScalarType::Float);
  Tensor logit = sample ? fresh(logits, shape, ScalarType::Float) : fresh(logits, {0}, ScalarType::Float), marks = fresh(logits, shape, ScalarType::Byte);
  Tensor lowest = fresh(logits, {3}, ScalarType::Float);
  a.soft = floats(soft), a.alpha = floats(alpha), a.beta = floats(beta), a.logit = floats(logit);
  std::vector<double> divergence(p.all_blocks());
  std::vector<float> lows(p.all_blocks() * 3);
  a.divergence = divergence.data(), a.lowest = lows.data();
  p.run(p.k.forward);

  const int64_t centre = (a.length - center) / 2;
  Finish f{hard, static_cast<float>(threshold), top, smooth, centre, centre + center,
           p.maybe<bool>(exclude, ScalarType::Bool, p.bases(), "exclude"), p.maybe<bool>(include, ScalarType::Bool, p.bases(), "include"),
           a.soft, {}};
  select_rows(p, f);
  const std::vector<double> steps = finish(p, f, floats(mask), static_cast<uint8_t*>(marks.data_ptr()));
  float low[3] = {lows[0], lows[1], lows[2]};
  for (size_t i = 3; i < lows.size(); ++i)
    if (std::isnan(lows[i]) || lows[i] < low[i % 3]) low[i % 3] = lows[i];
  std::copy_n(low, 3, floats(lowest));
  return {mask,
          soft,
          alpha,
          beta,
          scalar(logits, total(divergence) / p.bases()),
          scalar(logits, total(steps) / (a.batch * (a.length + 1.0))),
          logit,
          marks,
          lowest};
}

// Gradients of seq_logits, of signals if asked for, and if asked for of signal_weights (zero without `signals`), signal_betas.
std::vector<Tensor> backward(Optional grad_mask, Optional grad_soft, Optional grad_alpha, Optional grad_beta, Optional grad_kl,
                             Optional grad_continuity, Tensor logits, Optional signals, Tensor weights, Tensor betas, Tensor alpha,
                             Tensor beta, Tensor logit, Tensor marks, double beta_min, double signal_scale, double z_scale, double prior_p,
                             double prior_q, bool sample, bool product, bool for_signals, bool for_tracks) {
  Problem p(logits, weights, betas, beta_min, signal_scale, z_scale, prior_p, prior_q, sample, product);
  MaskArgs& a = p.a;
  const auto dense = [&](const Optional& x, const char* name) { return p.maybe<float>(x, ScalarType::Float, p.bases(), name); };
  a.grad_mask = dense(grad_mask, "grad_mask"), a.grad_soft = dense(grad_soft, "grad_soft_mask");
  a.grad_alpha = dense(grad_alpha, "grad_alpha"), a.grad_beta = dense(grad_beta, "grad_beta");
  const auto of_a_base = [&](const Optional& x, const char* name, double count) {
    return x ? static_cast<float>(*p.dense<float>(*x, ScalarType::Float, 1, name) / count) : 0.f;
  };
  a.grad_divergence = of_a_base(grad_kl, "grad_kl", static_cast<double>(p.bases()));
  a.grad_continuity = of_a_base(grad_continuity, "grad_continuity", a.batch * (a.length + 1.0));
  a.alpha = const_cast<float*>(p.dense<float>(alpha, ScalarType::Float, p.bases(), "alpha"));
  a.beta = const_cast<float*>(p.dense<float>(beta, ScalarType::Float, p.bases(), "beta"));
  a.logit = const_cast<float*>(p.dense<float>(logit, ScalarType::Float, sample ? p.bases() : 0, "logit"));
  a.marks = p.dense<uint8_t>(marks, ScalarType::Byte, p.bases(), "marks");
  Tensor grad_logits = fresh(logits, {a.batch, a.length, 2});
  a.grad_logits = p.channels(grad_logits, 2, "grad_logits");
  std::vector<Tensor> results{grad_logits};
  if (signals) a.signals = p.channels(*signals, a.tracks, "signals");
  if (for_signals) {
    STD_TORCH_CHECK(signals.has_value(), "beta_mask: the gradient of signals needs signals");
    results.push_back(fresh(*signals, {a.batch, a.length, a.tracks}));
    a.grad_signals = p.channels(results.back(), a.tracks, "grad_signals");
  }
  std::vector<double> sums(p.all_blocks() * (a.tracks + 2));
  a.sums = sums.data();
  p.run(p.k.backward);
  if (!for_tracks) return results;

  Tensor grad_weights = fresh(weights, {a.tracks}), grad_betas = fresh(betas, {a.tracks});
  std::vector<double> sum(a.tracks + 2);
  for (size_t i = 0; i < sums.size(); ++i) sum[i % sum.size()] += sums[i];
  const double by_alpha = sum[a.tracks], by_beta = sum[a.tracks + 1];
  for (int64_t i = 0; i < a.tracks; ++i) {
    const double by_track = signals ? signal_scale * sum[i] + a.track_shift * by_alpha + p.track_betas[i] * by_beta : 0;
    floats(grad_weights)[i] = static_cast<float>(by_track);
    floats(grad_betas)[i] = static_cast<float>(by_beta * a.weights[i] * signal_scale);
  }
  results.insert(results.end(), {grad_weights, grad_betas});
  return results;
}

Tensor top_mask(Tensor scores, int64_t k) {
  STD_TORCH_CHECK(scores.dim() == 2 && scores.scalar_type() == ScalarType::Float && k >= 0 && k <= scores.size(1),
                  "top_mask: scores must be float32 (batch, L) and k at most L");
  const Tensor dense = torch::stable::contiguous(scores);
  const int64_t batch = scores.size(0), length = scores.size(1);
  Tensor selected = torch::stable::new_empty(scores, {batch, length}, ScalarType::Bool);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<Key> keys(length);
    for (int64_t b = begin; b < end; ++b) {
      std::transform(floats(dense) + b * length, floats(dense) + (b + 1) * length, keys.begin(), key);
      select_top(keys, k, static_cast<uint8_t*>(selected.data_ptr()) + b * length);
    }
  });
  return selected;
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CPU, m) {
  m.impl("beta_mask_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("beta_mask_bwd", TORCH_BOX(&seq2exp::backward));
  m.impl("top_mask", TORCH_BOX(&seq2exp::top_mask));
}
