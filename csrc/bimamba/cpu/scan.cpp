// The raw ops of one direction of a mixer on the CPU: the selective scan's kernels, with step sizes formed from their
// low-rank factor.
#include <tuple>

#include "selective_scan/cpu/problem.h"

namespace seq2exp {
namespace {

// low, B, C and the gradients of B and C: (batch, rows, L).
Strided rows(const Tensor& x, const ScanArgs& a, int64_t count, const char* name) {
  STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == a.batch && x.size(1) == count && x.size(2) == a.length, "bimamba: ", name, " must be (batch, ",
                  count, ", L)");
  return strided(x, name);
}

struct Problem : ScanProblem {
  Problem(const Tensor& u, const Tensor& low, const Tensor& dt_proj, const Tensor& A, const Tensor& B, const Tensor& C, const Tensor& D,
          const Tensor& dt_bias, const Optional& z, const Optional& add, bool reverse, const Optional& cu_seqlens)
      : ScanProblem(u, A, D, z, dt_bias, true, reverse, cu_seqlens) {
    STD_TORCH_CHECK(dt_proj.dim() == 2 && dt_proj.size(1) > 0, "bimamba: dt_proj must be (dim, rank)");
    a.rank = dt_proj.size(1);
    a.low = rows(low, a, a.rank, "low");
    a.dt_proj = floats(dt_proj, a.dim * a.rank, "dt_proj");
    a.B = rows(B, a, a.state, "B");
    a.C = rows(C, a, a.state, "C");
    if (add) a.add = channels(*add, a, "add");
  }
};

// out, states.
std::tuple<Tensor, Tensor> forward(Tensor u, Tensor low, Tensor dt_proj, Tensor A, Tensor B, Tensor C, Tensor D, Tensor dt_bias, Optional z,
                                   Optional add, bool reverse, Optional cu_seqlens, bool save_states) {
  Problem p(u, low, dt_proj, A, B, C, D, dt_bias, z, add, reverse, cu_seqlens);
  ScanArgs& a = p.a;
  Tensor out = fresh_like(u);
  Tensor states = fresh(u, save_states ? p.states_shape() : std::vector<int64_t>{0}, ScalarType::Float);
  a.out = channels(out, a, "out");
  if (save_states) a.states = data(states);
  p.forward();
  return {out, states};
}

// du, ddelta, dA, dB, dC, dD, ddt_bias, y, dz; dz is empty unless closing. Closing overwrites grad, add and z: du, y and dz
// are those tensors. The kernels read a tile of all inputs before they write its outputs.
std::vector<Tensor> backward(Tensor grad, Tensor u, Tensor low, Tensor dt_proj, Tensor A, Tensor B, Tensor C, Tensor D, Tensor dt_bias,
                             Tensor z, Optional add, bool reverse, Optional cu_seqlens, Tensor states, bool closing) {
  Problem p(u, low, dt_proj, A, B, C, D, dt_bias, z, closing ? add : std::nullopt, reverse, cu_seqlens);
  ScanArgs& a = p.a;
  p.set_states(states);
  a.grad = channels(grad, a, "grad_out");
  a.gated = closing;
  Tensor du = closing ? grad : fresh_like(u), ddelta = fresh_like(u), y = closing && add ? *add : fresh_like(u);
  Tensor dz = closing ? z : fresh(u, {0});
  Tensor dA = fresh(A, {a.dim, a.state}), dB = fresh_like(B), dC = fresh_like(C), dD = fresh(A, {a.dim}), dbias = fresh(A, {a.dim});
  a.du = channels(du, a, "du");
  a.ddelta = channels(ddelta, a, "ddelta");
  a.y = channels(y, a, "y");
  if (closing) a.dz = channels(dz, a, "dz");
  a.dB = rows(dB, a, a.state, "dB");
  a.dC = rows(dC, a, a.state, "dC");
  p.backward(data(dA), data(dD), data(dbias));
  return {du, ddelta, dA, dB, dC, dD, dbias, y, dz};
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CPU, m) {
  m.impl("bimamba_scan_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("bimamba_scan_bwd", TORCH_BOX(&seq2exp::backward));
}
