// Tiles: blocks of (time, WIDTH rows) read from and written to strided memory of any storage type.
#pragma once
#include "common/vector.h"

namespace seq2exp {
namespace {

// dst[t * ld + r] = src[r * row + t * time] for t < n, r < WIDTH; rows from `rows` on are zero. ld may be negative.
template <Storage S>
void read_rows(float* dst, int64_t ld, const typename Memory<S>::Element* src, int64_t row, int64_t time, int64_t rows,
               int64_t n) {
  if (time == 1 && n > 1) {
    for (int64_t t = 0; t < n; t += WIDTH) {
      Vec block[WIDTH];
      const int64_t m = n - t < WIDTH ? n - t : WIDTH;
      if (m == WIDTH && rows == WIDTH) {
#pragma GCC unroll 16
        for (int r = 0; r < WIDTH; ++r) block[r] = Memory<S>::load(src + r * row + t);
      } else {
        for (int r = 0; r < WIDTH; ++r) {
          if (r >= rows) block[r] = Vec{};
          else block[r] = m == WIDTH ? Memory<S>::load(src + r * row + t) : load_some<S>(src + r * row + t, 1, m);
        }
      }
      transpose(block);
      for (int64_t i = 0; i < m; ++i) store(dst + (t + i) * ld, block[i]);
    }
  } else if (row == 1 && rows == WIDTH) {
    for (int64_t t = 0; t < n; ++t) store(dst + t * ld, Memory<S>::load(src + t * time));
  } else {
    for (int64_t t = 0; t < n; ++t) store(dst + t * ld, load_some<S>(src + t * time, row, rows));
  }
}

template <Storage S>
void write_rows(const float* src, int64_t ld, typename Memory<S>::Element* dst, int64_t row, int64_t time, int64_t rows,
                int64_t n) {
  if (time == 1 && n > 1) {
    for (int64_t t = 0; t < n; t += WIDTH) {
      Vec block[WIDTH];
      const int64_t m = n - t < WIDTH ? n - t : WIDTH;
      for (int64_t i = 0; i < WIDTH; ++i) block[i] = i < m ? load(src + (t + i) * ld) : Vec{};
      transpose(block);
      if (m == WIDTH && rows == WIDTH) {
#pragma GCC unroll 16
        for (int r = 0; r < WIDTH; ++r) Memory<S>::store(dst + r * row + t, block[r]);
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          if (m == WIDTH) Memory<S>::store(dst + r * row + t, block[r]);
          else store_some<S>(dst + r * row + t, 1, m, block[r]);
        }
      }
    }
  } else if (row == 1 && rows == WIDTH) {
    for (int64_t t = 0; t < n; ++t) Memory<S>::store(dst + t * time, load(src + t * ld));
  } else {
    for (int64_t t = 0; t < n; ++t) store_some<S>(dst + t * time, row, rows, load(src + t * ld));
  }
}

template <Storage S>
typename Memory<S>::Element* address(const Strided& x, int64_t b, int64_t g, int64_t r, int64_t t) {
  return static_cast<typename Memory<S>::Element*>(x.data) + b * x.batch + g * x.group + r * x.row + t * x.time;
}

// The tile of positions [k, k + n) and rows [r, r + rows) of batch row b, group g; dst[i * ld + lane] in scan order.
void read_tile(float* dst, int64_t ld, const Strided& x, int64_t b, int64_t g, int64_t r, int64_t rows, int64_t k,
               int64_t n, int64_t length, bool reverse) {
  const int64_t t = reverse ? length - k - n : k;
  if (reverse) dst += (n - 1) * ld, ld = -ld;
  switch (x.storage) {
    case Storage::float32:
      return read_rows<Storage::float32>(dst, ld, address<Storage::float32>(x, b, g, r, t), x.row, x.time, rows, n);
    case Storage::bfloat16:
      return read_rows<Storage::bfloat16>(dst, ld, address<Storage::bfloat16>(x, b, g, r, t), x.row, x.time, rows, n);
    case Storage::float16:
      return read_rows<Storage::float16>(dst, ld, address<Storage::float16>(x, b, g, r, t), x.row, x.time, rows, n);
  }
}

void write_tile(const float* src, int64_t ld, const Strided& x, int64_t b, int64_t g, int64_t r, int64_t rows, int64_t k,
                int64_t n, int64_t length, bool reverse) {
  const int64_t t = reverse ? length - k - n : k;
  if (reverse) src += (n - 1) * ld, ld = -ld;
  switch (x.storage) {
    case Storage::float32:
      return write_rows<Storage::float32>(src, ld, address<Storage::float32>(x, b, g, r, t), x.row, x.time, rows, n);
    case Storage::bfloat16:
      return write_rows<Storage::bfloat16>(src, ld, address<Storage::bfloat16>(x, b, g, r, t), x.row, x.time, rows, n);
    case Storage::float16:
      return write_rows<Storage::float16>(src, ld, address<Storage::float16>(x, b, g, r, t), x.row, x.time, rows, n);
  }
}

}  // namespace
}  // namespace seq2exp
