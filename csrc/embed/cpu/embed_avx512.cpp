#define WIDTH 16
#include "embed/cpu/embed_impl.h"

namespace seq2exp {
const EmbedKernels* embed_kernels_avx512() {
  static constexpr EmbedKernels table = {forward, backward};
  return &table;
}
}  // namespace seq2exp
