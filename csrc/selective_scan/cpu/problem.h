// The arguments of a scan on the CPU, and how its kernels are run: allocation, threads, order of the sums. Shapes and
// dtypes are checked in ops.py; here only what would otherwise read out of bounds.
#pragma once
#include <numeric>

#include "common/cpu.h"
#include "common/cpu_tensors.h"
#include "selective_scan/cpu/scan.h"
#include "selective_scan/tensors.h"

namespace seq2exp {
namespace {

constexpr int64_t PARTIAL_BYTES = 4 << 20;  // bound on the partial sums of dB and dC: they should stay in the cache

inline const ScanKernels& scan_kernels() {
  switch (instruction_set()) {
#ifdef SEQ2EXP_X86
    case InstructionSet::avx512: return *scan_kernels_avx512();
    case InstructionSet::avx2: return *scan_kernels_avx2();
#endif
    default: return *scan_kernels_portable();
  }
}

// u, delta, z, add, out and their gradients: (batch, dim, L).
inline Strided channels(const Tensor& x, const ScanArgs& a, const char* name) {
  check_channels(x, a, name);
  return strided(x, name);
}

struct ScanProblem {
  ScanArgs a{};
  const ScanKernels& k = scan_kernels();
  std::vector<int64_t> starts;
  std::vector<Tensor> keep;  // tensors whose memory `a` points to
  int64_t vectors, padded;

  // All but delta (or low and dt_proj), B and C. Then `set_groups`.
  ScanProblem(const Tensor& u, const Tensor& A, const Optional& D, const Optional& z, const Optional& bias, bool softplus, bool reverse,
              const Optional& cu_seqlens) {
    STD_TORCH_CHECK(u.dim() == 3 && A.dim() == 2, "selective_scan: u must be (batch, dim, L), A (dim, state)");
    a.batch = u.size(0), a.dim = u.size(1), a.length = u.size(2), a.state = A.size(1);
    STD_TORCH_CHECK(u.numel() > 0 && a.state > 0, "selective_scan: empty input");
    a.softplus = softplus, a.reverse = reverse;
    a.u = channels(u, a, "u");
    if (z) a.z = channels(*z, a, "z");
    a.A = floats(A, a.dim * a.state, "A");
    if (D) a.D = floats(*D, a.dim, "D");
    if (bias) a.bias = floats(*bias, a.dim, "delta_bias");
    if (cu_seqlens) check_offsets(*cu_seqlens, a.batch);
    starts = sequence_starts(cu_seqlens, a.length, reverse);
    a.starts = starts.data();
    a.sequences = static_cast<int64_t>(starts.size()) - 1;
    set_groups(1, 1);
  }
  ScanProblem(const ScanProblem&) = delete;

  void set_groups(int64_t groups_b, int64_t groups_c) {
    a.groups_b = groups_b, a.groups_c = groups_c, a.groups = std::lcm(groups_b, groups_c);
    vectors = a.batch * a.groups * ceil_div(a.dim / a.groups, k.width);
    padded = ceil_div(a.state, 4) * 4;
  }

  const float* floats(const Tensor& x, int64_t numel, const char* name) {
    keep.push_back(dense_floats(x, numel, name));
    return static_cast<const float*>(keep.back().data_ptr());
  }

  std::vector<int64_t> states_shape() const { return {a.batch, ceil_div(a.length, SCAN_CHUNK), a.state, a.dim}; }

  void set_states(const Tensor& states) {  // saved by the forward
    a.states = const_cast<float*>(floats(states, a.batch * ceil_div(a.length, SCAN_CHUNK) * a.state * a.dim, "states"));
  }

  void forward() const {
    parallel(vectors, k.forward_scratch(a), [&](int64_t begin, int64_t end, float* scratch) { k.forward(a, begin, end, scratch); });
  }

  // Fills the gradients that `a` names, and dA (dim, state), dD (dim), dbias (dim); the last two where their input is present.
  void backward(float* dA, float* dD, float* dbias) {
    const int64_t bytes = vectors * padded * 2 * sizeof(float);  // of partial sums per position
    a.span = std::clamp(PARTIAL_BYTES / bytes / SCAN_CHUNK, int64_t(1), ceil_div(a.length, SCAN_CHUNK)) * SCAN_CHUNK;
    auto partial_b = allocate<float>(vectors * a.span * padded), partial_c = allocate<float>(vectors * a.span * padded);
    auto carry = zeros<float>(vectors * padded * k.width);
    auto sum_a = zeros<double>(vectors * padded * k.width), sum_d = zeros<double>(vectors * k.width),
         sum_bias = zeros<double>(vectors * k.width);
    a.partial_b = partial_b.get(), a.partial_c = partial_c.get(), a.carry = carry.get();
    a.sum_a = sum_a.get(), a.sum_d = sum_d.get(), a.sum_bias = sum_bias.get();
    for (int64_t begin = (a.length - 1) / a.span * a.span; begin >= 0; begin -= a.span) backward_span(begin);
    collect(a.sum_a, a.state, padded, dA);
    if (a.D) collect(a.sum_d, 1, 1, dD);
    if (a.bias) collect(a.sum_bias, 1, 1, dbias);
  }

 private:
  void backward_span(int64_t begin) const {
    const int64_t end = std::min(begin + a.span, a.length), n = ceil_div(end - begin, SCAN_CHUNK);
    parallel(vectors, k.backward_scratch(a),
             [&](int64_t v0, int64_t v1, float* scratch) { k.backward(a, begin, end, v0, v1, scratch); });
    const int64_t tasks_b = a.batch * a.groups_b * n, tasks_c = a.batch * a.groups_c * n;
    const int64_t reduce_scratch = SCAN_CHUNK * ceil_div(a.state, k.width) * k.width;
    parallel(tasks_b + tasks_c, reduce_scratch, [&](int64_t t0, int64_t t1, float* scratch) {
      k.reduce_b(a, begin, end, std::min(t0, tasks_b), std::min(t1, tasks_b), scratch);
      k.reduce_c(a, begin, end, std::max(t0 - tasks_b, int64_t(0)), std::max(t1 - tasks_b, int64_t(0)), scratch);
    });
  }

  // Sums a per-vector result over batch rows, in order, into (dim, columns).
  void collect(const double* sums, int64_t columns, int64_t stride, float* out) const {
    const int64_t per_group = a.dim / a.groups, n = ceil_div(per_group, k.width), row = a.groups * n;
    for (int64_t d = 0; d < a.dim; ++d) {
      const int64_t v = d / per_group * n + d % per_group / k.width, lane = d % per_group % k.width;
      for (int64_t c = 0; c < columns; ++c) {
        double sum = 0;
        for (int64_t b = 0; b < a.batch; ++b) sum += sums[((b * row + v) * stride + c) * k.width + lane];
        out[d * columns + c] = static_cast<float>(sum);
      }
    }
  }
};

inline float* data(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

}  // namespace
}  // namespace seq2exp
