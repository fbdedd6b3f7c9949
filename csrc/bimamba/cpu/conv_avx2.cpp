#define WIDTH 8
#include "bimamba/cpu/conv_impl.h"

namespace seq2exp {
const ConvKernels* conv_kernels_avx2() { return &KERNELS; }
}  // namespace seq2exp
