// Logarithms, exponentials and the functions of the Gamma family in float32, as accurate near their zeros as elsewhere.
// V as in common/math.h. Polynomials are minimax fits of this project; errors are in kernels/beta_mask/README.md.
#pragma once
#include "common/math.h"

namespace seq2exp {
namespace {

template <class V>
S2E_HD V select(decltype(V{} < V{}) condition, V yes, V no) {
  return condition ? yes : no;
}

template <class V>
S2E_HD V minimum(V a, V b) {
  return a < b ? a : b;
}

S2E_HD bool any_lane(bool mask) { return mask; }
template <class M>
S2E_HD bool any_lane(M mask) {
  int32_t lanes[sizeof(M) / 4], all = 0;
  memcpy(lanes, &mask, sizeof(mask));
  for (unsigned i = 0; i < sizeof(M) / 4; ++i) all |= lanes[i];
  return all != 0;
}

S2E_HD float square_root(float x) {
#ifdef __CUDACC__
  return sqrtf(x);
#else
  return __builtin_sqrtf(x);
#endif
}
template <class V>
S2E_HD V square_root(V x) {
  float lanes[sizeof(V) / 4];
  memcpy(lanes, &x, sizeof(x));
  for (unsigned i = 0; i < sizeof(V) / 4; ++i) lanes[i] = square_root(lanes[i]);
  memcpy(&x, lanes, sizeof(x));
  return x;
}

// An integer of magnitude below 2^22 as a float.
template <class V>
S2E_HD V integer_to_float(Bits<V> i) {
  return bit_cast<V>(i + 0x4b400000) - ROUND;
}

// The e for which u / 2^e is in [sqrt(1/2), sqrt(2)).
template <class V>
S2E_HD Bits<V> exponent(V u) {
  return (bit_cast<Bits<V>>(u) - 0x3f3504f3) >> 23;
}

// log(1 + f) + e log 2 for sqrt(1/2) <= 1 + f <= sqrt(2).
template <class V>
S2E_HD V log_of_parts(V f, V e) {
  V p = f * -7.623029184e-02f + 1.290558182e-01f;
  p = p * f - 1.324303376e-01f;
  p = p * f + 1.418162238e-01f;
  p = p * f - 1.660904771e-01f;
  p = p * f + 2.000198522e-01f;
  p = p * f - 2.500158530e-01f;
  p = p * f + 3.333332550e-01f;
  p = p * f - 4.999998831e-01f;
  return (f * f * p + e * LN2_LO + f) + e * LN2_HI;
}

// log(x), x > 0 and not denormal.
template <class V>
S2E_HD V log(V x) {
  const Bits<V> e = exponent(x);
  return log_of_parts(bit_cast<V>(bit_cast<Bits<V>>(x) - (e << 23)) - 1.f, integer_to_float<V>(e));
}

// log(1 + x), x > -1.
template <class V>
S2E_HD V log1p(V x) {
  const Bits<V> e = exponent(x + 1.f);
  const V scale = bit_cast<V>(0x3f800000 - (e << 23));  // 2^-e
  return log_of_parts(x * scale + (scale - 1.f), integer_to_float<V>(e));
}

// e^x - 1, |x| < 87.
template <class V>
S2E_HD V expm1(V x) {
  const V t = x * LOG2E + ROUND;
  const V r = t - ROUND;
  const V f = (x - r * LN2_HI) - r * LN2_LO;
  V p = f * 1.984601042e-04f + 1.394062158e-03f;
  p = p * f + 8.333389113e-03f;
  p = p * f + 4.166636096e-02f;
  p = p * f + 1.666666637e-01f;
  p = p * f + 5.000000044e-01f;
  const V scale = scale_exponent(splat<V>(1.f), t);
  return (f * f * p + f) * scale + (scale - 1.f);
}

// cos(2 pi u), 0 <= u <= 1.
template <class V>
S2E_HD V cos_2pi(V u) {
  const V t = u * 2.f + ROUND;  // half turns
  const V r = u - (t - ROUND) * 0.5f;
  const V s = r * r;
  V p = s * -2.498223692e+01f + 6.014401495e+01f;
  p = p * s - 8.545357162e+01f;
  p = p * s + 6.493934663e+01f;
  p = p * s - 1.973920855e+01f;
  p = p * s + 9.999999998e-01f;
  return bit_cast<V>(bit_cast<Bits<V>>(p) ^ (bit_cast<Bits<V>>(t) << 31));
}

// What Stirling's leading terms leave, for x >= 4. With them
//   lgamma(x) = (x - 1/2) log x - x + log(2 pi) / 2 + lgamma_tail(x)
//   digamma(x) = log x - digamma_tail(x)
//   x trigamma(x) = 1 + 1 / (2 x) + trigamma_tail(x)
template <class V>
S2E_HD V lgamma_tail(V inverse) {  // takes 1 / x, as the next two
  const V s = inverse * inverse;
  return inverse * (1.f / 12 - s * (1.f / 360 - s * (1.f / 1260 - s * (1.f / 1680))));
}
template <class V>
S2E_HD V digamma_tail(V inverse) {
  const V s = inverse * inverse;
  return inverse * 0.5f + s * (1.f / 12 - s * (1.f / 120 - s * (1.f / 252 - s * (1.f / 240))));
}
template <class V>
S2E_HD V trigamma_tail(V inverse) {
  const V s = inverse * inverse;
  return s * (1.f / 6 - s * (1.f / 30 - s * (1.f / 42 - s * (1.f / 30))));
}

constexpr float STIRLING = 4.f;  // from here on the tails are good; below, four steps of the recurrence lead there

// lgamma(x) and digamma(x) less Stirling's leading terms, for any x > 0: as the tails above.
template <class V>
struct GammaTails {
  V lgamma, digamma;
};
template <class V>
S2E_HD GammaTails<V> gamma_tails(V x) {
  const auto small = x < splat<V>(STIRLING);
  const V inverse = splat<V>(1.f) / select<V>(small, x + 4.f, x);
  GammaTails<V> t = {lgamma_tail(inverse), digamma_tail(inverse)};
  if (any_lane(small)) {
    const V p = x * (x + 1.f), q = (x + 2.f) * (x + 3.f);
    const V reciprocals = ((x * 2.f + 1.f) * q + (x * 2.f + 5.f) * p) / (p * q);  // 1/x + 1/(x+1) + 1/(x+2) + 1/(x+3)
    const V ix = splat<V>(1.f) / x, ratio = log1p(ix * 4.f);                     // log((x + 4) / x)
    const V factors = log((ix + 1.f) * (ix * 2.f + 1.f) * (ix * 3.f + 1.f));
    t.lgamma = select<V>(small, t.lgamma + ((x + 3.5f) * ratio - 4.f - factors), t.lgamma);
    t.digamma = select<V>(small, t.digamma + (reciprocals - ratio), t.digamma);
  }
  return t;
}

// x trigamma(x) - 1 - 1 / (2 x), x > 0.
template <class V>
S2E_HD V trigamma_rest(V x) {
  const auto small = x < splat<V>(STIRLING);
  const V inverse = splat<V>(1.f) / select<V>(small, x + 4.f, x);
  V t = trigamma_tail(inverse);
  if (any_lane(small)) {
    const V one = splat<V>(1.f);
    const V i0 = one / x, i1 = one / (x + 1.f), i2 = one / (x + 2.f), i3 = one / (x + 3.f);
    const V h = inverse * 0.5f + t;  // y trigamma(y) - 1 at y = x + 4, and x / y = 1 - 4 / y
    t = select<V>(small, x * (i1 * i1 + i2 * i2 + i3 * i3) + (h - inverse * 4.f * (1.f + h)) + i0 * 0.5f, t);
  }
  return t;
}

// digamma(x + d) - digamma(x) for x, d > 0, to a relative error even where d is tiny.
template <class V>
S2E_HD V digamma_step(V x, V d) {
  const V e = x + d, y = x + 4.f, f = e + 4.f;
  const V p0 = x * e, p1 = (x + 1.f) * (e + 1.f), p2 = (x + 2.f) * (e + 2.f), p3 = (x + 3.f) * (e + 3.f);
  const V steps = (p0 + p1) / (p0 * p1) + (p2 + p3) / (p2 * p3);
  const V both = splat<V>(1.f) / (y * f), iy = f * both, ie = y * both;
  const V s = iy * iy, r = ie * ie;
  const V tail = s * (1.f / 12 - s * (1.f / 120 - s * (1.f / 252))) - r * (1.f / 12 - r * (1.f / 120 - r * (1.f / 252)));
  return (log1p(d * iy) + tail) + d * (steps + both * 0.5f);
}

}  // namespace
}  // namespace seq2exp
