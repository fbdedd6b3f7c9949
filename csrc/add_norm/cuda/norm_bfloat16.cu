#include "add_norm/cuda/norm.cuh"

namespace seq2exp {
S2E_NORM(bfloat16, float)
S2E_NORM(bfloat16, bfloat16)
S2E_NORM(bfloat16, float16)
}  // namespace seq2exp
