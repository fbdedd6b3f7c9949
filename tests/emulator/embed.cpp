// The CUDA embed_bases of one storage type of the output (SCALAR) as a CPU library: C names for the host functions of the
// GPU build, which run its kernels in the emulator. They return null or what went wrong.
#include "cuda_emulator.h"
#include "common/storage.cuh"
#include "embed/cuda/embed.h"

using namespace seq2exp;

namespace {

// signals: their storage, 0 float, 1 bfloat16, 2 float16.
template <class F>
const char* run(int signals, F f) {
  return emulator::message_of([=] {
    switch (signals) {
      case 0: return f(float{});
      case 1: return f(bfloat16{});
      default: return f(float16{});
    }
  });
}

}  // namespace

extern "C" {

// Where each field of GpuEmbed begins, and where it ends; in the order of the Python side.
const int64_t* embed_layout() {
#define AT(field) int64_t(offsetof(GpuEmbed, field))
  static const int64_t offsets[] = {AT(rows), AT(places), AT(length), AT(length.reciprocal), AT(dim), AT(tracks), AT(complement),
                                    AT(vectors), AT(codes), AT(table), AT(weight), AT(signals), AT(signal_batch), AT(signal_time),
                                    AT(signal_track), AT(positions), AT(position_stride), AT(mask), AT(indices), AT(data), AT(stride),
                                    AT(units), AT(batch), AT(row_at), AT(sums), AT(dpositions), AT(dmask), AT(dsignals),
                                    sizeof(GpuEmbed)};
  return offsets;
}

int64_t embed_reciprocal(int64_t length) { return static_cast<int64_t>(divider(length).reciprocal); }
int64_t embed_quotient(int64_t n, int64_t by) { return quotient(n, divider(by)); }
int64_t embed_sum_parts(const GpuEmbed* a) { return embed_parts(*a); }
int embed_channel_segments(int dim) { return embed_segments(dim); }

const char* embed_forward(const GpuEmbed* a, int signals) {
  return run(signals, [=](auto s) { gpu_embed_forward<SCALAR, decltype(s)>(*a, nullptr); });
}

const char* embed_backward(const GpuEmbed* a, int signals) {
  return run(signals, [=](auto s) { gpu_embed_backward<SCALAR, decltype(s)>(*a, nullptr); });
}

}  // extern "C"
