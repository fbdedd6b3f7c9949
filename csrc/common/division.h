// Division by a number that stays the same.
#pragma once
#include "common/math.h"

namespace seq2exp {

struct Divider {
  int64_t divisor;
  uint64_t reciprocal;  // floor((2^64 - 1) / divisor)
};

namespace {

inline Divider divider(int64_t divisor) { return {divisor, ~uint64_t(0) / static_cast<uint64_t>(divisor)}; }

// n / divisor for n >= 0: the high word of n * reciprocal is that or one less.
S2E_HD int64_t quotient(int64_t n, const Divider& by) {
  const auto q = static_cast<int64_t>(static_cast<unsigned __int128>(n) * by.reciprocal >> 64);
  return q + (n - q * by.divisor >= by.divisor);
}

}  // namespace
}  // namespace seq2exp
