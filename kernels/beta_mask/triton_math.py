"""The mathematics of csrc/common/{philox,special,beta}.h for Triton, line by line; see README.md. All is float32."""

from __future__ import annotations

import triton
import triton.language as tl

LN2_HI = tl.constexpr(0.693359375)  # few bits
LN2_LO = tl.constexpr(-2.12194440e-4)
LOG2E = tl.constexpr(1.44269504)
DECAY = tl.constexpr(14.0)
NODES = tl.constexpr(14)


@triton.jit
def _int(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _float(i):
    return i.to(tl.float32, bitcast=True)


@triton.jit
def uniform(word):
    """A word as the middle of one of 2^23 cells of (0, 1), exact."""
    return (_float(((word >> 9) | 0x3F800000).to(tl.int32, bitcast=True)) - 1.0) + 5.9604644775390625e-08


@triton.jit
def _log_of_parts(f, e):
    """log(1 + f) + e log 2 for sqrt(1/2) <= 1 + f <= sqrt(2)."""
    p = f * -7.623029184e-02 + 1.290558182e-01
    p = p * f - 1.324303376e-01
    p = p * f + 1.418162238e-01
    p = p * f - 1.660904771e-01
    p = p * f + 2.000198522e-01
    p = p * f - 2.500158530e-01
    p = p * f + 3.333332550e-01
    p = p * f - 4.999998831e-01
    return (f * f * p + e * LN2_LO + f) + e * LN2_HI


@triton.jit
def log(x):
    e = (_int(x) - 0x3F3504F3) >> 23
    return _log_of_parts(_float(_int(x) - (e << 23)) - 1.0, e.to(tl.float32))


@triton.jit
def log1p(x):
    e = (_int(x + 1.0) - 0x3F3504F3) >> 23
    scale = _float(0x3F800000 - (e << 23))
    return _log_of_parts(x * scale + (scale - 1.0), e.to(tl.float32))


@triton.jit
def _exp_parts(x):
    """e^x - 1 = part * scale + (scale - 1), scale a power of two; |x| < 88."""
    r = tl.floor(x * LOG2E + 0.5)
    f = (x - r * LN2_HI) - r * LN2_LO
    p = f * 1.984601042e-04 + 1.394062158e-03
    p = p * f + 8.333389113e-03
    p = p * f + 4.166636096e-02
    p = p * f + 1.666666637e-01
    p = p * f + 5.000000044e-01
    return f * f * p + f, _float((r.to(tl.int32) + 127) << 23)


@triton.jit
def expm1(x):
    part, scale = _exp_parts(x)
    return part * scale + (scale - 1.0)


@triton.jit
def exp(x):
    """0 below -87, at most e^87; NaN stays."""
    part, scale = _exp_parts(tl.minimum(tl.maximum(x, -87.0), 87.0))
    return tl.where(x < -87.0, 0.0, tl.where(x == x, part * scale + scale, x))


@triton.jit
def cos_2pi(u):
    half_turns = tl.floor(u * 2.0 + 0.5)
    r = u - half_turns * 0.5
    s = r * r
    p = s * -2.498223692e01 + 6.014401495e01
    p = p * s - 8.545357162e01
    p = p * s + 6.493934663e01
    p = p * s - 1.973920855e01
    p = p * s + 9.999999998e-01
    return tl.where((half_turns.to(tl.int32) & 1) == 1, -p, p)


@triton.jit
def shares(z):
    """m = 1 / (1 + e^-z), 1 - m and their logarithms."""
    far = -tl.abs(z)
    e = exp(far)
    larger = 1.0 / (e + 1.0)
    log_larger = -log1p(e)
    low = z < 0.0
    return (
        tl.where(low, e * larger, larger), tl.where(low, larger, e * larger),
        tl.where(low, far + log_larger, log_larger), tl.where(low, log_larger, far + log_larger),
    )  # fmt: skip


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p(exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    e = exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (e + 1.0)


# Gamma draws


@triton.jit
def _log1p_remainder(y):
    """log(1 + y) - (y - y^2/2 + y^3/3)"""
    p = y * -1.041069489e-01 + 1.112575583e-01
    p = p * y - 1.103883037e-01
    p = p * y + 1.245489166e-01
    p = p * y - 1.428719821e-01
    p = p * y + 1.666723776e-01
    p = p * y - 1.999999149e-01
    p = p * y + 2.499999888e-01
    s = y * y
    direct = log1p(y) - y * (y * (y * (1.0 / 3) - 0.5) + 1.0)
    return tl.where(s < 0.0625, -s * s * p, direct)


@triton.jit
def log_gamma_draw(concentration, position, row_low, row_high, seed, stream):
    """log(G / d), G ~ Gamma(concentration), d = boosted concentration - 1/3; NaN unless it is finite and positive."""
    finite = ((concentration - concentration) == 0.0) & (concentration > 0.0)
    small = concentration < 1.0
    d = tl.where(small, concentration + 1.0, concentration) - 1.0 / 3
    zero = position * 0  # counters: uint32, as wide as the block
    result = tl.where(finite, 0.0, float("nan"))
    waiting = finite
    draw = stream
    while tl.max(waiting.to(tl.int32), 0) > 0:
        w0, w1, w2, w3 = tl.philox(seed, position, row_low, row_high, draw + zero)
        x = tl.sqrt(log(uniform(w0)) * -2.0) * cos_2pi(uniform(w1))
        y = x / tl.sqrt(d * 9.0)
        inside = y > -1.0
        safe = tl.where(inside, y, 0.0)
        accepted = waiting & inside & (log(uniform(w2)) < d * 3.0 * _log1p_remainder(safe))
        if draw == stream:
            result += tl.where(small & finite, log(uniform(w3)) / concentration, 0.0)
        result += tl.where(accepted, log1p(safe) * 3.0, 0.0)
        waiting = waiting & (accepted == 0)
        draw += 2
    return result


# Divergence from the prior


@triton.jit
def _tails(x):
    """lgamma(x) and digamma(x) less Stirling's leading terms."""
    small = x < 4.0
    inverse = 1.0 / tl.where(small, x + 4.0, x)
    s = inverse * inverse
    lgamma = inverse * (1.0 / 12 - s * (1.0 / 360 - s * (1.0 / 1260 - s * (1.0 / 1680))))
    digamma = inverse * 0.5 + s * (1.0 / 12 - s * (1.0 / 120 - s * (1.0 / 252 - s * (1.0 / 240))))
    near = tl.where(small, x, 1.0)
    p = near * (near + 1.0)
    q = (near + 2.0) * (near + 3.0)
    reciprocals = ((near * 2.0 + 1.0) * q + (near * 2.0 + 5.0) * p) / (p * q)
    ix = 1.0 / near
    ratio = log1p(ix * 4.0)
    factors = log((ix + 1.0) * (ix * 2.0 + 1.0) * (ix * 3.0 + 1.0))
    lgamma += tl.where(small, (near + 3.5) * ratio - 4.0 - factors, 0.0)
    digamma += tl.where(small, reciprocals - ratio, 0.0)
    return lgamma, digamma


@triton.jit
def _log_share(share, change, log_prior):
    far = change < -0.5
    return tl.where(far, log(share) - log_prior, log1p(tl.where(far, 0.0, change)))


@triton.jit
def beta_divergence(a, b, p, q, log_r, log_1r, constant):
    n = a + b
    excess = (a * q - b * p) / n
    share_a = _log_share(a / n, excess / p, log_r)
    share_b = _log_share(b / n, -excess / q, log_1r)
    lgamma_a, digamma_a = _tails(a)
    lgamma_b, digamma_b = _tails(b)
    lgamma_n, digamma_n = _tails(n)
    normaliser = log(a * (b / n)) * 0.5 + (lgamma_n - lgamma_a - lgamma_b) + constant
    return (
        normaliser - share_a * p - share_b * q + (a - p) * (digamma_n - digamma_a) + (b - q) * (digamma_n - digamma_b)
    )


@triton.jit
def _trigamma_rest(x):
    """x trigamma(x) - 1 - 1 / (2 x)"""
    small = x < 4.0
    inverse = 1.0 / tl.where(small, x + 4.0, x)
    s = inverse * inverse
    t = s * (1.0 / 6 - s * (1.0 / 30 - s * (1.0 / 42 - s * (1.0 / 30))))
    i0 = 1.0 / x
    i1 = 1.0 / (x + 1.0)
    i2 = 1.0 / (x + 2.0)
    i3 = 1.0 / (x + 3.0)
    h = inverse * 0.5 + t
    return tl.where(small, x * (i1 * i1 + i2 * i2 + i3 * i3) + (h - inverse * 4.0 * (1.0 + h)) + i0 * 0.5, t)


@triton.jit
def beta_divergence_gradient(a, b, p, q):
    n = a + b
    ia = 1.0 / a
    ib = 1.0 / b
    inverse = 1.0 / n
    ra = _trigamma_rest(a)
    rb = _trigamma_rest(b)
    rn = _trigamma_rest(n)
    half = inverse * 0.5
    balance = (a * q - b * p) * inverse
    shared = inverse * (half + rn) * (p + q)
    by_a = b * ia * half + (ra - rn) + (balance * ia + (shared - ia * (ia * 0.5 + ra) * p))
    by_b = a * ib * half + (rb - rn) + (shared - ib * (ib * 0.5 + rb) * q - balance * ib)
    return by_a, by_b


# Gradient of a sample


@triton.jit
def _digamma_step(x, d):
    """digamma(x + d) - digamma(x)"""
    e = x + d
    y = x + 4.0
    f = e + 4.0
    p0 = x * e
    p1 = (x + 1.0) * (e + 1.0)
    p2 = (x + 2.0) * (e + 2.0)
    p3 = (x + 3.0) * (e + 3.0)
    steps = (p0 + p1) / (p0 * p1) + (p2 + p3) / (p2 * p3)
    both = 1.0 / (y * f)
    iy = f * both
    ie = y * both
    s = iy * iy
    r = ie * ie
    tail = s * (1.0 / 12 - s * (1.0 / 120 - s * (1.0 / 252))) - r * (1.0 / 12 - r * (1.0 / 120 - r * (1.0 / 252)))
    return (log1p(d * iy) + tail) + d * (steps + both * 0.5)


@triton.jit
def sample_gradient(alpha, beta, z, p_nodes):
    """dm/dalpha and dm/dbeta of a draw with logit z. p_nodes: (2, NODES), nodes and weights on (0, 1)."""
    offset = tl.minimum(tl.maximum((alpha - beta) / (alpha * beta), -5.0), 5.0)
    left = (z > log((alpha + 0.5) / (beta + 0.5)) + offset) == 0
    a = tl.where(left, alpha, beta)
    b = tl.where(left, beta, alpha)
    s = tl.where(left, z, -z)
    m, q, log_m, log_q = shares(s)
    low = s < 0.0
    a2 = a + 2.0

    slope = a2 * q - b * m
    curvature = (a2 + b) * m * q
    gaussian = 2.0 * DECAY / (slope + tl.sqrt(slope * slope + curvature * (2.0 * DECAY)))
    k = tl.minimum((b * tl.minimum(-log_q, gaussian) + DECAY) / a2, 60.0)
    length = tl.minimum(gaussian, log1p(expm1(k) / q))
    share = tl.where(low, m, q)
    low_length = tl.where(low, length, 0.0)
    high_length = length - low_length
    t_step = high_length - low_length
    exponent_step = a2 * low_length - b * high_length
    total = a * 0.0
    total_t = total
    total_change = total
    for i in range(NODES):
        node = tl.load(p_nodes + i)
        change = log1p(share * expm1(t_step * node))
        weight = exp(-((a2 + b) * change + exponent_step * node)) * tl.load(p_nodes + NODES + i)
        total += weight
        total_t += weight * node
        total_change += weight * change

    n = a + b
    n1 = n + 1.0
    a1 = a + 1.0
    by_aa1 = 1.0 / (a * a1)
    by_nn1 = 1.0 / (n * n1)
    ia = a1 * by_aa1
    ia1 = a * by_aa1
    inverse = n1 * by_nn1
    inverse1 = n * by_nn1
    above_a = _digamma_step(a2, b) + log_m
    above_b = _digamma_step(b, a) + log_q
    by_a = length * (total_change + low_length * total_t - above_a * total)
    by_b = length * (total_change - high_length * total_t - (above_b + inverse + inverse1) * total)
    by_a = (m * n1 * by_a + (inverse1 - above_a)) * ia1
    by_b = (m * n1 * by_b - (above_b + inverse)) * ia1
    above_a += b * inverse1 * ia1
    by_a = (m * n * by_a + (inverse - above_a)) * ia
    by_b = (m * n * by_b - above_b) * ia
    return tl.where(left, by_a, -by_b) * (m * q), tl.where(left, by_b, -by_a) * (m * q)
