// The torch side of the CUDA selective scan.
#include <numeric>
#include <tuple>

#include "selective_scan/cuda/problem.h"

namespace seq2exp {
namespace {

GpuStrided grouped(const Tensor& x, const GpuScan& a, const Tensor& u, const char* name) {
  check_grouped(x, a, name);
  STD_TORCH_CHECK(x.scalar_type() == u.scalar_type(), "selective_scan: ", name, " must have the dtype of u");
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// The arguments common to both directions.
void describe(Problem& p, const Tensor& u, const Tensor& delta, const Tensor& B, const Tensor& C, bool softplus) {
  GpuScan& a = p.a;
  a.softplus = softplus;
  a.rows[GPU_DELTA] = channels(delta, a, u, "delta");
  a.B = grouped(B, a, u, "B");
  a.C = grouped(C, a, u, "C");
  a.groups_b = B.size(1), a.groups_c = C.size(1), a.groups = std::lcm(a.groups_b, a.groups_c);
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional bias,
                                           bool softplus, bool reverse, Optional cu_seqlens, bool save_states) {
  Problem p(u, A, D, z, bias, reverse, cu_seqlens);
  describe(p, u, delta, B, C, softplus);
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
  Problem p(u, A, D, z, bias, reverse, cu_seqlens);
  describe(p, u, delta, B, C, softplus);
  GpuScan& a = p.a;
  Gradients g(p, grad, torch::stable::empty_like(u), u, delta, states);
  Tensor dz = z ? torch::stable::empty_like(*z) : p.empty(u, {0});
  if (z) a.rows[GPU_DZ] = channels(dz, a, u, "dz");
  run(u, [&](auto type) { gpu_backward<decltype(type)>(a, current_stream(u.get_device_index())); });
  return {g.du, g.ddelta, dz, g.dB, g.dC, g.sums};
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
