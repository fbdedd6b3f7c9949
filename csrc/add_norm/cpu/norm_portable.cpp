#define WIDTH 4
#include "add_norm/cpu/norm_impl.h"

namespace seq2exp {
const NormKernels* norm_kernels_portable() {
  static constexpr NormKernels table = {forward, backward};
  return &table;
}
}  // namespace seq2exp
