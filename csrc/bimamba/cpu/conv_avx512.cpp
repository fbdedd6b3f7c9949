#define WIDTH 16
#include "bimamba/cpu/conv_impl.h"

namespace seq2exp {
const ConvKernels* conv_kernels_avx512() { return &KERNELS; }
}  // namespace seq2exp
