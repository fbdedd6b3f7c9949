#include "bimamba/cuda/conv.cuh"

namespace seq2exp {
template int64_t gpu_conv_workspace<bfloat16>(const GpuConv&);
template void gpu_conv_forward<bfloat16>(const GpuConv&, void*);
template void gpu_conv_backward<bfloat16>(const GpuConv&, void*);
}  // namespace seq2exp
