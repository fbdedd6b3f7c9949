// The scan kernels, compiled once per instruction set. Channels lie in the lanes of a vector, states in a loop, so that the
// recurrence needs no work across lanes. Inputs pass through small tiles in scan order: any dtype, any strides, one core.
#pragma once
#include "selective_scan/cpu/scan_backward.h"
#include "selective_scan/cpu/scan_forward.h"

namespace seq2exp {
namespace {

constexpr ScanKernels kernels(const char* name) {
  return {name, W, forward_scratch, backward_scratch, forward, backward, reduce_b, reduce_c};
}

}  // namespace
}  // namespace seq2exp
