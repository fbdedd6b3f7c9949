#define WIDTH 4
#define FORWARD_STATES 4   // held in registers
#define BACKWARD_STATES 4
#include "selective_scan/cpu/scan_impl.h"

namespace seq2exp {
const ScanKernels* scan_kernels_portable() {
  static constexpr ScanKernels table = kernels("portable");
  return &table;
}
}  // namespace seq2exp
