// The Beta distribution in float32: log-Gamma draws, the pathwise gradient of a draw, the divergence from a prior.
// Derivations and measured errors: kernels/beta_mask/README.md. V as in common/math.h.
#pragma once
#include "common/philox.h"
#include "common/prior.h"
#include "common/special.h"

namespace seq2exp {
namespace {

// One attempt of Marsaglia and Tsang 2000 at a Gamma(a) draw, a >= 1, with d = a - 1/3: G = d (1 + y)^3 if accepted.
template <class V>
struct GammaAttempt {
  V y;
  decltype(V{} < V{}) accepted;
};

// log(1 + y) - (y - y^2/2 + y^3/3)
template <class V>
S2E_HD V log1p_remainder(V y) {
  V p = y * -1.041069489e-01f + 1.112575583e-01f;
  p = p * y - 1.103883037e-01f;
  p = p * y + 1.245489166e-01f;
  p = p * y - 1.428719821e-01f;
  p = p * y + 1.666723776e-01f;
  p = p * y - 1.999999149e-01f;
  p = p * y + 2.499999888e-01f;
  const V s = y * y;
  const V direct = log1p(y) - y * (y * (y * (1.f / 3) - 0.5f) + 1.f);
  return select<V>(s < splat<V>(1.f / 16), -s * s * p, direct);
}

// Words 0 and 1 make the normal (Box and Muller), word 2 the rejection test, whose usual form
// log u < x^2/2 + d - d v + d log v, v = (1 + y)^3, cancels for large d; what is left of it is 3 d log1p_remainder(y).
template <class V, class U>
S2E_HD GammaAttempt<V> gamma_attempt(V d, const Words<U>& words) {
  const V x = square_root(log(uniform<V>(words.w[0])) * -2.f) * cos_2pi(uniform<V>(words.w[1]));
  const V y = x / square_root(d * 9.f);
  const V bound = d * 3.f * log1p_remainder(y);
  const auto accepted = (y > splat<V>(-1.f)) & (log(uniform<V>(words.w[2])) < bound);
  return {y, static_cast<decltype(V{} < V{})>(accepted)};
}

// log(share / prior share), where it is log(1 + change); the change rounds badly near -1.
template <class V>
S2E_HD V log_share(V share, V change, float log_prior) {
  const auto far = change < splat<V>(-0.5f);
  V y = log1p(change);
  if (any_lane(far)) y = select<V>(far, log(share) - log_prior, y);
  return y;
}

// KL(Beta(a, b) || prior). Stirling's leading terms cancel on paper, and what is of the order of p and q near the prior.
template <class V>
S2E_HD V beta_divergence(V a, V b, const BetaPrior& prior) {
  const float p = prior.p, q = prior.q;
  const V n = a + b;
  const V excess = (a * q - b * p) / n;
  const V share_a = log_share(a / n, excess / p, prior.log_r), share_b = log_share(b / n, excess / -q, prior.log_1r);
  const GammaTails<V> ta = gamma_tails(a), tb = gamma_tails(b), tn = gamma_tails(n);
  const V normaliser = log(a * (b / n)) * 0.5f + (tn.lgamma - ta.lgamma - tb.lgamma) + prior.constant;
  return normaliser - share_a * p - share_b * q + (a - p) * (tn.digamma - ta.digamma) + (b - q) * (tn.digamma - tb.digamma);
}

template <class V>
struct ByConcentration {
  V alpha, beta;
};

// Its derivatives by a and b.
template <class V>
S2E_HD ByConcentration<V> beta_divergence_gradient(V a, V b, const BetaPrior& prior) {
  const float p = prior.p, q = prior.q;
  const V one = splat<V>(1.f), n = a + b;
  const V ia = one / a, ib = one / b, in = one / n;
  const V ra = trigamma_rest(a), rb = trigamma_rest(b), rn = trigamma_rest(n);
  const V half = in * 0.5f;
  // (p + q) trigamma(n) - p trigamma(a), trigamma(x) = (1 + 1 / (2 x) + rest) / x, with the ones taken together; likewise of b
  const V balance = (a * q - b * p) * in, shared = in * (half + rn) * (p + q);
  return {b * ia * half + (ra - rn) + (balance * ia + (shared - ia * (ia * 0.5f + ra) * p)),
          a * ib * half + (rb - rn) + (shared - ib * (ib * 0.5f + rb) * q - balance * ib)};
}

constexpr float DECAY = 14.f;  // the integrals end where their weight is about e^-DECAY

// m = 1 / (1 + e^-z), 1 - m and their logarithms.
template <class V>
struct Shares {
  V m, q, log_m, log_q;
};
template <class V>
S2E_HD Shares<V> shares(V z) {
  const V zero = splat<V>(0.f);
  const auto low = z < zero;
  const V far = select<V>(low, z, -z);  // -|z|
  const V e = select<V>(far < splat<V>(-87.f), zero, exp_clamped(far));
  const V larger = splat<V>(1.f) / (e + 1.f), log_larger = -log1p(e);
  return {select<V>(low, e * larger, larger), select<V>(low, larger, e * larger), select<V>(low, far + log_larger, log_larger),
          select<V>(low, log_larger, far + log_larger)};
}

// The length of the integrals below: where their exponent reaches about DECAY.
template <class V>
S2E_HD V decay_length(V a, V b, const Shares<V>& x) {
  const V slope = a * x.q - b * x.m, curvature = (a + b) * x.m * x.q;
  const V gaussian = splat<V>(2.f * DECAY) / (slope + square_root(slope * slope + curvature * (2.f * DECAY)));
  const V k = minimum((b * minimum(-x.log_q, gaussian) + DECAY) / a, splat<V>(60.f));
  return minimum(gaussian, log1p(expm1(k) / x.q));
}

// dm/dalpha and dm/dbeta of a draw m ~ Beta(alpha, beta) with logit z: -(dF/dalpha) / p(m), F its distribution function.
// Integrates over the tail in which z lies, in logit coordinates, two steps up the recurrence in the tail's exponent.
template <class V>
S2E_HD ByConcentration<V> sample_gradient(V alpha, V beta, V z) {
  constexpr int NODES = 14;  // Gauss and Legendre on (0, 1)
  constexpr float NODE[NODES] = {6.858095652e-03f, 3.578255817e-02f, 8.639934247e-02f, 1.563535476e-01f, 2.423756818e-01f,
                                 3.404438155e-01f, 4.459725256e-01f, 5.540274744e-01f, 6.595561845e-01f, 7.576243182e-01f,
                                 8.436464524e-01f, 9.136006575e-01f, 9.642174418e-01f, 9.931419043e-01f};
  constexpr float WEIGHT[NODES] = {1.755973017e-02f, 4.007904358e-02f, 6.075928534e-02f, 7.860158358e-02f, 9.276919874e-02f,
                                   1.025992319e-01f, 1.076319267e-01f, 1.076319267e-01f, 1.025992319e-01f, 9.276919874e-02f,
                                   7.860158358e-02f, 6.075928534e-02f, 4.007904358e-02f, 1.755973017e-02f};
  const V zero = splat<V>(0.f), one = splat<V>(1.f);
  V offset = minimum((alpha - beta) / (alpha * beta), splat<V>(5.f));
  offset = select<V>(offset < splat<V>(-5.f), splat<V>(-5.f), offset);
  const auto left = !(z > log((alpha + 0.5f) / (beta + 0.5f)) + offset);
  const V a = select<V>(left, alpha, beta), b = select<V>(left, beta, alpha), s = select<V>(left, z, -z);

  // going down by t from s, log m loses k and log(1 - m) loses l: from whichever of m and 1 - m is small
  const Shares<V> x = shares(s);
  const auto low = s < zero;
  const V a2 = a + 2.f, length = decay_length(a2, b, x), share = select<V>(low, x.m, x.q);
  const V low_length = select<V>(low, length, zero), high_length = select<V>(low, zero, length);
  const V t_step = high_length - low_length, exponent_step = a2 * low_length - b * high_length;
  V sum = zero, sum_t = zero, sum_change = zero;
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int i = 0; i < NODES; ++i) {
    const V change = log1p(share * expm1(t_step * NODE[i]));  // k = change + low_length NODE, l = change - high_length NODE
    const V weight = exp2_product((a2 + b) * change + exponent_step * NODE[i], splat<V>(-LOG2E)) * WEIGHT[i];
    sum += weight;
    sum_t += weight * NODE[i];
    sum_change += weight * change;
  }
  const V sum_k = sum_change + low_length * sum_t, sum_l = sum_change - high_length * sum_t;

  const V n = a + b, n1 = n + 1.f, a1 = a + 1.f;
  const V by_aa1 = one / (a * a1), by_nn1 = one / (n * n1);
  const V ia = a1 * by_aa1, ia1 = a * by_aa1, in = n1 * by_nn1, in1 = n * by_nn1;
  V above_a = digamma_step(a2, b) + x.log_m;        // digamma(a + 2 + b) - digamma(a + 2) + log m
  const V above_b = digamma_step(b, a) + x.log_q;   // digamma(a + b) - digamma(b) + log(1 - m)
  V by_a = length * (sum_k - above_a * sum);
  V by_b = length * (sum_l - (above_b + in + in1) * sum);
  by_a = (x.m * n1 * by_a + (in1 - above_a)) * ia1;
  by_b = (x.m * n1 * by_b - (above_b + in)) * ia1;
  above_a += b * in1 * ia1;
  by_a = (x.m * n * by_a + (in - above_a)) * ia;
  by_b = (x.m * n * by_b - above_b) * ia;
  const V slope = x.m * x.q;  // dm/dz
  return {select<V>(left, by_a, -by_b) * slope, select<V>(left, by_b, -by_a) * slope};
}

}  // namespace
}  // namespace seq2exp
