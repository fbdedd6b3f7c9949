// Vectors of WIDTH floats by GCC vector extensions, in memory of any storage type. Included once per instruction set, after
// WIDTH is defined.
#pragma once
#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

#include "common/math.h"
#include "common/strided.h"

namespace seq2exp {
namespace {

typedef float Vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Int __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Uint __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Half __attribute__((vector_size(2 * WIDTH)));
typedef float VecAny __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t HalfAny __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));

#define S2E_INLINE inline __attribute__((always_inline))

S2E_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecAny*>(p); }
S2E_INLINE void store(float* p, Vec x) { *reinterpret_cast<VecAny*>(p) = x; }

S2E_INLINE Vec absolute(Vec x) { return bit_cast<Vec>(bit_cast<Int>(x) & 0x7fffffff); }

// 2^(a b); EXP2_LIMITED: only where |a b| <= EXP2_LIMIT.
#ifdef __AVX512DQ__
constexpr bool EXP2_LIMITED = false;
S2E_INLINE Vec exp2_fast(Vec a, Vec b) {
  const __m512 x = a * b, f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);  // x - round(x); 0 for infinities
  return _mm512_maskz_scalef_ps(0xffff, exp2_fraction<Vec>(f), x - f);
}
#else
constexpr bool EXP2_LIMITED = true;
S2E_INLINE Vec exp2_fast(Vec a, Vec b) { return exp2_product(a, b); }
#endif

S2E_INLINE bool any(Int mask) {
  int32_t lanes[WIDTH], all = 0;
  memcpy(lanes, &mask, sizeof(mask));
  for (int i = 0; i < WIDTH; ++i) all |= lanes[i];
  return all != 0;
}

// Storage types. Conversions are bit arithmetic, so they need no instruction beyond the integer ones.
template <Storage S>
S2E_INLINE Vec widen(Half x);
template <>
S2E_INLINE Vec widen<Storage::bfloat16>(Half x) {
  return bit_cast<Vec>(__builtin_convertvector(x, Uint) << 16);
}
template <>
S2E_INLINE Vec widen<Storage::float16>(Half x) {
  const Uint h = __builtin_convertvector(x, Uint);
  const Vec scaled = bit_cast<Vec>((h & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112: moves the exponent bias
  const Uint special = (h & 0x7c00) == 0x7c00 ? Uint{} + 0x7f800000u : Uint{};
  return bit_cast<Vec>(bit_cast<Uint>(scaled) | special | ((h & 0x8000) << 16));
}

template <Storage S>
S2E_INLINE Half narrow(Vec x);
template <>
S2E_INLINE Half narrow<Storage::bfloat16>(Vec x) {
  const Uint b = bit_cast<Uint>(x);
  const Uint rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  return __builtin_convertvector(x == x ? rounded : Uint{} + 0x7fc0u, Half);
}
template <>
S2E_INLINE Half narrow<Storage::float16>(Vec x) {
  const Uint bits = bit_cast<Uint>(x), sign = (bits >> 16) & 0x8000, b = bits & 0x7fffffff;
  const Uint normal = (b - (112u << 23) + 0xfff + ((b >> 13) & 1)) >> 13;
  const Uint subnormal = bit_cast<Uint>(bit_cast<Vec>(b) + 0.5f) - 0x3f000000u;  // the addition rounds
  Uint h = b < (113u << 23) ? subnormal : normal;
  h = b >= 0x477ff000u ? Uint{} + 0x7c00u : h;  // from 65520 on: infinity
  h = b > 0x7f800000u ? Uint{} + 0x7e00u : h;
  return __builtin_convertvector(h | sign, Half);
}

template <Storage S>
struct Memory {  // 16-bit types
  typedef uint16_t Element;
  static S2E_INLINE Vec load(const Element* p) { return widen<S>(Half(*reinterpret_cast<const HalfAny*>(p))); }
  static S2E_INLINE void store(Element* p, Vec x) { *reinterpret_cast<HalfAny*>(p) = narrow<S>(x); }
};
template <>
struct Memory<Storage::float32> {
  typedef float Element;
  static S2E_INLINE Vec load(const Element* p) { return seq2exp::load(p); }
  static S2E_INLINE void store(Element* p, Vec x) { seq2exp::store(p, x); }
};

template <Storage S>
S2E_INLINE Vec load_some(const typename Memory<S>::Element* p, int64_t stride, int64_t n) {
#ifdef __AVX512BW__
  if (stride == 1) {
    if constexpr (S == Storage::float32) return _mm512_maskz_loadu_ps((1u << n) - 1, p);
    else return widen<S>(bit_cast<Half>(_mm256_maskz_loadu_epi16((1u << n) - 1, p)));
  }
#endif
  typename Memory<S>::Element lanes[WIDTH] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i * stride];
  return Memory<S>::load(lanes);
}
template <Storage S>
S2E_INLINE void store_some(typename Memory<S>::Element* p, int64_t stride, int64_t n, Vec x) {
  typename Memory<S>::Element lanes[WIDTH];
  Memory<S>::store(lanes, x);
  for (int64_t i = 0; i < n; ++i) p[i * stride] = lanes[i];
}

// Two-operand lane selection with compile-time indices.
template <int... I>
struct Index {};
template <int N, int... I>
struct MakeIndex : MakeIndex<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndex<0, I...> {
  typedef Index<I...> type;
};
#ifdef __clang__
#define S2E_SHUFFLE(a, b, EXPR) __builtin_shufflevector(a, b, (EXPR)...)
#else
#define S2E_SHUFFLE(a, b, EXPR) __builtin_shuffle(a, b, Int{(EXPR)...})
#endif
// One step of the transposition: exchanges the off-diagonal blocks of size S between rows a and b.
template <int S, int... I>
S2E_INLINE void exchange(Vec& a, Vec& b, Index<I...>) {
  const Vec low = S2E_SHUFFLE(a, b, (I & S) ? WIDTH + I - S : I);
  const Vec high = S2E_SHUFFLE(a, b, (I & S) ? WIDTH + I : I + S);
  a = low;
  b = high;
}
template <int S, int... I>
S2E_INLINE Vec rotate(Vec a, Index<I...>) {
  return S2E_SHUFFLE(a, a, (I + S) % WIDTH);
}
typedef MakeIndex<WIDTH>::type Lanes;

template <int S>
S2E_INLINE void transpose_steps(Vec* r) {
  if constexpr (S < WIDTH) {
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH; ++i)
      if (!(i & S)) exchange<S>(r[i], r[i + S], Lanes());
    transpose_steps<2 * S>(r);
  }
}
S2E_INLINE void transpose(Vec* rows) { transpose_steps<1>(rows); }

// Sums over the lanes of four vectors.
template <int S>
S2E_INLINE Vec fold(Vec x) {
  if constexpr (S >= 4) {
    return fold<S / 2>(x + rotate<S>(x, Lanes()));
  } else {
    return x;
  }
}
S2E_INLINE Quad sum_lanes(Vec a, Vec b, Vec c, Vec d) {
  exchange<1>(a, b, Lanes());
  exchange<1>(c, d, Lanes());
  Vec ab = a + b, cd = c + d;
  exchange<2>(ab, cd, Lanes());
  const Vec sums = fold<WIDTH / 2>(ab + cd);
  Quad q;
  memcpy(&q, &sums, sizeof(q));
  return q;
}

}  // namespace
}  // namespace seq2exp
