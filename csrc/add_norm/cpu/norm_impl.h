// Residual add, RMSNorm and gate, row by row: a row is read from memory once, and again from the cache. Included once per
// instruction set, after WIDTH is defined. See kernels/add_norm/README.md.
#pragma once
#include "add_norm/cpu/norm.h"
#include "common/rows.h"

namespace seq2exp {
namespace {

// x as it will be read back.
template <Storage S>
S2E_INLINE Vec rounded(Vec x) {
  if constexpr (S == Storage::float32) {
    return x;
  } else {
    return widen<S>(narrow<S>(x));
  }
}

template <Storage S>
S2E_INLINE Element<S>* row_of(const NormRows& x, int64_t row) {
  return x.data ? static_cast<Element<S>*>(x.data) + row * x.stride : nullptr;
}

S2E_INLINE float scale_of(float squares, const NormArgs& a) {
  return 1.f / __builtin_sqrtf(squares / static_cast<float>(a.dim) + a.epsilon);
}

template <Storage X, Storage R>
void forward_rows(const NormArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const auto *x = row_of<X>(a.x, row);
    const auto *residual = row_of<R>(a.residual, row);
    auto *r = row_of<R>(a.r, row);
    auto *h = row_of<X>(a.h, row);
    Vec squares = {};
    each_vector(a.dim, [&](int64_t i, int64_t n) {
      Vec v;
      if (residual) {
        v = rounded<R>(read<R>(residual + i, n) + read<X>(x + i, n));
        write<R>(r + i, n, v);
      } else {
        v = read<R>(r + i, n);
      }
      squares += v * v;
    });
    const float s = scale_of(sum_of(squares), a) * (a.gate ? a.gate[row] : 1.f);
    each_vector(a.dim, [&](int64_t i, int64_t n) { write<X>(h + i, n, read<R>(r + i, n) * s * read_floats(a.weight + i, n)); });
  }
}

template <Storage X, Storage R>
void backward_row(const NormArgs& a, int64_t row, float* dweight) {
  const auto *grad = row_of<X>(a.grad, row);
  const auto *grad_residual = row_of<R>(a.grad_residual, row), *r = row_of<R>(a.r, row);
  auto *dr = row_of<R>(a.dr, row);
  Vec squares = {}, products = {};
  each_vector(a.dim, [&](int64_t i, int64_t n) {
    const Vec v = read<R>(r + i, n);
    squares += v * v;
    products += read<X>(grad + i, n) * read_floats(a.weight + i, n) * v;
  });
  const float s = scale_of(sum_of(squares), a), product = sum_of(products);  // of r and the gradient of the ungated row
  const float sg = a.gate ? s * a.gate[row] : s;
  const float back = sg * s * s * (product / static_cast<float>(a.dim));
  if (a.dgate) a.dgate[row] = s * product;
  each_vector(a.dim, [&](int64_t i, int64_t n) {
    const Vec v = read<R>(r + i, n), dh = read<X>(grad + i, n) * sg;
    Vec d = dh * read_floats(a.weight + i, n) - v * back;
    if (grad_residual) d += read<R>(grad_residual + i, n);
    write<R>(dr + i, n, d);
    write_floats(dweight + i, n, read_floats(dweight + i, n) + dh * v);
  });
}

template <Storage X, Storage R>
void backward_parts(const NormArgs& a, int64_t begin, int64_t end) {
  for (int64_t part = begin; part < end; ++part) {
    float* dweight = a.dweight + part * a.dim;
    for (int64_t i = 0; i < a.dim; ++i) dweight[i] = 0.f;
    const int64_t last = (part + 1) * a.part < a.rows ? (part + 1) * a.part : a.rows;
    for (int64_t row = part * a.part; row < last; ++row) backward_row<X, R>(a, row, dweight);
  }
}

// Calls f with the storage types of x and r as constants.
template <class F>
void with_storages(Storage x, Storage r, F f) {
  with_storage(x, [&](auto of_x) { with_storage(r, [&](auto of_r) { f(of_x, of_r); }); });
}

void forward(const NormArgs& a, int64_t begin, int64_t end) {
  with_storages(a.x.storage, a.r.storage, [&](auto x, auto r) { forward_rows<x.value, r.value>(a, begin, end); });
}

void backward(const NormArgs& a, int64_t begin, int64_t end) {
  with_storages(a.grad.storage, a.r.storage, [&](auto x, auto r) { backward_parts<x.value, r.value>(a, begin, end); });
}

}  // namespace
}  // namespace seq2exp
