#define WIDTH 8
#include "embed/cpu/embed_impl.h"

namespace seq2exp {
const EmbedKernels* embed_kernels_avx2() {
  static constexpr EmbedKernels table = {forward, backward};
  return &table;
}
}  // namespace seq2exp
