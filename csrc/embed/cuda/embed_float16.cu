#include "embed/cuda/embed.cuh"

namespace seq2exp {
S2E_EMBED(float16, float)
S2E_EMBED(float16, bfloat16)
S2E_EMBED(float16, float16)
}  // namespace seq2exp
