#define WIDTH 16
#define FORWARD_STATES 16   // held in registers
#define BACKWARD_STATES 8
#include "selective_scan/cpu/scan_impl.h"

namespace seq2exp {
const ScanKernels* scan_kernels_avx512() {
  static constexpr ScanKernels table = kernels("avx512");
  return &table;
}
}  // namespace seq2exp
