// The mask of a block of positions: concentrations, sample, divergence from the prior, and their gradients. Included once
// per instruction set, after WIDTH is defined. See kernels/beta_mask/README.md.
#pragma once
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "beta_mask/cpu/mask.h"
#include "beta_mask/cpu/planes.h"
#include "common/beta.h"

namespace seq2exp {
namespace {

template <>
struct WideMultiply<Uint> {
  static S2E_HD void apply(Uint x, uint32_t m, Uint& high, Uint& low) {
#if defined(__AVX512F__)
    const __m512i v = reinterpret_cast<__m512i>(x), factor = _mm512_set1_epi32(static_cast<int>(m));
    const __m512i even = _mm512_maskz_mul_epu32(0xff, v, factor);
    const __m512i odd = _mm512_maskz_mul_epu32(0xff, _mm512_maskz_srli_epi64(0xff, v, 32), factor);
    high = reinterpret_cast<Uint>(_mm512_mask_blend_epi32(0xaaaa, _mm512_maskz_srli_epi64(0xff, even, 32), odd));
    low = reinterpret_cast<Uint>(_mm512_mask_blend_epi32(0xaaaa, even, _mm512_maskz_slli_epi64(0xff, odd, 32)));
#elif defined(__AVX2__)
    const __m256i v = reinterpret_cast<__m256i>(x), factor = _mm256_set1_epi32(static_cast<int>(m));
    const __m256i even = _mm256_mul_epu32(v, factor), odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), factor);
    high = reinterpret_cast<Uint>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa));
    low = reinterpret_cast<Uint>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa));
#else
    for (int i = 0; i < WIDTH; ++i) {
      const uint64_t product = static_cast<uint64_t>(x[i]) * m;
      high[i] = static_cast<uint32_t>(product >> 32);
      low[i] = static_cast<uint32_t>(product);
    }
#endif
  }
};

// A block of a row.
struct Block {
  int64_t index, row, start, size;
};

S2E_INLINE Block block(const MaskArgs& a, int64_t index) {
  const int64_t row = index / a.blocks, start = index % a.blocks * MASK_BLOCK;
  return {index, row, start, a.length - start < MASK_BLOCK ? a.length - start : MASK_BLOCK};
}

// Scratch: planes of MASK_BLOCK floats.
struct Planes {
  float *alpha, *beta, *select, *reject, *draw_alpha, *draw_beta, *values, *pending, *track;
  explicit Planes(float* p)
      : alpha(p), beta(p + MASK_BLOCK), select(p + 2 * MASK_BLOCK), reject(p + 3 * MASK_BLOCK), draw_alpha(p + 4 * MASK_BLOCK),
        draw_beta(p + 5 * MASK_BLOCK), values(p + 6 * MASK_BLOCK), pending(p + 7 * MASK_BLOCK), track(p + 8 * MASK_BLOCK) {}
};

constexpr int64_t SCRATCH = 9 * MASK_BLOCK;


// Sum and minimum of n floats, in an order that depends on nothing else.
S2E_INLINE double sum_of(const float* p, int64_t n) {
  double partial[8] = {}, sum = 0;
  int64_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (int i = 0; i < 8; ++i) partial[i] += p[j + i];
  for (; j < n; ++j) partial[0] += p[j];
  for (double s : partial) sum += s;
  return sum;
}
S2E_INLINE float smallest(Vec lowest) {
  float low = lowest[0];
  for (int i = 1; i < WIDTH; ++i) low = lowest[i] < low ? lowest[i] : low;
  return low;
}

// alpha and beta of the block, and the smallest signal, alpha, beta.
S2E_INLINE void concentrations(const MaskArgs& a, const Block& k, const Planes& p) {
  read_plane(p.reject, a.logits, k.row, 0, k.start, k.size);
  read_plane(p.select, a.logits, k.row, 1, k.start, k.size);
  for (int64_t j = 0; j < k.size; j += WIDTH) store(p.alpha + j, Vec{});
  Vec low_signal = splat<Vec>(__builtin_inff()), low_alpha = low_signal, low_beta = low_signal;
  Int bad = Int{};
  for (int64_t i = 0; i < a.tracks; ++i) {
    read_plane(p.track, a.signals, k.row, i, k.start, k.size);
    for (int64_t j = 0; j < k.size; j += WIDTH) {
      const Vec s = load(p.track + j);
      bad |= (s - s != 0.f);
      low_signal = minimum(s, low_signal);
      store(p.alpha + j, load(p.alpha + j) + (s * a.signal_scale + a.track_shift) * a.weights[i]);
    }
  }
  for (int64_t j = 0; j < k.size; j += WIDTH) {
    const Vec alpha = (softplus(load(p.select + j)) + a.minimum + load(p.alpha + j)) * a.z_scale;
    const Vec beta = (softplus(load(p.reject + j)) + a.minimum + a.beta_signals) * a.z_scale;
    low_alpha = minimum(alpha, low_alpha);
    low_beta = minimum(beta, low_beta);
    store(p.alpha + j, alpha);
    store(p.beta + j, beta);
  }
  float* lowest = a.lowest + k.index * 3;
  lowest[0] = any(bad) ? __builtin_nanf("") : smallest(low_signal);
  lowest[1] = smallest(low_alpha);
  lowest[2] = smallest(low_beta);
}

S2E_INLINE Vec boosted(Vec concentration) {
  return select<Vec>(concentration < splat<Vec>(1.f), concentration + 1.f, concentration);
}

S2E_INLINE Words<Uint> draw_words(const MaskArgs& a, const Block& k, Uint position, uint32_t draw) {
  const uint64_t row = static_cast<uint64_t>(a.rows[k.row]);
  const Uint none = Uint{};
  return philox<Uint>({{position, none + static_cast<uint32_t>(row), none + static_cast<uint32_t>(row >> 32), none + draw}}, a.key[0],
                      a.key[1]);
}

// out = log(G / d), G ~ Gamma(concentration), d = boosted concentration - 1/3. First every position tries once; those that
// were rejected try again in vectors of their own. A concentration that is not finite, or not positive, gives NaN: no
// attempt would ever be accepted.
S2E_INLINE void log_gamma_draws(const MaskArgs& a, const Block& k, const float* concentration, uint32_t stream, float* out,
                                int32_t* pending) {
  int64_t waiting = 0;
  for (int64_t j = 0; j < k.size; j += WIDTH) {
    const Vec c = load(concentration + j);
    Uint position;
    for (int i = 0; i < WIDTH; ++i) position[i] = static_cast<uint32_t>(k.start + j + i);
    const Words<Uint> words = draw_words(a, k, position, stream);
    const GammaAttempt<Vec> attempt = gamma_attempt<Vec>(boosted(c) - 1.f / 3, words);
    const Int small = c < 1.f, finite = (c - c == 0.f) & (c > 0.f), accepted = attempt.accepted | ~finite;
    Vec log_g = Vec{};
    if (any(small)) log_g = select<Vec>(small, seq2exp::log(uniform<Vec>(words.w[3])) / c, log_g);
    log_g += select<Vec>(accepted, seq2exp::log1p(attempt.y) * 3.f, Vec{});
    store(out + j, select<Vec>(finite, log_g, splat<Vec>(__builtin_nanf(""))));
    if (any(~accepted))
      for (int i = 0; i < WIDTH && j + i < k.size; ++i)
        if (!accepted[i]) pending[waiting++] = static_cast<int32_t>(j + i);
  }
  for (uint32_t draw = stream + 2; waiting; draw += 2) {
    int64_t rejected = 0;
    for (int64_t first = 0; first < waiting; first += WIDTH) {
      Vec c;
      Uint position;
      int32_t at[WIDTH];
      for (int i = 0; i < WIDTH; ++i) {
        at[i] = pending[first + i < waiting ? first + i : first];
        c[i] = concentration[at[i]];
        position[i] = static_cast<uint32_t>(k.start + at[i]);
      }
      const GammaAttempt<Vec> attempt = gamma_attempt<Vec>(boosted(c) - 1.f / 3, draw_words(a, k, position, draw));
      const Vec step = seq2exp::log1p(attempt.y) * 3.f;
      for (int i = 0; i < WIDTH && first + i < waiting; ++i) {
        if (attempt.accepted[i]) out[at[i]] += step[i];
        else pending[rejected++] = at[i];
      }
    }
    waiting = rejected;
  }
}

void copy(float* to, const float* from, int64_t n) { memcpy(to, from, sizeof(float) * n); }

void forward(const MaskArgs& a, int64_t begin, int64_t end, float* memory) {
  const Planes p(memory);
  for (int64_t index = begin; index < end; ++index) {
    const Block k = block(a, index);
    concentrations(a, k, p);
    if (a.sample) {
      log_gamma_draws(a, k, p.alpha, 0, p.draw_alpha, reinterpret_cast<int32_t*>(p.pending));
      log_gamma_draws(a, k, p.beta, 1, p.draw_beta, reinterpret_cast<int32_t*>(p.pending));
    }
    for (int64_t j = 0; j < k.size; j += WIDTH) {
      const Vec alpha = load(p.alpha + j), beta = load(p.beta + j);
      if (a.sample) {
        const Vec ratio = seq2exp::log((boosted(alpha) - 1.f / 3) / (boosted(beta) - 1.f / 3));
        const Vec z = ratio + (load(p.draw_alpha + j) - load(p.draw_beta + j));
        store(p.draw_alpha + j, z);
        store(p.draw_beta + j, sigmoid(z));
      } else {
        store(p.draw_beta + j, alpha / (alpha + beta));
      }
      store(p.values + j, beta_divergence(alpha, beta, a.prior));
    }
    a.divergence[index] = sum_of(p.values, k.size);
    const int64_t at = k.row * a.length + k.start;
    copy(a.alpha + at, p.alpha, k.size);
    copy(a.beta + at, p.beta, k.size);
    copy(a.soft + at, p.draw_beta, k.size);
    if (a.sample) copy(a.logit + at, p.draw_alpha, k.size);
  }
}

// What the mask's gradient and that of the continuity leave at m.
S2E_INLINE float mask_gradient(const MaskArgs& a, int64_t at, bool last) {
  const uint8_t mark = a.marks[at];
  if (!(mark & MARK_OPEN)) return 0.f;
  const int step = (mark >> 1) - 1, next = last ? 0 : (a.marks[at + 1] >> 1) - 1;
  return (a.grad_mask ? a.grad_mask[at] : 0.f) + a.grad_continuity * static_cast<float>(step - next);
}

S2E_INLINE Vec load_part(const float* p, int64_t n) {  // the last lane repeated
  if (n >= WIDTH) return load(p);
  Vec v;
  for (int i = 0; i < WIDTH; ++i) v[i] = p[i < n ? i : n - 1];
  return v;
}

void backward(const MaskArgs& a, int64_t begin, int64_t end, float* memory) {
  const Planes p(memory);
  for (int64_t index = begin; index < end; ++index) {
    const Block k = block(a, index);
    const int64_t at = k.row * a.length + k.start;
    read_plane(p.reject, a.logits, k.row, 0, k.start, k.size);
    read_plane(p.select, a.logits, k.row, 1, k.start, k.size);
    for (int64_t j = 0; j < k.size; ++j) {
      const float soft = a.grad_soft ? a.grad_soft[at + j] : 0.f;
      p.values[j] = soft + mask_gradient(a, at + j, k.start + j + 1 == a.length);
    }
    for (int64_t j = k.size; j < whole_vectors(k.size); ++j) p.values[j] = 0.f;
    for (int64_t j = 0; j < k.size; j += WIDTH) {
      const int64_t left = k.size - j;
      const Vec alpha = load_part(a.alpha + at + j, left), beta = load_part(a.beta + at + j, left), grad_m = load(p.values + j);
      ByConcentration<Vec> dm;
      if (a.sample) {
        dm = sample_gradient(alpha, beta, load_part(a.logit + at + j, left));
      } else {
        const Vec inverse = splat<Vec>(1.f) / (alpha + beta);
        dm = {beta * inverse * inverse, -alpha * inverse * inverse};
      }
      Vec by_alpha = grad_m * dm.alpha, by_beta = grad_m * dm.beta;
      if (a.grad_divergence != 0.f) {
        const ByConcentration<Vec> kl = beta_divergence_gradient(alpha, beta, a.prior);
        by_alpha += kl.alpha * a.grad_divergence;
        by_beta += kl.beta * a.grad_divergence;
      }
      if (a.grad_alpha) by_alpha += load_part(a.grad_alpha + at + j, left);
      if (a.grad_beta) by_beta += load_part(a.grad_beta + at + j, left);
      by_alpha *= a.z_scale;
      by_beta *= a.z_scale;
      store(p.alpha + j, by_alpha);
      store(p.beta + j, by_beta);
      store(p.select + j, by_alpha * sigmoid(load(p.select + j)));
      store(p.reject + j, by_beta * sigmoid(load(p.reject + j)));
    }
    write_plane(p.reject, a.grad_logits, k.row, 0, k.start, k.size);
    write_plane(p.select, a.grad_logits, k.row, 1, k.start, k.size);
    double* sums = a.sums + index * (a.tracks + 2);
    sums[a.tracks] = sum_of(p.alpha, k.size);
    sums[a.tracks + 1] = sum_of(p.beta, k.size);
    for (int64_t i = 0; i < a.tracks; ++i) {
      if (a.signals.data) {
        read_plane(p.track, a.signals, k.row, i, k.start, k.size);
        for (int64_t j = 0; j < k.size; j += WIDTH) store(p.values + j, load(p.track + j) * load(p.alpha + j));
        sums[i] = sum_of(p.values, k.size);
      }
      if (a.grad_signals.data) {
        const float factor = a.weights[i] * a.signal_scale;
        for (int64_t j = 0; j < k.size; j += WIDTH) store(p.track + j, load(p.alpha + j) * factor);
        write_plane(p.track, a.grad_signals, k.row, i, k.start, k.size);
      }
    }
  }
}

}  // namespace
}  // namespace seq2exp
