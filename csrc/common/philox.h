// Philox4x32-10, the counter-based generator of Salmon et al. 2011: four words are a pure function of counter and key.
// U is uint32_t (host and device) or a GCC vector of uint32_t, for which the including file specialises WideMultiply.
#pragma once
#include "common/math.h"

namespace seq2exp {
namespace {

template <class U>
struct WideMultiply {  // high and low word of x * m
  static S2E_HD void apply(U x, uint32_t m, U& high, U& low) {
    const uint64_t product = static_cast<uint64_t>(x) * m;
    high = static_cast<uint32_t>(product >> 32);
    low = static_cast<uint32_t>(product);
  }
};

template <class U>
struct Words {
  U w[4];
};

template <class U>
S2E_HD Words<U> philox(Words<U> counter, uint32_t key0, uint32_t key1) {
  U c0 = counter.w[0], c1 = counter.w[1], c2 = counter.w[2], c3 = counter.w[3];
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    WideMultiply<U>::apply(c0, 0xD2511F53u, high0, low0);
    WideMultiply<U>::apply(c2, 0xCD9E8D57u, high1, low1);
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// A word as a number in (0, 1): the middle of one of 2^23 cells, exact.
template <class V, class U>
S2E_HD V uniform(U word) {
  return (bit_cast<V>((word >> 9) | 0x3f800000u) - 1.f) + 0x1p-24f;
}

}  // namespace
}  // namespace seq2exp
