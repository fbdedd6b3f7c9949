#include "bimamba/cuda/conv.cuh"

namespace seq2exp {
template int64_t gpu_conv_workspace<float>(const GpuConv&);
template void gpu_conv_forward<float>(const GpuConv&, void*);
template void gpu_conv_backward<float>(const GpuConv&, void*);
}  // namespace seq2exp
