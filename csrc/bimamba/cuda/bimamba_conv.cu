// The torch side of the mixer's CUDA convolutions.
#include <vector>

#include "bimamba/cuda/conv.h"
#include "common/cuda_tensors.h"
#include "selective_scan/tensors.h"

namespace seq2exp {
namespace {

// The arguments common to forward and backward, with the tensors that keep their memory alive.
struct Problem {
  GpuConv a{};
  torch::stable::accelerator::DeviceGuard guard;
  std::vector<Tensor> keep;

  Problem(const Tensor& x, const Optional& weight_fwd, const Optional& bias_fwd, const Optional& weight_rev, const Optional& bias_rev,
          const Optional& cu_seqlens)
      : guard(x.get_device_index()) {
    STD_TORCH_CHECK(x.dim() == 3 && x.numel() > 0, "bimamba: x must be (batch, dim, L), not empty");
    a.batch = x.size(0), a.dim = x.size(1), a.length = x.size(2);
    STD_TORCH_CHECK(a.length < (int64_t(1) << 31) - 1024, "bimamba: L must be below 2^31 - 1024");
    a.x = signal(x, x, "x");
    set_taps(0, weight_fwd, bias_fwd);
    set_taps(1, weight_rev, bias_rev);
    STD_TORCH_CHECK(a.width > 0, "bimamba: a convolution needs weights");
    if (cu_seqlens) {
      check_offsets(*cu_seqlens, a.batch);
      keep.push_back(torch::stable::contiguous(*cu_seqlens));
      a.cu_seqlens = static_cast<const int64_t*>(keep.back().data_ptr());
      a.sequences = cu_seqlens->size(0) - 1;
    }
  }
  Problem(const Problem&) = delete;

  void set_taps(int i, const Optional& weight, const Optional& bias) {
    if (!weight) return;
    STD_TORCH_CHECK(bias && weight->dim() == 2 && weight->size(1) >= 2 && weight->size(1) <= kConvTaps,
                    "bimamba: weights must be (dim, width), width 2 to ", kConvTaps, ", each with a bias");
    const int width = static_cast<int>(weight->size(1));
    STD_TORCH_CHECK(a.width == 0 || a.width == width, "bimamba: both convolutions must have the same width");
    a.width = width;
    a.ways[i].weight = floats(*weight, a.dim * width, "conv_weight");
    a.ways[i].bias = floats(*bias, a.dim, "conv_bias");
  }

  const float* floats(const Tensor& x, int64_t numel, const char* name) {
    keep.push_back(dense_floats(x, numel, name));
    return static_cast<const float*>(keep.back().data_ptr());
  }

  GpuStrided signal(const Tensor& t, const Tensor& x, const char* name) const {
    check_channels(t, a, name);
    STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), "bimamba: ", name, " must have the dtype of x");
    return {t.data_ptr(), t.stride(0), 0, t.stride(1), t.stride(2)};
  }
};

// c of the directions that are there.
std::vector<Tensor> forward(Tensor x, Optional weight_fwd, Optional bias_fwd, Optional weight_rev, Optional bias_rev, Optional cu_seqlens) {
  Problem p(x, weight_fwd, bias_fwd, weight_rev, bias_rev, cu_seqlens);
  std::vector<Tensor> outs;
  for (GpuConvWay& way : p.a.ways) {
    if (!way.weight) continue;
    outs.push_back(torch::stable::empty_like(x));
    way.c = p.signal(outs.back(), x, "c");
  }
  with_storage_type(x, "bimamba: x", [&](auto type) { gpu_conv_forward<decltype(type)>(p.a, current_stream(x.get_device_index())); });
  check_launches("bimamba");
  return outs;
}

// dx; then the gradients of weight and bias of the directions that are there.
std::vector<Tensor> backward(Tensor x, Optional grad_fwd, Optional grad_rev, Optional weight_fwd, Optional bias_fwd, Optional weight_rev,
                             Optional bias_rev, Optional cu_seqlens) {
  Problem p(x, weight_fwd, bias_fwd, weight_rev, bias_rev, cu_seqlens);
  GpuConv& a = p.a;
  std::vector<Tensor> results{torch::stable::empty_like(x)};
  a.dx = p.signal(results[0], x, "dx");
  const Optional* const grads[] = {&grad_fwd, &grad_rev};
  const auto floats = [&](std::vector<int64_t> shape) {
    results.push_back(torch::stable::new_empty(x, shape, ScalarType::Float));
    return static_cast<float*>(results.back().data_ptr());
  };
  for (int i = 0; i < 2; ++i) {
    GpuConvWay& way = a.ways[i];
    if (!way.weight) continue;
    STD_TORCH_CHECK(*grads[i], "bimamba: the gradient of a direction is missing");
    way.c = p.signal(**grads[i], x, "grad");
    way.dweight = floats({a.dim, a.width});
    way.dbias = floats({a.dim});
  }
  with_storage_type(x, "bimamba: x", [&](auto type) {
    using T = decltype(type);
    const Tensor sums = torch::stable::new_empty(x, {gpu_conv_workspace<T>(a)}, ScalarType::Float);
    a.sums = static_cast<float*>(sums.data_ptr());
    gpu_conv_backward<T>(a, current_stream(x.get_device_index()));
  });
  check_launches("bimamba");
  return results;
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CUDA, m) {
  m.impl("bimamba_conv_fwd", TORCH_BOX(&seq2exp::forward));
  m.impl("bimamba_conv_bwd", TORCH_BOX(&seq2exp::backward));
}
