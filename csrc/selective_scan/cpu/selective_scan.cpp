// The raw ops of the selective scan on the CPU.
#include <tuple>

#include "selective_scan/cpu/problem.h"

namespace seq2exp {
namespace {

// B, C and their gradients: (batch, groups, state, L).
Strided grouped(const Tensor& x, const ScanArgs& a, const char* name) {
  check_grouped(x, a, name);
  return {x.data_ptr(), storage(x, name), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

struct Problem : ScanProblem {
  Problem(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C, const Optional& D, const Optional& z,
          const Optional& bias, bool softplus, bool reverse, const Optional& cu_seqlens)
      : ScanProblem(u, A, D, z, bias, softplus, reverse, cu_seqlens) {
    a.delta = channels(delta, a, "delta");
    a.B = grouped(B, a, "B");
    a.C = grouped(C, a, "C");
    set_groups(B.size(1), C.size(1));
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional bias,
                                           bool softplus, bool reverse, Optional cu_seqlens, bool save_states) {
  Problem p(u, delta, A, B, C, D, z, bias, softplus, reverse, cu_seqlens);
  ScanArgs& a = p.a;
  Tensor out = fresh_like(u);
  Tensor last = torch::stable::new_zeros(u, {a.batch * a.sequences, a.dim, a.state}, ScalarType::Float);
  Tensor states = fresh(u, save_states ? p.states_shape() : std::vector<int64_t>{a.batch, 0, a.state, a.dim}, ScalarType::Float);
  a.out = channels(out, a, "out");
  a.last_state = data(last);
  if (save_states) a.states = data(states);
  p.forward();
  return {out, last, states};
}

// du, ddelta, dA, dB, dC, dD, dz, ddelta_bias; the last three are empty when their input is absent.
std::vector<Tensor> backward(Tensor grad, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional bias,
                             bool softplus, bool reverse, Optional cu_seqlens, Tensor states) {
  Problem p(u, delta, A, B, C, D, z, bias, softplus, reverse, cu_seqlens);
  ScanArgs& a = p.a;
  p.set_states(states);
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
  p.backward(data(dA), data(dD), data(dbias));
  return {du, ddelta, dA, dB, dC, dD, dz, dbias};
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CPU, m) {
  m.impl("selective_scan_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("selective_scan_bwd", TORCH_BOX(&seq2exp::backward));
}
