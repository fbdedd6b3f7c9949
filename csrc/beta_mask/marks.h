// The byte of a base that the forward leaves for the backward.
#pragma once
#include <stdint.h>

namespace seq2exp {

// Bit 0: the gradient of the mask reaches m. The rest: 1 + sign(mask[j] - mask[j - 1]).
constexpr uint8_t MARK_OPEN = 1, MARK_FLAT = 1 << 1;

}  // namespace seq2exp
