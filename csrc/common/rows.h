// Rows of channels, vector by vector, in memory of any storage type. Included once per instruction set, after WIDTH is
// defined.
#pragma once
#include "common/vector.h"

namespace seq2exp {
namespace {

// f(channel, lanes) for vectors of channels; inlined, so that `lanes` is a constant in all but the last.
template <class F>
S2E_INLINE void each_vector(int64_t dim, F f) {
  int64_t i = 0;
  for (; i + WIDTH <= dim; i += WIDTH) f(i, WIDTH);
  if (i < dim) f(i, dim - i);
}

template <Storage S>
using Element = typename Memory<S>::Element;

template <Storage S>
S2E_INLINE Vec read(const Element<S>* p, int64_t lanes) {
  return lanes == WIDTH ? Memory<S>::load(p) : load_some<S>(p, 1, lanes);
}

template <Storage S>
S2E_INLINE void write(Element<S>* p, int64_t lanes, Vec x) {
  if (lanes == WIDTH) {
    Memory<S>::store(p, x);
  } else {
    store_some<S>(p, 1, lanes, x);
  }
}

S2E_INLINE Vec read_floats(const float* p, int64_t lanes) { return read<Storage::float32>(p, lanes); }
S2E_INLINE void write_floats(float* p, int64_t lanes, Vec x) { write<Storage::float32>(p, lanes, x); }

S2E_INLINE float sum_of(Vec x) {
  float lanes[WIDTH];
  store(lanes, x);
  for (int step = WIDTH / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}

template <Storage S>
struct Kind {
  static constexpr Storage value = S;
};

// Calls f with the storage type as a constant.
template <class F>
void with_storage(Storage s, F f) {
  switch (s) {
    case Storage::float32: return f(Kind<Storage::float32>());
    case Storage::bfloat16: return f(Kind<Storage::bfloat16>());
    case Storage::float16: return f(Kind<Storage::float16>());
  }
}

}  // namespace
}  // namespace seq2exp
