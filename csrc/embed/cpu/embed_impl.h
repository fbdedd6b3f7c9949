// The input of a model, base by base. Included once per instruction set, after WIDTH is defined. See
// kernels/embed/README.md.
#pragma once
#include "common/rows.h"
#include "embed/cpu/embed.h"

namespace seq2exp {
namespace {

// What one base brings; signals are read into scratch.
struct Base {
  int64_t code;
  float mask;
  const float *table, *position, *signals;  // position may be null
};

S2E_INLINE bool is_base(int64_t place, const EmbedArgs& a) { return place >= 0 && place < a.batch * a.length; }

template <Storage S>
void read_signals(const Strided& x, int64_t b, int64_t t, int64_t tracks, float* to) {
  const auto* from = static_cast<const Element<S>*>(x.data) + b * x.batch + t * x.time;
  for (int64_t i = 0; i < tracks; i += WIDTH) {
    const int64_t n = tracks - i < WIDTH ? tracks - i : WIDTH;
    store_some<Storage::float32>(to + i, 1, n, load_some<S>(from + i * x.row, x.row, n));
  }
}

Base base_at(const EmbedArgs& a, int64_t place, float* scratch) {
  int64_t code = a.codes[place];
  if (code >= CODES) code = CODES - 1;
  if (a.complement && code < 4) code = 3 - code;
  Base base{code, a.mask ? a.mask[place] : 1.f, a.table + code * a.dim, nullptr, scratch};
  if (!a.positions && !a.tracks) return base;
  const int64_t b = place / a.length, t = place - b * a.length;
  if (a.positions) base.position = a.positions + t * a.position_stride;
  if (a.tracks) with_storage(a.signals.storage, [&](auto s) { read_signals<s.value>(a.signals, b, t, a.tracks, scratch); });
  return base;
}

// The unmasked channels from i on.
S2E_INLINE Vec value(const EmbedArgs& a, const Base& base, int64_t i, int64_t n) {
  Vec v = read_floats(base.table + i, n);
  if (base.position) v += read_floats(base.position + i, n);
  for (int64_t k = 0; k < a.tracks; ++k) v += read_floats(a.weight + k * a.dim + i, n) * base.signals[k];
  return v;
}

template <Storage S>
void forward_rows(const EmbedArgs& a, int64_t begin, int64_t end, float* scratch) {
  for (int64_t row = begin; row < end; ++row) {
    auto* out = static_cast<Element<S>*>(a.data) + row * a.stride;
    const int64_t place = a.indices ? a.indices[row] : row;
    if (is_base(place, a)) {
      const Base base = base_at(a, place, scratch);
      each_vector(a.dim, [&](int64_t i, int64_t n) { write<S>(out + i, n, value(a, base, i, n) * base.mask); });
    } else {
      const Vec none = Vec{} + (place < 0 ? __builtin_nanf("") : 0.f);
      each_vector(a.dim, [&](int64_t i, int64_t n) { write<S>(out + i, n, none); });
    }
  }
}

S2E_INLINE void add(float* to, int64_t n, Vec x) { write_floats(to, n, read_floats(to, n) + x); }

// sums: of the part. dposition: of this base, may be null.
template <Storage S>
void backward_base(const EmbedArgs& a, int64_t row, int64_t place, float* sums, float* dposition, float* scratch) {
  const auto* grad = static_cast<const Element<S>*>(a.data) + row * a.stride;
  const Base base = base_at(a, place, scratch);
  float *const of_code = sums + base.code * a.dim, *const of_signals = sums + CODES * a.dim;
  Vec product = {};
  each_vector(a.dim, [&](int64_t i, int64_t n) {
    Vec g = read<S>(grad + i, n);
    if (a.dmask) product += g * value(a, base, i, n);
    g *= base.mask;
    add(of_code + i, n, g);
    for (int64_t k = 0; k < a.tracks; ++k) add(of_signals + k * a.dim + i, n, g * base.signals[k]);
    if (dposition) add(dposition + i, n, g);
  });
  if (a.dmask) a.dmask[place] = sum_of(product);
  for (int64_t k = 0; a.dsignals && k < a.tracks; ++k) {
    Vec sum = {};
    each_vector(a.dim, [&](int64_t i, int64_t n) { sum += read<S>(grad + i, n) * read_floats(a.weight + k * a.dim + i, n); });
    a.dsignals[place * a.tracks + k] = base.mask * sum_of(sum);
  }
}

// A position has a base in each row of the batch; without dpositions a unit is one row.
template <Storage S>
void backward_unit(const EmbedArgs& a, int64_t unit, float* sums, float* scratch) {
  if (!a.dpositions) {
    const int64_t place = a.indices ? a.indices[unit] : unit;
    if (is_base(place, a)) backward_base<S>(a, unit, place, sums, nullptr, scratch);
    return;
  }
  float* const dposition = a.dpositions + unit * a.dim;
  for (int64_t i = 0; i < a.dim; ++i) dposition[i] = 0.f;
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t place = b * a.length + unit, row = a.row_at ? a.row_at[place] : place;
    if (row >= 0) backward_base<S>(a, row, place, sums, dposition, scratch);
  }
}

template <Storage S>
void backward_parts(const EmbedArgs& a, int64_t begin, int64_t end, float* scratch) {
  const int64_t size = (CODES + a.tracks) * a.dim;
  for (int64_t part = begin; part < end; ++part) {
    float* const sums = a.sums + part * size;
    for (int64_t i = 0; i < size; ++i) sums[i] = 0.f;
    const int64_t last = (part + 1) * a.part < a.units ? (part + 1) * a.part : a.units;
    for (int64_t unit = part * a.part; unit < last; ++unit) backward_unit<S>(a, unit, sums, scratch);
  }
}

void forward(const EmbedArgs& a, int64_t begin, int64_t end, float* scratch) {
  with_storage(a.storage, [&](auto s) { forward_rows<s.value>(a, begin, end, scratch); });
}

void backward(const EmbedArgs& a, int64_t begin, int64_t end, float* scratch) {
  with_storage(a.storage, [&](auto s) { backward_parts<s.value>(a, begin, end, scratch); });
}

}  // namespace
}  // namespace seq2exp
