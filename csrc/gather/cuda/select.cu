// The indices of mask != 0, in order: counts of tiles, their sums, then each tile writes its own. A tile is of one row of the mask, so
// that the offsets of tiles hold those of the rows. See kernels/gather/README.md.
#include "common/storage.cuh"
#include "gather/cuda/gather.h"

namespace seq2exp {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarps = kGatherThreads / 32;
constexpr int kScanThreads = 1024;

// Which of the kSelectItems * 32 bases of a warp are selected: bit l of chosen[i] is the base i * 32 + l from `first` on.
struct Warp {
  int64_t row, first;  // of the mask; in the row
  unsigned chosen[kSelectItems];
  int count;
};

// Bits: an integer as wide as the mask's elements. What is not 0 but for its sign is selected, NaN too.
template <class Bits>
__device__ __forceinline__ Warp read_warp(const GpuSelect& a) {
  Warp w;
  w.row = blockIdx.x / a.tiles;
  w.first = blockIdx.x % a.tiles * kSelectTile + threadIdx.x / 32 * (kSelectItems * 32);
  w.count = 0;
  const Bits* const row = static_cast<const Bits*>(a.mask.data) + w.row * a.mask.batch;
#pragma unroll
  for (int i = 0; i < kSelectItems; ++i) {
    const int64_t at = w.first + i * 32 + threadIdx.x % 32;
    const Bits bits = at < a.length ? read_global(row + at * a.mask.time) : Bits(0);
    w.chosen[i] = __ballot_sync(kAllLanes, static_cast<Bits>(bits << 1) != 0);
    w.count += __popc(w.chosen[i]);
  }
  return w;
}

// How many are selected in the warps before this one, and in the block.
__device__ __forceinline__ int before_warp(int count, int& block) {
  __shared__ int counts[kWarps];
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) counts[warp] = count;
  __syncthreads();
  int before = 0;
  block = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) before += counts[i];
    block += counts[i];
  }
  return before;
}

// Grid: all tiles. The count of tile i to offsets[i + 1].
template <class Bits>
__global__ void __launch_bounds__(kGatherThreads) select_count_kernel(const __grid_constant__ GpuSelect a) {
  int block;
  before_warp(read_warp<Bits>(a).count, block);
  if (threadIdx.x == 0) a.offsets[blockIdx.x + int64_t(1)] = block;
}

// One block: sums of the counts, in place.
__global__ void __launch_bounds__(kScanThreads) select_scan_kernel(int64_t* offsets, int64_t n) {
  __shared__ int64_t warps[kScanThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t before = 0;
  if (threadIdx.x == 0) offsets[0] = 0;
  for (int64_t first = 0; first < n; first += kScanThreads) {
    const int64_t i = first + threadIdx.x;
    int64_t sum = i < n ? offsets[i + 1] : 0;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int64_t other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    __syncthreads();  // all have read the sums of the turn before
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    for (int w = 0; w < kScanThreads / 32; ++w) {
      if (w < warp) sum += warps[w];
    }
    if (i < n) offsets[i + 1] = before + sum;
    for (int w = 0; w < kScanThreads / 32; ++w) before += warps[w];
  }
}

// Grid: all tiles. The first tile of a row, and the last of all, also write cu_seqlens.
template <class Bits>
__global__ void __launch_bounds__(kGatherThreads) select_place_kernel(const __grid_constant__ GpuSelect a) {
  const Warp w = read_warp<Bits>(a);
  const int64_t offset = a.offsets[blockIdx.x], total = a.offsets[gridDim.x];
  const bool fits = total <= a.size;
  int block;
  int64_t place = offset + before_warp(w.count, block);
  if (fits) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kSelectItems; ++i) {
      const unsigned before = w.chosen[i] & ((1u << lane) - 1);
      if (w.chosen[i] >> lane & 1) a.indices[place + __popc(before)] = w.row * a.length + w.first + i * 32 + lane;
      place += __popc(w.chosen[i]);
    }
  }
  if (threadIdx.x == 0) {
    if (blockIdx.x % a.tiles == 0) a.cu_seqlens[w.row] = min(offset, a.size);
    if (blockIdx.x == gridDim.x - 1) {
      a.cu_seqlens[a.batch] = min(total, a.size);
      if (a.padded) a.cu_seqlens[a.batch + 1] = a.size;
    }
  }
  if (!a.padded) return;
  const int64_t filling = fits ? a.batch * a.length : -1;
  const int64_t first = (fits ? total : 0) + static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x;
  for (int64_t i = first; i < a.size; i += static_cast<int64_t>(gridDim.x) * kGatherThreads) a.indices[i] = filling;
}

int64_t tiles_of(const GpuSelect& a) { return a.batch * a.tiles; }

}  // namespace

void gpu_select_count(const GpuSelect& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  launch(a.mask.storage == 0 ? select_count_kernel<uint32_t> : select_count_kernel<uint16_t>, tiles_of(a), kGatherThreads, 0, s, a);
  launch(select_scan_kernel, 1, kScanThreads, 0, s, a.offsets, tiles_of(a));
}

void gpu_select_place(const GpuSelect& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  launch(a.mask.storage == 0 ? select_place_kernel<uint32_t> : select_place_kernel<uint16_t>, tiles_of(a), kGatherThreads, 0, s, a);
}

}  // namespace seq2exp
