#include "gather/cuda/rows.cuh"

namespace seq2exp {
S2E_GATHER(float)
}  // namespace seq2exp
