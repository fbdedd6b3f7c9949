// Memory of new tensors.
#pragma once
#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace seq2exp {
namespace {

// Fresh large tensors on 2 MiB pages: first touch by 4 KiB pages takes longer than the kernels' own writes.
inline torch::stable::Tensor on_huge_pages(torch::stable::Tensor x) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 2 << 20;
  const auto data = reinterpret_cast<uintptr_t>(x.data_ptr());
  const uintptr_t begin = (data + page - 1) / page * page, end = (data + x.numel() * x.element_size()) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: failure changes nothing
#endif
  return x;
}

}  // namespace
}  // namespace seq2exp
