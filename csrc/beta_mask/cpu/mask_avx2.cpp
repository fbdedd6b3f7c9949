#define WIDTH 8
#include "beta_mask/cpu/mask_impl.h"

namespace seq2exp {
const MaskKernels* mask_kernels_avx2() {
  static constexpr MaskKernels table = {SCRATCH, forward, backward};
  return &table;
}
}  // namespace seq2exp
