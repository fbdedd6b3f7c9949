// The mask on a GPU, a thread a base; the mathematics is that of the CPU (csrc/common/beta.h). See kernels/beta_mask/README.md.
#include "beta_mask/cuda/mask.h"

#include "beta_mask/marks.h"
#include "common/beta.h"
#include "common/marks.h"
#include "common/storage.cuh"

namespace seq2exp {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarps = kMaskThreads / 32;

enum Mark { kMarkTrack = 1, kMarkAttempt, kMarkMean, kMarkSignals, kMarkSums };

__device__ __forceinline__ float load_channel(const GpuChannels& x, int64_t b, int64_t j, int c) {
  const int64_t at = b * x.batch + j * x.position + c * x.channel;
  switch (x.storage) {
    case 0: return load_scalar(static_cast<const float*>(x.data) + at);
    case 1: return load_scalar(static_cast<const bfloat16*>(x.data) + at);
    default: return load_scalar(static_cast<const float16*>(x.data) + at);
  }
}

__device__ __forceinline__ void store_channel(const GpuChannels& x, int64_t b, int64_t j, int c, float value) {
  const int64_t at = b * x.batch + j * x.position + c * x.channel;
  switch (x.storage) {
    case 0: return store_scalar(static_cast<float*>(x.data) + at, value);
    case 1: return store_scalar(static_cast<bfloat16*>(x.data) + at, value);
    default: return store_scalar(static_cast<float16*>(x.data) + at, value);
  }
}

struct Sum {
  static __device__ __forceinline__ float join(float a, float b) { return a + b; }
};
struct Minimum {
  static __device__ __forceinline__ float join(float a, float b) { return fminf(a, b); }
};

// x of all threads joined in a fixed order; the result is in thread 0. Every thread of the block takes part.
template <class Op, int kCount>
__device__ __forceinline__ void block_join(float (&x)[kCount]) {
  __shared__ float warps[kCount][kWarps];
  for (int step = 16; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Op::join(x[i], __shfl_xor_sync(kAllLanes, x[i], step));
  }
  __syncthreads();  // all have read what the join before left here
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) warps[i][threadIdx.x / 32] = x[i];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    x[i] = warps[i][0];
    for (int w = 1; w < kWarps; ++w) x[i] = Op::join(x[i], warps[i][w]);
  }
}

// log(G / d), G ~ Gamma(concentration), d = boosted concentration - 1/3; NaN for a concentration that is not finite or not positive.
__device__ __forceinline__ float log_gamma_draw(const GpuMask& a, int64_t row, int64_t j, float concentration, uint32_t stream) {
  if (!(concentration > 0.f && concentration < __builtin_inff())) return bit_cast<float>(0x7fffffff);
  const bool small = concentration < 1.f;
  const float d = (small ? concentration + 1.f : concentration) - 1.f / 3;
  const uint64_t number = static_cast<uint64_t>(a.rows[row]);
  float boost = 0.f;
  for (uint32_t draw = stream;; draw += 2) {
    S2E_MARK(kMarkAttempt);
    const Words<uint32_t> words = philox<uint32_t>(
        {{static_cast<uint32_t>(j), static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), draw}}, a.key0, a.key1);
    if (draw == stream && small) boost = seq2exp::log(uniform<float>(words.w[3])) / concentration;
    const GammaAttempt<float> attempt = gamma_attempt<float>(d, words);
    if (attempt.accepted) return boost + seq2exp::log1p(attempt.y) * 3.f;
  }
}

__device__ __forceinline__ float boosted(float concentration) { return concentration < 1.f ? concentration + 1.f : concentration; }

struct Base {
  float alpha, beta, logit, soft;
};

// lowest: of signal, alpha, beta.
__device__ __forceinline__ Base base_of(const GpuMask& a, int64_t row, int64_t j, float (&lowest)[3], float& bad) {
  float by_tracks = 0.f, beta_tracks = 0.f;
  for (int i = 0; i < a.tracks; ++i) {
    S2E_MARK(kMarkTrack);
    const float s = load_channel(a.signals, row, j, i);
    bad += s - s == 0.f ? 0.f : 1.f;
    lowest[0] = fminf(lowest[0], s);
    by_tracks += (s * a.signal_scale + a.alpha_shift) * a.weights[i];
    beta_tracks += (a.betas[i] * a.signal_scale + a.beta_shift) * a.weights[i];
  }
  Base x;
  x.alpha = (softplus(load_channel(a.logits, row, j, 1)) + a.minimum + by_tracks) * a.z_scale;
  x.beta = (softplus(load_channel(a.logits, row, j, 0)) + a.minimum + beta_tracks) * a.z_scale;
  lowest[1] = x.alpha;
  lowest[2] = x.beta;
  x.logit = 0.f;
  if (a.sample) {
    const float draw_alpha = log_gamma_draw(a, row, j, x.alpha, 0), draw_beta = log_gamma_draw(a, row, j, x.beta, 1);
    x.logit = seq2exp::log((boosted(x.alpha) - 1.f / 3) / (boosted(x.beta) - 1.f / 3)) + (draw_alpha - draw_beta);
    x.soft = sigmoid(x.logit);
  } else {
    S2E_MARK_BRANCH(kMarkMean);
    x.soft = x.alpha / (x.alpha + x.beta);
  }
  return x;
}

// Grid: the tiles of all rows.
__global__ void __launch_bounds__(kMaskThreads) beta_mask_fwd_kernel(const __grid_constant__ GpuMask a) {
  const int64_t row = blockIdx.x / a.tiles, j = blockIdx.x % a.tiles * kMaskTile + threadIdx.x - 1, at = row * a.length + j;
  const bool exists = j >= 0 && j < a.length, own = exists && threadIdx.x > 0;
  const float infinity = bit_cast<float>(0x7f800000);
  float lowest[3] = {infinity, infinity, infinity}, sums[3] = {};
  Base x = {};
  float value = 0.f;
  bool open = false;
  if (exists) {
    x = base_of(a, row, j, lowest, sums[2]);
    const bool one = (j >= a.centre_begin && j < a.centre_end) || (a.include && a.include[at]);
    const bool zero = !one && a.exclude && a.exclude[at];
    const bool kept = a.selected ? a.selected[at] : !a.hard || x.soft >= a.threshold;
    value = one ? 1.f : zero || !kept ? 0.f : a.hard ? 1.f : x.soft;
    open = !one && !zero && (a.hard || kept);
  }
  __shared__ float values[kMaskThreads];
  values[threadIdx.x] = value;
  __syncthreads();
  const float step = own && j > 0 ? value - values[threadIdx.x - 1] : 0.f;
  if (own) {
    a.alpha[at] = x.alpha;
    a.beta[at] = x.beta;
    a.soft[at] = x.soft;
    a.mask[at] = value;
    if (a.sample) a.logit[at] = x.logit;
    a.marks[at] = static_cast<uint8_t>((open ? MARK_OPEN : 0) + MARK_FLAT * (1 + (step > 0.f) - (step < 0.f)));
    sums[0] = beta_divergence(x.alpha, x.beta, a.prior);
    sums[1] = fabsf(step);
  }
  block_join<Sum>(sums);
  block_join<Minimum>(lowest);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      a.sums[static_cast<int64_t>(blockIdx.x) * 3 + i] = sums[i];
      a.lowest[static_cast<int64_t>(blockIdx.x) * 3 + i] = lowest[i];
    }
  }
}

// The gradient of m: of the mask and the continuity where they reach it, and of soft_mask.
__device__ __forceinline__ float value_gradient(const GpuMask& a, int64_t at, bool last) {
  const int mark = a.marks[at];
  float grad = 0.f;
  if (mark & MARK_OPEN) {
    if (a.grad_mask) grad += a.grad_mask[at];
    if (a.grad_continuity) {
      const int step = (mark >> 1) - 1, next = last ? 0 : (a.marks[at + 1] >> 1) - 1;
      grad += *a.grad_continuity * a.of_steps * static_cast<float>(step - next);
    }
  }
  return a.grad_soft ? grad + a.grad_soft[at] : grad;
}

// Gradients by alpha and beta, without z_scale.
__device__ __forceinline__ ByConcentration<float> concentration_gradient(const GpuMask& a, int64_t at, bool last) {
  const float alpha = a.alpha[at], beta = a.beta[at], grad = value_gradient(a, at, last);
  ByConcentration<float> by = {0.f, 0.f};
  if (a.sample) {
    by = sample_gradient(alpha, beta, a.logit[at]);
  } else {
    S2E_MARK_BRANCH(kMarkMean);
    const float inverse = 1.f / (alpha + beta);
    by = {beta * inverse * inverse, -alpha * inverse * inverse};
  }
  by.alpha *= grad;
  by.beta *= grad;
  if (a.grad_divergence) {
    const float scale = *a.grad_divergence * a.of_bases;
    const ByConcentration<float> kl = beta_divergence_gradient(alpha, beta, a.prior);
    by.alpha += kl.alpha * scale;
    by.beta += kl.beta * scale;
  }
  if (a.grad_alpha) by.alpha += a.grad_alpha[at];
  if (a.grad_beta) by.beta += a.grad_beta[at];
  return by;
}

// Grid: all bases.
__global__ void __launch_bounds__(kMaskThreads) beta_mask_bwd_kernel(const __grid_constant__ GpuMask a) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kMaskThreads + threadIdx.x;
  const int64_t row = at / a.length, j = at % a.length;
  const bool exists = row < a.batch;
  float by_alpha = 0.f, by_beta = 0.f;
  if (exists) {
    const ByConcentration<float> by = concentration_gradient(a, at, j + 1 == a.length);
    by_alpha = by.alpha * a.z_scale;
    by_beta = by.beta * a.z_scale;
    store_channel(a.grad_logits, row, j, 0, by_beta * sigmoid(load_channel(a.logits, row, j, 0)));
    store_channel(a.grad_logits, row, j, 1, by_alpha * sigmoid(load_channel(a.logits, row, j, 1)));
    if (a.grad_signals.data) {
      for (int i = 0; i < a.tracks; ++i) {
        S2E_MARK(kMarkSignals);
        store_channel(a.grad_signals, row, j, i, by_alpha * (a.weights[i] * a.signal_scale));
      }
    }
  }
  if (!a.grad_sums) return;
  S2E_MARK_BRANCH(kMarkSums);
  float* const sums = a.grad_sums + static_cast<int64_t>(blockIdx.x) * (a.tracks + 2);
  for (int i = 0; i < a.tracks; ++i) {
    S2E_MARK(kMarkTrack);
    float product[1] = {exists && a.signals.data ? by_alpha * load_channel(a.signals, row, j, i) : 0.f};
    block_join<Sum>(product);
    if (threadIdx.x == 0) sums[i] = product[0];
  }
  float both[2] = {by_alpha, by_beta};
  block_join<Sum>(both);
  if (threadIdx.x == 0) {
    sums[a.tracks] = both[0];
    sums[a.tracks + 1] = both[1];
  }
}

}  // namespace

void gpu_mask_forward(const GpuMask& a, void* stream) {
  launch(beta_mask_fwd_kernel, a.batch * a.tiles, kMaskThreads, 0, static_cast<cudaStream_t>(stream), a);
}

void gpu_mask_backward(const GpuMask& a, void* stream) {
  launch(beta_mask_bwd_kernel, gpu_mask_blocks(a.batch * a.length), kMaskThreads, 0, static_cast<cudaStream_t>(stream), a);
}

}  // namespace seq2exp
