// Small kernels with and without a mistake, for the emulator's own test.
#include "cuda_emulator.h"

namespace {

using seq2exp::launch;
using seq2exp::emulator::message_of;

constexpr unsigned kAll = ~0u;

// out[t] = value of the thread `distance` below, through shared memory. The barrier is what may be forgotten.
enum class Barrier { none, warp, block };

template <Barrier kBarrier>
__global__ void __launch_bounds__(128) pass_up(float* __restrict__ out, int distance) {
  S2E_DYNAMIC_SHARED(float, shared);
  const int t = threadIdx.x;
  shared[t] = float(t);
  if (kBarrier == Barrier::block) __syncthreads();
  if (kBarrier == Barrier::warp) __syncwarp();
  out[blockIdx.x * blockDim.x + t] = t >= distance ? shared[t - distance] : 0.f;
}

// The same memory used twice: the second barrier keeps the next write from overtaking the reads.
template <bool kSecondBarrier>
__global__ void reuse(float* out) {
  __shared__ float shared[128];
  const int t = threadIdx.x, n = blockDim.x;
  float x = float(t);
  for (int i = 0; i < 5; ++i) {
    shared[t] = x;
    __syncthreads();
    x = shared[(t + 32) % n] + 1.f;
    if (kSecondBarrier) __syncthreads();
  }
  out[t] = x;
}

// Static and dynamic shared memory before anything is written to them.
__global__ void unwritten(float* out) {
  __shared__ float fixed[32];
  S2E_DYNAMIC_SHARED(float, dynamic);
  out[0] = fixed[threadIdx.x];
  out[1] = dynamic[threadIdx.x];
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 1.f;
}

__global__ void write_outside(int at) {
  S2E_DYNAMIC_SHARED(float, shared);
  __syncthreads();
  if (threadIdx.x == 0 && blockIdx.x == 1) shared[at] = 1.f;
}

enum Divergence { kBarrierOfOneWarp, kEarlyExit, kBarrierBesideShuffle, kHalfShuffle, kSourceOutside };

__global__ void diverge(Divergence how) {
  const int t = threadIdx.x;
  if (how == kBarrierOfOneWarp && t < 32) __syncthreads();
  if (how == kEarlyExit) {
    if (t == 5) return;
    __syncwarp();
  }
  if (how == kBarrierBesideShuffle) t < 7 ? __syncthreads() : __syncwarp();
  if (how == kHalfShuffle && t < 16) __shfl_sync(kAll, t, 0);
  if (how == kSourceOutside && t < 16) __shfl_xor_sync(0xffffu, t, 16);
}

// Results of every warp operation, 12 numbers a lane. Half warps shuffle apart from each other.
__global__ void operations(double* out) {
  const int lane = threadIdx.x & 31;
  const float x = 10.f * float(lane) + 0.5f;
  const double wide = lane + 1e-12;
  double* p = out + 12 * threadIdx.x;
  p[0] = __shfl_sync(kAll, x, 7);
  p[1] = __shfl_sync(kAll, x, lane + 1);
  p[2] = __shfl_up_sync(kAll, x, 3);
  p[3] = __shfl_down_sync(kAll, x, 3);
  p[4] = __shfl_xor_sync(kAll, x, 5);
  p[5] = __shfl_up_sync(kAll, wide, 1);
  p[6] = double(__shfl_xor_sync(kAll, (int64_t(1) << 40) + lane, 16));
  p[7] = __ballot_sync(kAll, lane % 3 == 0);
  p[8] = __any_sync(kAll, lane == 9) + 2 * __any_sync(kAll, lane == 40);
  p[9] = __all_sync(kAll, lane < 32) + 2 * __all_sync(kAll, lane < 31);
  if (lane < 16) {
    p[10] = __shfl_xor_sync(0x0000ffffu, lane, 1);
    p[11] = __ballot_sync(0x0000ffffu, 1);
  } else {
    p[10] = __shfl_down_sync(0xffff0000u, lane, 1);
    p[11] = 0;
  }
}

// Who comes when: rank of every thread among all of its block, in three intervals between barriers.
__global__ void arrival(int* out, int* counter) {
  for (int i = 0; i < 3; ++i) {
    out[(blockIdx.x * 3 + i) * blockDim.x + threadIdx.x] = (*counter)++;
    i == 0 ? __syncwarp() : __syncthreads();
  }
}

// Mistakes that no value shows, for the memory checks.
enum Access { kRight, kSameValue, kShuffleForBarrier, kBeyondEnd, kBelowBegin, kOtherBlock, kReadBeforeWrite, kWildPointer };

__global__ void access(Access how, const float* in, float* out) {
  S2E_DYNAMIC_SHARED(float, shared);
  const int t = threadIdx.x, n = blockDim.x, i = blockIdx.x * n + t;
  shared[t] = in[i];
  __syncthreads();
  float x = shared[n - 1 - t];
  if (how == kSameValue) shared[0] = 5.f;
  if (how == kReadBeforeWrite && t >= 32) shared[t] = x;
  __syncthreads();
  shared[t] = x;
  if (how == kShuffleForBarrier) {
    x += 0.f * __shfl_xor_sync(kAll, x, 1);
  } else {
    __syncwarp();
  }
  x = shared[t ^ 1];
  if (how == kBeyondEnd && i == 127) x += 0.f * in[128];
  if (how == kBelowBegin && i == 0) x += 0.f * in[-1];
  if (how == kWildPointer) x += *reinterpret_cast<const float*>(~uintptr_t(0));
  out[i] = x;
  if (how == kOtherBlock && i == 64) out[0] = x;
}

__global__ void nothing() {}

}  // namespace

extern "C" {

const char* run_pass_up(int barrier, float* out, int blocks, int threads, int distance) {
  return message_of([=] {
    const auto kernel = barrier == 0   ? pass_up<Barrier::none>
                        : barrier == 1 ? pass_up<Barrier::warp>
                                       : pass_up<Barrier::block>;
    launch(kernel, blocks, threads, threads * sizeof(float), nullptr, out, distance);
  });
}

const char* run_reuse(int second_barrier, float* out) {
  return message_of([=] { launch(second_barrier ? reuse<true> : reuse<false>, 1, 128, 0, nullptr, out); });
}

const char* run_unwritten(float* out) {
  return message_of([=] { launch(unwritten, 2, 1, sizeof(float), nullptr, out); });
}

const char* run_write_outside(int at) {
  return message_of([=] { launch(write_outside, 3, 64, 64 * sizeof(float), nullptr, at); });
}

const char* run_diverge(int how) {
  return message_of([=] { launch(diverge, 2, 64, 0, nullptr, Divergence(how)); });
}

const char* run_operations(double* out) {
  return message_of([=] { launch(operations, 1, 64, 0, nullptr, out); });
}

const char* run_arrival(int* out, int blocks, int threads) {
  int counter = 0;
  return message_of([=, &counter] { launch(arrival, blocks, threads, 0, nullptr, out, &counter); });
}

const char* run_access(int how, const float* in, float* out) {
  return message_of([=] { launch(access, 2, 64, 64 * sizeof(float), nullptr, Access(how), in, out); });
}

const char* run_nothing(int64_t blocks, int threads, int64_t shared_bytes) {
  return message_of([=] { launch(nothing, blocks, threads, size_t(shared_bytes), nullptr); });
}

}  // extern "C"
