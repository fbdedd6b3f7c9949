// The torch side of the CPU kernels: strides, fresh memory, threads.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "common/pages.h"
#include "common/strided.h"

namespace seq2exp {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Storage storage(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Storage::float32;
    case ScalarType::BFloat16: return Storage::bfloat16;
    case ScalarType::Half: return Storage::float16;
    default: STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
  return Storage::float32;
}

// x: (batch, rows, L).
inline Strided strided(const Tensor& x, const char* name) {
  return {x.data_ptr(), storage(x, name), x.stride(0), 0, x.stride(1), x.stride(2)};
}

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
template <class T>
using Buffer = std::unique_ptr<T[], AlignedDelete>;
template <class T>
Buffer<T> allocate(int64_t n) {
  return Buffer<T>(static_cast<T*>(::operator new[](sizeof(T) * n, std::align_val_t(64))));
}
template <class T>
Buffer<T> zeros(int64_t n) {
  auto p = allocate<T>(n);
  std::fill_n(p.get(), n, T(0));
  return p;
}

inline Tensor fresh_like(const Tensor& x) { return on_huge_pages(torch::stable::empty_like(x)); }
inline Tensor fresh(const Tensor& like, std::vector<int64_t> shape, std::optional<ScalarType> dtype = std::nullopt) {
  return on_huge_pages(torch::stable::new_empty(like, shape, dtype));
}

// Splits [0, n) over the threads; each gets its own scratch, so many floats.
template <class F>
void parallel(int64_t n, int64_t scratch, F f) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    auto memory = allocate<float>(scratch);
    f(begin, end, memory.get());
  });
}

// First positions of the sequences in the order of the scan, then L.
inline std::vector<int64_t> sequence_starts(const std::optional<Tensor>& cu_seqlens, int64_t length, bool reverse) {
  std::vector<int64_t> starts{0, length};
  if (cu_seqlens) {
    const Tensor offsets = torch::stable::contiguous(*cu_seqlens);
    const auto* p = static_cast<const int64_t*>(offsets.data_ptr());
    starts.assign(p, p + offsets.numel());
    STD_TORCH_CHECK(starts.front() == 0 && starts.back() == length && std::is_sorted(starts.begin(), starts.end()),
                    "cu_seqlens must rise from 0 to L");
    if (reverse) {
      std::reverse(starts.begin(), starts.end());
      for (auto& s : starts) s = length - s;
    }
  }
  return starts;
}

}  // namespace
}  // namespace seq2exp
