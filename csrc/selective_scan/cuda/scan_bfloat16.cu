#include "selective_scan/cuda/launch.cuh"

namespace seq2exp {
template void gpu_forward<bfloat16>(const GpuScan&, void*);
template void gpu_backward<bfloat16>(const GpuScan&, void*);
}  // namespace seq2exp
