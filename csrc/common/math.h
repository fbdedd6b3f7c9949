// Scalar maths of the kernels, written once for floats (host and device) and for vectors of floats (CPU).
// V is float or a GCC vector of floats. Everything has internal linkage: each translation unit is compiled for its own
// instruction set, and a shared inline copy would run the wrong one.
#pragma once
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define S2E_HD __host__ __device__ __forceinline__
#else
#define S2E_HD inline __attribute__((always_inline))
#endif

namespace seq2exp {
namespace {

constexpr float LOG2E = 1.44269504f;
constexpr float LN2 = 0.693147181f;
constexpr float LN2_HI = 0.693359375f;  // few bits: r * LN2_HI is exact
constexpr float LN2_LO = -2.12194440e-4f;
constexpr float ROUND = 12582912.f;       // 1.5 * 2^23: x + ROUND holds round(x) in its low bits
constexpr float EXP2_LIMIT = 125.f;       // |x| up to which 2^x needs no clamping

template <class V>
struct BitsOf {
  typedef int32_t __attribute__((vector_size(sizeof(V)))) type;
};
template <>
struct BitsOf<float> {
  typedef int32_t type;
};
template <class V>
using Bits = typename BitsOf<V>::type;

template <class To, class From>
S2E_HD To bit_cast(From x) {
  To y;
  memcpy(&y, &x, sizeof(y));
  return y;
}

template <class V>
S2E_HD V splat(float x) {
  return V{} + x;
}

// 2^f for |f| <= 0.5, relative error below 1e-7 and exact at 0 (minimax, constant term fixed at 1).
template <class V>
S2E_HD V exp2_fraction(V f) {
  V p = f * 1.326472712e-3f + 9.671512645e-3f;
  p = p * f + 5.550733743e-2f;
  p = p * f + 2.402224209e-1f;
  p = p * f + 6.931469776e-1f;
  return p * f + 1.f;
}

// p * 2^round(x), where rounded = x + ROUND.
template <class V>
S2E_HD V scale_exponent(V p, V rounded) {
  return bit_cast<V>(bit_cast<Bits<V>>(p) + (bit_cast<Bits<V>>(rounded) << 23));
}

// 2^(a b), |a b| <= EXP2_LIMIT. The products are only added to, so that each becomes one fused multiply-add.
template <class V>
S2E_HD V exp2_product(V a, V b) {
  const V t = a * b + ROUND;
  const V r = t - ROUND;
  return scale_exponent(exp2_fraction(a * b - r), t);
}

// 2^(a b) for any a, b: 0 and infinity beyond the limit, NaN stays; within it the same bits as exp2_product.
template <class V>
S2E_HD V exp2_product_any(V a, V b) {
  const V t = a * b + ROUND;
  const V r = t - ROUND;
  V y = scale_exponent(exp2_fraction(a * b - r), t);
  y = r < splat<V>(-EXP2_LIMIT) ? splat<V>(0.f) : y;
  y = r > splat<V>(EXP2_LIMIT) ? splat<V>(__builtin_inff()) : y;
  return r == r ? y : r;
}

// e^x, clamped to about 1e-38 .. 1e38; NaN stays.
template <class V>
S2E_HD V exp_clamped(V x) {
  V c = x < splat<V>(-87.f) ? splat<V>(-87.f) : x;
  c = c > splat<V>(87.f) ? splat<V>(87.f) : c;
  const V t = c * LOG2E + ROUND;
  const V r = t - ROUND;
  const V f = (c - r * LN2_HI) - r * LN2_LO;
  const V y = scale_exponent(exp2_fraction(f * LOG2E), t);
  return x == x ? y : x;
}

// 1 / (1 + e^-x), 0 below -87.
template <class V>
S2E_HD V sigmoid(V x) {
  const V y = splat<V>(1.f) / (exp_clamped(-x) + 1.f);
  return x < splat<V>(-87.f) ? splat<V>(0.f) : y;
}

// log(1 + y) for y in [0, 1], as 2 atanh(y / (2 + y)).
template <class V>
S2E_HD V log1p_unit(V y) {
  const V s = y / (y + 2.f);
  const V q = s * s;
  V p = q * (1.f / 15.f) + 1.f / 13.f;
  p = p * q + 1.f / 11.f;
  p = p * q + 1.f / 9.f;
  p = p * q + 1.f / 7.f;
  p = p * q + 1.f / 5.f;
  p = p * q + 1.f / 3.f;
  return s * 2.f + s * 2.f * (p * q);
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|).
template <class V>
S2E_HD V softplus(V x) {
  const V y = exp_clamped(x < splat<V>(0.f) ? x : -x);
  return (x < splat<V>(0.f) ? splat<V>(0.f) : x) + log1p_unit(y);
}

// The same, and its derivative, the sigmoid of x (1e-38 where that underflows).
template <class V>
S2E_HD V softplus(V x, V& slope) {
  const V y = exp_clamped(x < splat<V>(0.f) ? x : -x);
  slope = (x < splat<V>(0.f) ? y : splat<V>(1.f)) / (y + 1.f);
  return (x < splat<V>(0.f) ? splat<V>(0.f) : x) + log1p_unit(y);
}

}  // namespace
}  // namespace seq2exp
