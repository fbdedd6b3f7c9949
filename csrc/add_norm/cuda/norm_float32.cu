#include "add_norm/cuda/norm.cuh"

namespace seq2exp {
S2E_NORM(float, float)
S2E_NORM(float, bfloat16)
S2E_NORM(float, float16)
}  // namespace seq2exp
