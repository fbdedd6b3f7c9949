// The torch side of the mixer's CUDA scan.
#include <tuple>

#include "bimamba/cuda/scan.h"
#include "selective_scan/cuda/problem.h"

namespace seq2exp {
namespace {

// (batch, rows, L)
GpuStrided rows_of(const Tensor& x, int64_t rows, const GpuScan& a, const Tensor& u, const char* name) {
  STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == a.batch && x.size(1) == rows && x.size(2) == a.length && rows > 0, "bimamba: ", name,
                  " must be (batch, ", rows, ", L)");
  STD_TORCH_CHECK(x.scalar_type() == u.scalar_type(), "bimamba: ", name, " must have the dtype of u");
  return {x.data_ptr(), x.stride(0), 0, x.stride(1), x.stride(2)};
}

// The arguments common to both directions.
void describe(Problem& p, const Tensor& u, const Tensor& low, const Tensor& dt_proj, const Tensor& B, const Tensor& C, const Optional& add) {
  GpuScan& a = p.a;
  STD_TORCH_CHECK(dt_proj.dim() == 2, "bimamba: dt_proj must be (dim, rank)");
  a.softplus = true;
  a.rank = dt_proj.size(1);
  a.dt_proj = p.floats(dt_proj, a.dim * a.rank, "dt_proj");
  a.low = rows_of(low, a.rank, a, u, "low");
  a.B = rows_of(B, a.state, a, u, "B");
  a.C = rows_of(C, a.state, a, u, "C");
  a.groups = a.groups_b = a.groups_c = 1;
  if (add) a.rows[GPU_ADD] = channels(*add, a, u, "add");
}

std::tuple<Tensor, Tensor> forward(Tensor u, Tensor low, Tensor dt_proj, Tensor A, Tensor B, Tensor C, Tensor D, Tensor dt_bias, Optional z,
                                   Optional add, bool reverse, Optional cu_seqlens, bool save_states) {
  Problem p(u, A, D, z, dt_bias, reverse, cu_seqlens);
  describe(p, u, low, dt_proj, B, C, add);
  GpuScan& a = p.a;
  Tensor out = torch::stable::empty_like(u);
  Tensor states = p.empty(u, {save_states ? gpu_chunks(a) : 0, a.dim, a.state});
  Tensor workspace = p.empty(u, {gpu_forward_workspace(a)});
  a.rows[GPU_OUT] = channels(out, a, u, "out");
  a.states = save_states ? pointer(states) : nullptr;
  a.workspace = pointer(workspace);
  run(u, [&](auto type) { gpu_mixer_forward<decltype(type)>(a, current_stream(u.get_device_index())); });
  return {out, states};
}

// du, ddelta, y, dz (empty unless closing), dB and dC (batch, 1, state, L) in float32, and the parts of dA, dD, ddt_bias
// (sequences, segments, dim, state + 2). Closing overwrites grad, add and z: du, y and dz are those tensors.
std::vector<Tensor> backward(Tensor grad, Tensor u, Tensor low, Tensor dt_proj, Tensor A, Tensor B, Tensor C, Tensor D, Tensor dt_bias, Tensor z,
                             Optional add, bool reverse, Optional cu_seqlens, Tensor states, bool closing) {
  Problem p(u, A, D, z, dt_bias, reverse, cu_seqlens);
  describe(p, u, low, dt_proj, B, C, add);
  GpuScan& a = p.a;
  Gradients g(p, grad, closing ? grad : torch::stable::empty_like(u), u, u, states);
  Tensor y = closing && add ? *add : torch::stable::empty_like(u);
  Tensor dz = closing ? z : p.empty(u, {0});
  a.rows[GPU_OUT] = channels(y, a, u, "y");
  if (closing) a.rows[GPU_DZ] = channels(dz, a, u, "dz");
  run(u, [&](auto type) { gpu_mixer_backward<decltype(type)>(a, current_stream(u.get_device_index())); });
  return {g.du, g.ddelta, y, dz, g.dB, g.dC, g.sums};
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CUDA, m) {
  m.impl("bimamba_scan_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("bimamba_scan_cuda_bwd", TORCH_BOX(&seq2exp::backward));
}
