// The raw ops, namespace seq2exp_native. Python wraps them (schema checks, fake tensors, autograd): see kernels/<op>/ops.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(seq2exp_native, m) {
  m.def(
      "selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
      "bool delta_softplus, bool reverse, Tensor? cu_seqlens, bool save_states) -> (Tensor, Tensor, Tensor)");
  m.def(
      "selective_scan_bwd(Tensor grad_out, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
      "Tensor? delta_bias, bool delta_softplus, bool reverse, Tensor? cu_seqlens, Tensor states) -> Tensor[]");
  m.def(
      "selective_scan_cuda_bwd(Tensor grad_out, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
      "Tensor? delta_bias, bool delta_softplus, bool reverse, Tensor? cu_seqlens, Tensor states) -> Tensor[]");
  m.def("selective_scan_tune(int items, int warps) -> ()");
  // csrc/bimamba; see kernels/bimamba/direction.py. `closing` backwards write over grad_out, z and add, which come back as
  // du, dz and y.
  m.def(
      "bimamba_conv_fwd(Tensor x, Tensor? weight_fwd, Tensor? bias_fwd, Tensor? weight_rev, Tensor? bias_rev, "
      "Tensor? cu_seqlens) -> Tensor[]");
  m.def(
      "bimamba_conv_bwd(Tensor x, Tensor? grad_fwd, Tensor? grad_rev, Tensor? weight_fwd, Tensor? bias_fwd, Tensor? weight_rev, "
      "Tensor? bias_rev, Tensor? cu_seqlens) -> Tensor[]");
  m.def(
      "bimamba_scan_fwd(Tensor u, Tensor low, Tensor dt_proj, Tensor A, Tensor B, Tensor C, Tensor D, Tensor dt_bias, Tensor? z, "
      "Tensor? add, bool reverse, Tensor? cu_seqlens, bool save_states) -> (Tensor, Tensor)");
  m.def(
      "bimamba_scan_bwd(Tensor grad_out, Tensor u, Tensor low, Tensor dt_proj, Tensor A, Tensor B, Tensor C, Tensor D, "
      "Tensor dt_bias, Tensor z, Tensor? add, bool reverse, Tensor? cu_seqlens, Tensor states, bool closing) -> Tensor[]");
  m.def(
      "bimamba_scan_cuda_bwd(Tensor grad_out, Tensor u, Tensor low, Tensor dt_proj, Tensor A, Tensor B, Tensor C, Tensor D, "
      "Tensor dt_bias, Tensor z, Tensor? add, bool reverse, Tensor? cu_seqlens, Tensor states, bool closing) -> Tensor[]");
  // csrc/add_norm
  m.def("add_norm_fwd(Tensor x, Tensor? residual, Tensor weight, Tensor? gate, float epsilon) -> (Tensor, Tensor)");
  m.def(
      "add_norm_bwd(Tensor grad, Tensor? grad_residual, Tensor residual, Tensor weight, Tensor? gate, float epsilon) -> Tensor[]");
  // csrc/embed; see kernels/embed/native.py. signal_weight: (tracks, d). row_at: the inverse of indices.
  m.def(
      "embed_fwd(Tensor codes, Tensor table, Tensor? signals, Tensor? signal_weight, Tensor? positions, Tensor? mask, "
      "Tensor? indices, bool complement, ScalarType dtype) -> Tensor");
  m.def(
      "embed_bwd(Tensor grad, Tensor codes, Tensor table, Tensor? signals, Tensor? signal_weight, Tensor? positions, Tensor? mask, "
      "Tensor? indices, Tensor? row_at, bool complement, bool for_positions, bool for_mask, bool for_signals) -> Tensor[]");
  // csrc/beta_mask; see kernels/beta_mask/native.py
  m.def(
      "beta_mask_fwd(Tensor seq_logits, Tensor signals, Tensor signal_weights, Tensor signal_betas, Tensor? exclude, Tensor? include, "
      "Tensor rows, float beta_min, float signal_scale, float z_scale, float prior_p, float prior_q, bool sample, bool hard, "
      "float threshold, int top, int smooth, int center, bool product, int seed) -> Tensor[]");
  m.def(
      "beta_mask_bwd(Tensor? grad_mask, Tensor? grad_soft_mask, Tensor? grad_alpha, Tensor? grad_beta, Tensor? grad_kl, "
      "Tensor? grad_continuity, Tensor seq_logits, Tensor? signals, Tensor signal_weights, Tensor signal_betas, Tensor alpha, "
      "Tensor beta, Tensor logit, Tensor marks, float beta_min, float signal_scale, float z_scale, float prior_p, float prior_q, "
      "bool sample, bool product, bool for_signals, bool for_tracks) -> Tensor[]");
  m.def(
      "beta_mask_cuda_fwd(Tensor seq_logits, Tensor signals, Tensor signal_weights, Tensor signal_betas, Tensor? exclude, "
      "Tensor? include, Tensor? selected, Tensor rows, float beta_min, float signal_scale, float z_scale, float prior_p, float prior_q, "
      "bool sample, bool hard, float threshold, int center, bool product, int seed) -> Tensor[]");
  m.def(
      "beta_mask_cuda_bwd(Tensor? grad_mask, Tensor? grad_soft_mask, Tensor? grad_alpha, Tensor? grad_beta, Tensor? grad_kl, "
      "Tensor? grad_continuity, Tensor seq_logits, Tensor? signals, Tensor signal_weights, Tensor signal_betas, Tensor alpha, "
      "Tensor beta, Tensor logit, Tensor marks, float beta_min, float signal_scale, float z_scale, float prior_p, float prior_q, "
      "bool sample, bool product, bool for_signals, bool for_tracks) -> Tensor[]");
  m.def("top_mask(Tensor scores, int k) -> Tensor");
  // csrc/gather; see kernels/gather/native.py
  m.def("select_offsets(Tensor mask) -> Tensor");
  m.def("select_places(Tensor mask, Tensor offsets, int size, bool padded) -> (Tensor, Tensor)");
  m.def("pack_rows(Tensor x, Tensor? mask, Tensor indices) -> Tensor");
  m.def("unpack_rows(Tensor values, Tensor indices, Tensor? x, Tensor? mask, int batch, int length) -> Tensor[]");
  m.def("cpu_instruction_sets() -> str[]");
  m.def("cpu_instruction_set() -> str");
  m.def("set_cpu_instruction_set(str name) -> ()");
  m.def("cuda_build() -> str[]");
  m.def("cuda_versions() -> int[]");
}
