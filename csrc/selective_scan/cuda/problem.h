// What the torch sides of the scan and of the mixer's scan share: strides, checks.
#pragma once
#include <vector>

#include "common/cuda_tensors.h"
#include "selective_scan/cuda/scan.h"
#include "selective_scan/tensors.h"

namespace seq2exp {
namespace {

inline GpuStrided channels(const Tensor& x, const GpuScan& a, const Tensor& u, const char* name) {
  check_channels(x, a, name);
  STD_TORCH_CHECK(x.scalar_type() == u.scalar_type(), "selective_scan: ", name, " must have the dtype of u");
  return {x.data_ptr(), x.stride(0), 0, x.stride(1), x.stride(2)};
}

// The arguments common to both directions, with the tensors that keep their memory alive.
struct Problem {
  GpuScan a{};
  torch::stable::accelerator::DeviceGuard guard;
  std::vector<Tensor> keep;

  // softplus, delta, B and C are the caller's
  Problem(const Tensor& u, const Tensor& A, const Optional& D, const Optional& z, const Optional& bias, bool reverse,
          const Optional& cu_seqlens)
      : guard(u.get_device_index()) {
    STD_TORCH_CHECK(u.dim() == 3 && A.dim() == 2, "selective_scan: u must be (batch, dim, L), A (dim, state)");
    a.batch = u.size(0), a.dim = u.size(1), a.length = u.size(2), a.state = A.size(1);
    STD_TORCH_CHECK(u.numel() > 0 && a.state > 0 && a.state <= 256, "selective_scan: empty input, or more than 256 states");
    STD_TORCH_CHECK(a.length < (int64_t(1) << 31) - 1024, "selective_scan: L must be below 2^31 - 1024");
    a.reverse = reverse;
    a.rows[GPU_U] = channels(u, a, u, "u");
    if (z) a.rows[GPU_Z] = channels(*z, a, u, "z");
    a.A = floats(A, a.dim * a.state, "A");
    if (D) a.D = floats(*D, a.dim, "D");
    if (bias) a.bias = floats(*bias, a.dim, "delta_bias");
    a.sequences = a.batch;
    if (cu_seqlens) {
      check_offsets(*cu_seqlens, a.batch);
      keep.push_back(torch::stable::contiguous(*cu_seqlens));
      a.cu_seqlens = static_cast<const int64_t*>(keep.back().data_ptr());
      a.sequences = cu_seqlens->size(0) - 1;
    }
  }
  Problem(const Problem&) = delete;

  const float* floats(const Tensor& x, int64_t numel, const char* name) {
    keep.push_back(dense_floats(x, numel, name));
    return static_cast<const float*>(keep.back().data_ptr());
  }

  Tensor empty(const Tensor& like, std::vector<int64_t> shape) const { return torch::stable::new_empty(like, shape, ScalarType::Float); }
};

inline float* pointer(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

// Calls f with a value of the storage type that u has.
template <class F>
void run(const Tensor& u, F f) {
  with_storage_type(u, "selective_scan: u", f);
  check_launches("selective_scan");
}

// What every backward reads and writes beyond the forward's inputs.
struct Gradients {
  Tensor du, ddelta;  // as u
  Tensor dB, dC;      // (batch, groups, state, L) of the joint groups
  Tensor sums;        // see GpuScan
  Tensor workspace;

  // delta: a tensor like which ddelta is
  Gradients(Problem& p, const Tensor& grad, Tensor du, const Tensor& u, const Tensor& delta, const Tensor& states)
      : du(du),
        ddelta(torch::stable::empty_like(delta)),
        dB(p.empty(u, {p.a.batch, p.a.groups, p.a.state, p.a.length})),
        dC(p.empty(u, {p.a.batch, p.a.groups, p.a.state, p.a.length})),
        sums(p.empty(u, {p.a.sequences, gpu_backward_segments(p.a), p.a.dim, p.a.state + 2})),
        workspace(p.empty(u, {gpu_backward_workspace(p.a)})) {
    GpuScan& a = p.a;
    a.states = const_cast<float*>(p.floats(states, gpu_chunks(a) * a.dim * a.state, "states"));
    a.rows[GPU_GRAD] = channels(grad, a, u, "grad_out");
    a.rows[GPU_DU] = channels(du, a, u, "du");
    a.rows[GPU_DDELTA] = channels(ddelta, a, u, "ddelta");
    a.dB = pointer(dB), a.dC = pointer(dC), a.sums = pointer(sums), a.workspace = pointer(workspace);
  }
};

}  // namespace
}  // namespace seq2exp
