// What the build without CUDA says about CUDA; build_info.cu answers in the other.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

namespace {
std::vector<std::string> cuda_build() { return {}; }
std::vector<int64_t> cuda_versions() { return {}; }
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CompositeExplicitAutograd, m) {
  m.impl("cuda_build", TORCH_BOX(&cuda_build));
  m.impl("cuda_versions", TORCH_BOX(&cuda_versions));
}
