#define WIDTH 8
#define FORWARD_STATES 8   // held in registers
#define BACKWARD_STATES 8
#include "selective_scan/cpu/scan_impl.h"

namespace seq2exp {
const ScanKernels* scan_kernels_avx2() {
  static constexpr ScanKernels table = kernels("avx2");
  return &table;
}
}  // namespace seq2exp
