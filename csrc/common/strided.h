// A tensor as the CPU kernels see it: plain data.
#pragma once
#include <stdint.h>

namespace seq2exp {

enum class Storage : int32_t { float32, bfloat16, float16 };

// (batch, rows, L) with any strides, counted in elements; rows are channels, or states of one B/C group.
struct Strided {
  void* data = nullptr;  // null: absent
  Storage storage = Storage::float32;
  int64_t batch = 0, group = 0, row = 0, time = 0;
};

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace seq2exp
