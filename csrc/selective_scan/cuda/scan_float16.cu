#include "selective_scan/cuda/launch.cuh"

namespace seq2exp {
template void gpu_forward<float16>(const GpuScan&, void*);
template void gpu_backward<float16>(const GpuScan&, void*);
}  // namespace seq2exp
