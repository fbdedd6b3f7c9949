#include "gather/cuda/rows.cuh"

namespace seq2exp {
S2E_GATHER(bfloat16)
}  // namespace seq2exp
