#include "bimamba/cuda/conv.cuh"

namespace seq2exp {
template int64_t gpu_conv_workspace<float16>(const GpuConv&);
template void gpu_conv_forward<float16>(const GpuConv&, void*);
template void gpu_conv_backward<float16>(const GpuConv&, void*);
}  // namespace seq2exp
