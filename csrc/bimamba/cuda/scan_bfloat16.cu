#include "bimamba/cuda/scan.cuh"

namespace seq2exp {
template void gpu_mixer_forward<bfloat16>(const GpuScan&, void*);
template void gpu_mixer_backward<bfloat16>(const GpuScan&, void*);
}  // namespace seq2exp
