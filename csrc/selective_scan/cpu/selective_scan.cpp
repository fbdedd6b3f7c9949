// The torch side of the CPU selective scan: strides, allocation, threads. Shapes and dtypes are checked in ops.py; here
// only what would otherwise read out of bounds.
#include "selective_scan/cpu/scan.h"

#include <algorithm>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "common/cpu.h"
#include "common/pages.h"
#include "selective_scan/tensors.h"

namespace seq2exp {
namespace {

constexpr int64_t PARTIAL_BYTES = 4 << 20;  // bound on the partial sums of dB and dC: they should stay in the cache

const ScanKernels& kernels() {
  switch (instruction_set()) {
#ifdef SEQ2EXP_X86
    case InstructionSet::avx512: return *scan_kernels_avx512();
    case InstructionSet::avx2: return *scan_kernels_avx2();
#endif
    default: return *scan_kernels_portable();
  }
}

Storage storage(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Storage::float32;
    case ScalarType::BFloat16: return Storage::bfloat16;
    case ScalarType::Half: return Storage::float16;
    default: STD_TORCH_CHECK(false, "selective_scan: ", name, " must be float32, bfloat16 or float16");
  }
  return Storage::float32;
}

// u, delta, z, out and their gradients: (batch, dim, L).
Strided channels(const Tensor& x, const ScanArgs& a, const char* name) {
  check_channels(x, a, name);
  return {x.data_ptr(), storage(x, name), x.stride(0), 0, x.stride(1), x.stride(2)};
}

// B, C and their gradients: (batch, groups, state, L).
Strided grouped(const Tensor& x, const ScanArgs& a, const char* name) {
  check_grouped(x, a, name);
  return {x.data_ptr(), storage(x, name), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
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

// The arguments common to both directions, with the tensors that keep their memory alive.
struct Problem {
  ScanArgs a{};
  const ScanKernels& k = seq2exp::kernels();
  std::vector<int64_t> starts;
  std::vector<Tensor> keep;
  int64_t vectors, padded;

  Problem(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C, const Optional& D, const Optional& z,
          const Optional& bias, bool softplus, bool reverse, const Optional& cu_seqlens) {
    STD_TORCH_CHECK(u.dim() == 3 && A.dim() == 2, "selective_scan: u must be (batch, dim, L), A (dim, state)");
    a.batch = u.size(0), a.dim = u.size(1), a.length = u.size(2), a.state = A.size(1);
    STD_TORCH_CHECK(u.numel() > 0 && a.state > 0, "selective_scan: empty input");
    a.softplus = softplus, a.reverse = reverse;
    a.u = channels(u, a, "u");
    a.delta = channels(delta, a, "delta");
    if (z) a.z = channels(*z, a, "z");
    a.B = grouped(B, a, "B");
    a.C = grouped(C, a, "C");
    a.groups_b = B.size(1), a.groups_c = C.size(1), a.groups = std::lcm(a.groups_b, a.groups_c);
    a.A = floats(A, a.dim * a.state, "A");
    if (D) a.D = floats(*D, a.dim, "D");
    if (bias) a.bias = floats(*bias, a.dim, "delta_bias");
    set_starts(cu_seqlens);
    vectors = a.batch * a.groups * ceil_div(a.dim / a.groups, k.width);
    padded = ceil_div(a.state, 4) * 4;
  }
  Problem(const Problem&) = delete;

  const float* floats(const Tensor& x, int64_t numel, const char* name) {
    keep.push_back(dense_floats(x, numel, name));
    return static_cast<const float*>(keep.back().data_ptr());
  }

  void set_starts(const Optional& cu_seqlens) {
    starts = {0, a.length};
    if (cu_seqlens) {
      check_offsets(*cu_seqlens, a.batch);
      const Tensor offsets = torch::stable::contiguous(*cu_seqlens);
      const auto* p = static_cast<const int64_t*>(offsets.data_ptr());
      starts.assign(p, p + offsets.numel());
      STD_TORCH_CHECK(starts.front() == 0 && starts.back() == a.length && std::is_sorted(starts.begin(), starts.end()),
                      "selective_scan: cu_seqlens must rise from 0 to L");
      if (a.reverse) {
        std::reverse(starts.begin(), starts.end());
        for (auto& s : starts) s = a.length - s;
      }
    }
    a.starts = starts.data();
    a.sequences = static_cast<int64_t>(starts.size()) - 1;
  }

  // Splits [0, n) over the threads; each gets its own scratch.
  template <class F>
  void parallel(int64_t n, int64_t scratch, F f) const {
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      if (begin >= end) return;
      auto memory = allocate<float>(scratch);
      f(begin, end, memory.get());
    });
  }
};

Tensor fresh_like(const Tensor& x) { return on_huge_pages(torch::stable::empty_like(x)); }
Tensor fresh(const Tensor& like, std::vector<int64_t> shape, std::optional<ScalarType> dtype = std::nullopt) {
  return on_huge_pages(torch::stable::new_empty(like, shape, dtype));
}
Tensor new_zeros(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype) { return torch::stable::new_zeros(like, shape, dtype); }

std::tuple<Tensor, Tensor, Tensor> forward(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional bias,
                                           bool softplus, bool reverse, Optional cu_seqlens, bool save_states) {
  Problem p(u, delta, A, B, C, D, z, bias, softplus, reverse, cu_seqlens);
  ScanArgs& a = p.a;
  Tensor out = fresh_like(u);
  Tensor last = new_zeros(u, {a.batch * a.sequences, a.dim, a.state}, ScalarType::Float);
  const std::vector<int64_t> shape{a.batch, save_states ? ceil_div(a.length, SCAN_CHUNK) : 0, a.state, a.dim};
  Tensor states = fresh(u, shape, ScalarType::Float);
  a.out = channels(out, a, "out");
  a.last_state = static_cast<float*>(last.data_ptr());
  if (save_states) a.states = static_cast<float*>(states.data_ptr());
  p.parallel(p.vectors, p.k.forward_scratch(a), [&](int64_t begin, int64_t end, float* scratch) { p.k.forward(a, begin, end, scratch); });
  return {out, last, states};
}

// Sums a per-vector result over batch rows, in order, into (dim, columns).
void collect(const Problem& p, const double* sums, int64_t columns, int64_t stride, float* out) {
  const ScanArgs& a = p.a;
  const int64_t per_group = a.dim / a.groups, n = ceil_div(per_group, p.k.width), row = a.groups * n;
  for (int64_t d = 0; d < a.dim; ++d) {
    const int64_t v = d / per_group * n + d % per_group / p.k.width, lane = d % per_group % p.k.width;
    for (int64_t c = 0; c < columns; ++c) {
      double sum = 0;
      for (int64_t b = 0; b < a.batch; ++b) sum += sums[((b * row + v) * stride + c) * p.k.width + lane];
      out[d * columns + c] = static_cast<float>(sum);
    }
  }
}

// du, ddelta, dA, dB, dC, dD, dz, ddelta_bias; the last three are empty when their input is absent.
std::vector<Tensor> backward(Tensor grad, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional bias,
                             bool softplus, bool reverse, Optional cu_seqlens, Tensor states) {
  Problem p(u, delta, A, B, C, D, z, bias, softplus, reverse, cu_seqlens);
  ScanArgs& a = p.a;
  const int64_t chunks = ceil_div(a.length, SCAN_CHUNK);
  a.states = const_cast<float*>(p.floats(states, a.batch * chunks * a.state * a.dim, "states"));
  a.grad = channels(grad, a, "grad_out");

  Tensor du = fresh_like(u), ddelta = fresh_like(delta);
  Tensor dA = fresh(A, {a.dim, a.state});
  Tensor dB = fresh(B, {a.batch, a.groups_b, a.state, a.length});
  Tensor dC = fresh(C, {a.batch, a.groups_c, a.state, a.length});
  Tensor dD = fresh(A, {D ? a.dim : 0});
  Tensor dz = z ? fresh_like(*z) : fresh(u, {0});
  Tensor dbias = fresh(A, {bias ? a.dim : 0});
  a.du = channels(du, a, "du");
  a.ddelta = channels(ddelta, a, "ddelta");
  a.dB = grouped(dB, a, "dB");
  a.dC = grouped(dC, a, "dC");
  if (z) a.dz = channels(dz, a, "dz");

  const int64_t bytes = p.vectors * p.padded * 2 * sizeof(float);  // of partial sums per position
  a.span = std::clamp(PARTIAL_BYTES / bytes / SCAN_CHUNK, int64_t(1), chunks) * SCAN_CHUNK;
  auto partial_b = allocate<float>(p.vectors * a.span * p.padded), partial_c = allocate<float>(p.vectors * a.span * p.padded);
  auto carry = zeros<float>(p.vectors * p.padded * p.k.width);
  auto sum_a = zeros<double>(p.vectors * p.padded * p.k.width), sum_d = zeros<double>(p.vectors * p.k.width),
       sum_bias = zeros<double>(p.vectors * p.k.width);
  a.partial_b = partial_b.get(), a.partial_c = partial_c.get(), a.carry = carry.get();
  a.sum_a = sum_a.get(), a.sum_d = sum_d.get(), a.sum_bias = sum_bias.get();

  const int64_t reduce_scratch = SCAN_CHUNK * ceil_div(a.state, p.k.width) * p.k.width;
  for (int64_t begin = (a.length - 1) / a.span * a.span; begin >= 0; begin -= a.span) {
    const int64_t end = std::min(begin + a.span, a.length), n = ceil_div(end - begin, SCAN_CHUNK);
    p.parallel(p.vectors, p.k.backward_scratch(a),
               [&](int64_t v0, int64_t v1, float* scratch) { p.k.backward(a, begin, end, v0, v1, scratch); });
    const int64_t tasks_b = a.batch * a.groups_b * n, tasks_c = a.batch * a.groups_c * n;
    p.parallel(tasks_b + tasks_c, reduce_scratch, [&](int64_t t0, int64_t t1, float* scratch) {
      p.k.reduce_b(a, begin, end, std::min(t0, tasks_b), std::min(t1, tasks_b), scratch);
      p.k.reduce_c(a, begin, end, std::max(t0 - tasks_b, int64_t(0)), std::max(t1 - tasks_b, int64_t(0)), scratch);
    });
  }
  collect(p, a.sum_a, a.state, p.padded, static_cast<float*>(dA.data_ptr()));
  if (D) collect(p, a.sum_d, 1, 1, static_cast<float*>(dD.data_ptr()));
  if (bias) collect(p, a.sum_bias, 1, 1, static_cast<float*>(dbias.data_ptr()));
  return {du, ddelta, dA, dB, dC, dD, dz, dbias};
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CPU, m) {
  m.impl("selective_scan_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("selective_scan_bwd", TORCH_BOX(&seq2exp::backward));
}
