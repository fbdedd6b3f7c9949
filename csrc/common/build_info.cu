// What was compiled, and what the machine has.
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <vector>

namespace {

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

// Compiler version, then the architectures in the binary.
std::vector<std::string> cuda_build() {
  std::vector<std::string> build{TEXT(__CUDACC_VER_MAJOR__) "." TEXT(__CUDACC_VER_MINOR__) "." TEXT(__CUDACC_VER_BUILD__)};
  const std::string list = SEQ2EXP_CUDA_ARCHITECTURES;
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    build.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return build;
}

// Runtime (linked statically) and the newest CUDA the driver supports, as 1000 major + 10 minor; 0: no driver.
std::vector<int64_t> cuda_versions() {
  int runtime = 0, driver = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  return {runtime, driver};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CompositeExplicitAutograd, m) {
  m.impl("cuda_build", TORCH_BOX(&cuda_build));
  m.impl("cuda_versions", TORCH_BOX(&cuda_versions));
}
