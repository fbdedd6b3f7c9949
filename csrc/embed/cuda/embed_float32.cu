#include "embed/cuda/embed.cuh"

namespace seq2exp {
S2E_EMBED(float, float)
S2E_EMBED(float, bfloat16)
S2E_EMBED(float, float16)
}  // namespace seq2exp
