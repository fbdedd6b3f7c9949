#include "bimamba/cuda/scan.cuh"

namespace seq2exp {
template void gpu_mixer_forward<float16>(const GpuScan&, void*);
template void gpu_mixer_backward<float16>(const GpuScan&, void*);
}  // namespace seq2exp
