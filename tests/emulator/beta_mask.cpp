// The CUDA mask as a CPU library: C names for the host functions of the GPU build, which run its kernels in the emulator. They
// return null or what went wrong.
#include "cuda_emulator.h"
#include "beta_mask/cuda/mask.h"

using namespace seq2exp;

extern "C" {

// Where each field of GpuMask begins, and where it ends; in the order of the Python side.
const int64_t* mask_layout() {
#define AT(field) int64_t(offsetof(GpuMask, field))
  static const int64_t offsets[] = {
      AT(batch), AT(length), AT(tiles), AT(tracks), AT(logits), AT(signals), AT(weights), AT(betas), AT(minimum),
      AT(signal_scale), AT(z_scale), AT(alpha_shift), AT(beta_shift), AT(prior), AT(sample), AT(hard), AT(threshold), AT(key0),
      AT(key1), AT(rows), AT(centre_begin), AT(centre_end), AT(exclude), AT(include), AT(selected), AT(mask), AT(soft), AT(alpha),
      AT(beta), AT(logit), AT(marks), AT(sums), AT(lowest), AT(grad_mask), AT(grad_soft), AT(grad_alpha), AT(grad_beta),
      AT(grad_divergence), AT(grad_continuity), AT(of_bases), AT(of_steps), AT(grad_logits), AT(grad_signals), AT(grad_sums),
      sizeof(GpuMask)};
  return offsets;
}

int64_t mask_tiles(int64_t length) { return gpu_mask_tiles(length); }
int64_t mask_blocks(int64_t bases) { return gpu_mask_blocks(bases); }

void mask_prior(double p, double q, float* prior) {
  const BetaPrior made = beta_prior(p, q);
  memcpy(prior, &made, sizeof(made));
}

const char* mask_forward(const GpuMask* a) {
  return emulator::message_of([=] { gpu_mask_forward(*a, nullptr); });
}

const char* mask_backward(const GpuMask* a) {
  return emulator::message_of([=] { gpu_mask_backward(*a, nullptr); });
}

}  // extern "C"
