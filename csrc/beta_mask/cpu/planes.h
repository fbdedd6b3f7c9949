// Blocks of a (batch, L, channels) tensor of any storage type as planes of floats, one a channel. Included once per
// instruction set, after WIDTH is defined.
#pragma once
#include "beta_mask/cpu/mask.h"
#include "common/vector.h"

namespace seq2exp {
namespace {

S2E_INLINE int64_t whole_vectors(int64_t n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }

// plane[j] = channel c at position t + j of row b, j < n; the rest of the last vector repeats the last one.
template <Storage S>
void read_plane_as(float* plane, const Strided& x, int64_t b, int64_t c, int64_t t, int64_t n) {
  typename Memory<S>::Element lanes[MASK_BLOCK];
  const auto* p = static_cast<const typename Memory<S>::Element*>(x.data) + b * x.batch + c * x.row + t * x.time;
  if (x.time == 2) {  // the usual strides, known to the compiler
    for (int64_t j = 0; j < n; ++j) lanes[j] = p[j * 2];
  } else if (x.time == 3) {
    for (int64_t j = 0; j < n; ++j) lanes[j] = p[j * 3];
  } else {
    for (int64_t j = 0; j < n; ++j) lanes[j] = p[j * x.time];
  }
  for (int64_t j = n; j < whole_vectors(n); ++j) lanes[j] = lanes[n - 1];
  for (int64_t j = 0; j < n; j += WIDTH) store(plane + j, Memory<S>::load(lanes + j));
}

template <Storage S>
void write_plane_as(const float* plane, const Strided& x, int64_t b, int64_t c, int64_t t, int64_t n) {
  typename Memory<S>::Element lanes[MASK_BLOCK];
  for (int64_t j = 0; j < n; j += WIDTH) Memory<S>::store(lanes + j, load(plane + j));
  auto* p = static_cast<typename Memory<S>::Element*>(x.data) + b * x.batch + c * x.row + t * x.time;
  for (int64_t j = 0; j < n; ++j) p[j * x.time] = lanes[j];
}

inline void read_plane(float* plane, const Strided& x, int64_t b, int64_t c, int64_t t, int64_t n) {
  switch (x.storage) {
    case Storage::float32: return read_plane_as<Storage::float32>(plane, x, b, c, t, n);
    case Storage::bfloat16: return read_plane_as<Storage::bfloat16>(plane, x, b, c, t, n);
    case Storage::float16: return read_plane_as<Storage::float16>(plane, x, b, c, t, n);
  }
}

inline void write_plane(const float* plane, const Strided& x, int64_t b, int64_t c, int64_t t, int64_t n) {
  switch (x.storage) {
    case Storage::float32: return write_plane_as<Storage::float32>(plane, x, b, c, t, n);
    case Storage::bfloat16: return write_plane_as<Storage::bfloat16>(plane, x, b, c, t, n);
    case Storage::float16: return write_plane_as<Storage::float16>(plane, x, b, c, t, n);
  }
}

}  // namespace
}  // namespace seq2exp
