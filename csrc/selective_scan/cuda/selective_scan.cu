// The torch side of the CUDA selective scan: strides, allocation, the current stream.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <numeric>
#include <tuple>
#include <vector>

#include "common/storage.cuh"
#include "selective_scan/cuda/scan.h"
#include "selective_scan/tensors.h"

namespace seq2exp {
namespace {

// libtorch_cuda is not linked, so that the extension loads beside a CPU build of torch; it is there when tensors are on a GPU.
void* current_stream(int32_t device) {
  using Get = int32_t (*)(int32_t, void**);
  static const auto get = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Get>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(get && get(device, &stream) == 0, "selective_scan: PyTorch's current CUDA stream cannot be had");
  return stream;
}

GpuStrided channels(const Tensor& x, const GpuScan& a, const Tensor& u, const char* name) {
  check_channels(x, a, name);
  STD_TORCH_CHECK(x.scalar_type() == u.scalar_type(), "selective_scan: ", name, " must have the dtype of u");
  return {x.data_ptr(), x.stride(0), 0, x.stride(1), x.stride(2)};
}

GpuStrided grouped(const Tensor& x, const GpuScan& a, const Tensor& u, const char* name) {
  check_grouped(x, a, name);
  STD_TORCH_CHECK(x.scalar_type() == u.scalar_type(), "selective_scan: ", name, " must have the dtype of u");
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// The arguments common to both directions, with the tensors that keep their memory alive.
struct Problem {
  GpuScan a{};
  torch::stable::accelerator::DeviceGuard guard;
  std::vector<Tensor> keep;

  Problem(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C, const Optional& D, const Optional& z,
          const Optional& bias, bool softplus, bool reverse, const Optional& cu_seqlens)
      : guard(u.get_device_index()) {
    STD_TORCH_CHECK(u.dim() == 3 && A.dim() == 2, "selective_scan: u must be (batch, dim, L), A (dim, state)");
    a.batch = u.size(0), a.dim = u.size(1), a.length = u.size(2), a.state = A.size(1);
    STD_TORCH_CHECK(u.numel() > 0 && a.state > 0 && a.state <= 256, "selective_scan: empty input, or more than 256 states");
    STD_TORCH_CHECK(a.length < (int64_t(1) << 31) - 1024, "selective_scan: L must be below 2^31 - 1024");
    a.softplus = softplus, a.reverse = reverse;
    a.rows[GPU_U] = channels(u, a, u, "u");
    a.rows[GPU_DELTA] = channels(delta, a, u, "delta");
    if (z) a.rows[GPU_Z] = channels(*z, a, u, "z");
    a.B = grouped(B, a, u, "B");
    a.C = grouped(C, a, u, "C");
    a.groups_b = B.size(1), a.groups_c = C.size(1), a.groups = std::lcm(a.groups_b, a.groups_c);
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

float* pointer(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

// Runs gpu_forward or gpu_backward for the dtype of u.
template <class F>
void run(const Tensor& u, F f) {
  switch (u.scalar_type()) {
    case ScalarType::Float: f(float{}); break;
    case ScalarType::BFloat16: f(bfloat16{}); break;
    case ScalarType::Half: f(float16{}); break;
    default: STD_TORCH_CHECK(false, "selective_scan: u must be float32, bfloat16 or float16");
  }
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "selective_scan: ", cudaGetErrorString(error));
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional bias,
                                           bool softplus, bool reverse, Optional cu_seqlens, bool save_states) {
  Problem p(u, delta, A, B, C, D, z, bias, softplus, reverse, cu_seqlens);
  GpuScan& a = p.a;
  Tensor out = torch::stable::empty_like(u);
  Tensor last = p.empty(u, {a.sequences, a.dim, a.state});
  Tensor states = p.empty(u, {save_states ? gpu_chunks(a) : 0, a.dim, a.state});
  Tensor workspace = p.empty(u, {gpu_forward_workspace(a)});
  a.rows[GPU_OUT] = channels(out, a, u, "out");
  a.last_state = pointer(last);
  a.states = save_states ? pointer(states) : nullptr;
  a.workspace = pointer(workspace);
  run(u, [&](auto type) { gpu_forward<decltype(type)>(a, current_stream(u.get_device_index())); });
  return {out, last, states};
}

// du, ddelta, dz (empty when absent), dB and dC (batch, groups, state, L) of the joint groups, and the parts of dA, dD, dbias
// (sequences, segments, dim, state + 2).
std::vector<Tensor> backward(Tensor grad, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional bias,
                             bool softplus, bool reverse, Optional cu_seqlens, Tensor states) {
  Problem p(u, delta, A, B, C, D, z, bias, softplus, reverse, cu_seqlens);
  GpuScan& a = p.a;
  a.states = const_cast<float*>(p.floats(states, gpu_chunks(a) * a.dim * a.state, "states"));
  a.rows[GPU_GRAD] = channels(grad, a, u, "grad_out");
  Tensor du = torch::stable::empty_like(u), ddelta = torch::stable::empty_like(delta);
  Tensor dz = z ? torch::stable::empty_like(*z) : p.empty(u, {0});
  Tensor dB = p.empty(u, {a.batch, a.groups, a.state, a.length}), dC = p.empty(u, {a.batch, a.groups, a.state, a.length});
  Tensor sums = p.empty(u, {a.sequences, gpu_backward_segments(a), a.dim, a.state + 2});
  Tensor workspace = p.empty(u, {gpu_backward_workspace(a)});
  a.rows[GPU_DU] = channels(du, a, u, "du");
  a.rows[GPU_DDELTA] = channels(ddelta, a, u, "ddelta");
  if (z) a.rows[GPU_DZ] = channels(dz, a, u, "dz");
  a.dB = pointer(dB), a.dC = pointer(dC), a.sums = pointer(sums), a.workspace = pointer(workspace);
  run(u, [&](auto type) { gpu_backward<decltype(type)>(a, current_stream(u.get_device_index())); });
  return {du, ddelta, dz, dB, dC, sums};
}

void tune(int64_t items, int64_t warps) {
  STD_TORCH_CHECK((items == 0 || items == 8 || items == 16) && warps >= 0 && warps <= 8,
                  "selective_scan_tune: items must be 8 or 16, warps 1 to 8, 0 for the default");
  set_gpu_shape({static_cast<int>(items), static_cast<int>(warps)});
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CompositeExplicitAutograd, m) { m.impl("selective_scan_tune", TORCH_BOX(&seq2exp::tune)); }

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CUDA, m) {
  m.impl("selective_scan_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("selective_scan_cuda_bwd", TORCH_BOX(&seq2exp::backward));
}
