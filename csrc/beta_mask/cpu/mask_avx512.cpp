#define WIDTH 16
#include "beta_mask/cpu/mask_impl.h"

namespace seq2exp {
const MaskKernels* mask_kernels_avx512() {
  static constexpr MaskKernels table = {SCRATCH, forward, backward};
  return &table;
}
}  // namespace seq2exp
