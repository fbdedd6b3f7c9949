// The input of a model from codes and signals. A block takes tiles of as many lines as it has threads: first every thread
// looks up one line, the base that it is and its signals, and leaves that in shared memory; then the lines are shared out
// among groups of lanes, a power of two within a warp, and a thread has 8 channels of a line. Rows of more than 256 channels
// are cut into segments. See kernels/embed/README.md.
#pragma once
#include "common/rows.cuh"
#include "embed/cuda/embed.h"

namespace seq2exp {
namespace {

struct __align__(16) Line {
  int64_t row;            // of data, or -1
  int64_t place;          // of the base, or -1 where there is none
  const float* position;  // may be null
  float mask;             // without a base what its row is filled with
  int code;
};

// The lines of a tile, and their features: one for its code, 0 for the other codes, the signals, 0 up to whole chunks.
struct Tile {
  Line* lines;
  float* features;
  int padded;  // features of a line

  __device__ __forceinline__ Tile(unsigned char* shared, int tracks)
      : lines(reinterpret_cast<Line*>(shared)),
        features(reinterpret_cast<float*>(lines + kEmbedThreads)),
        padded((kCodes + tracks + kFeatures - 1) / kFeatures * kFeatures) {}
  __device__ __forceinline__ const float* of(int line) const { return features + line * padded; }
};

size_t tile_bytes(int tracks) { return kEmbedThreads * (sizeof(Line) + sizeof(float) * kFeatures * embed_chunks(tracks)); }

// Line threadIdx.x of the tile. place: into batch * length, elsewhere there is no base. fill: see Line::mask.
template <class S>
__device__ __forceinline__ void look_up(const GpuEmbed& a, const Tile& tile, int64_t row, int64_t place, float fill) {
  Line line{row, -1, a.positions, fill, 0};
  float* const features = tile.features + threadIdx.x * tile.padded;
  for (int i = 0; i < tile.padded; ++i) features[i] = 0.f;
  if (place >= 0 && place < a.places) {
    const int64_t b = quotient(place, a.length), t = place - b * a.length.divisor;
    const int code = min(static_cast<int>(read_global(a.codes + place)), kCodes - 1);
    line.place = place;
    line.position = a.positions + t * a.position_stride;
    line.mask = a.mask ? read_global(a.mask + place) : 1.f;
    line.code = a.complement && code < 4 ? 3 - code : code;
    features[line.code] = 1.f;
    const S* const signals = static_cast<const S*>(a.signals) + b * a.signal_batch + t * a.signal_time;
    for (int i = 0; i < a.tracks; ++i) features[kCodes + i] = load_scalar(signals + i * a.signal_track);
  }
  tile.lines[threadIdx.x] = line;
}

// The channels of a block, and what a thread has of them.
template <bool kVectors>
struct Part : Channels<kVectors> {
  int slot;       // group of the thread
  int64_t begin;  // first channel of the segment

  __device__ __forceinline__ Part(const GpuEmbed& a, int group, int segment)
      : Channels<kVectors>(threadIdx.x % group, group, min(a.dim - segment * kSegment, kSegment)),
        slot(threadIdx.x / group),
        begin(int64_t(segment) * kSegment) {}
};

// The unmasked channels of lines first, first + step, ...
template <int kRows, bool kVectors>
__device__ __forceinline__ void values(const GpuEmbed& a, const Tile& tile, int first, int step, const Part<kVectors>& c,
                                       float (&x)[kRows][kItems]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const Line& line = tile.lines[first + r * step];
    load_row(a.table + int64_t(line.code) * a.dim + c.begin, c, x[r]);
    if (a.positions) {
      float position[kItems];
      load_row(line.position + c.begin, c, position);
#pragma unroll
      for (int i = 0; i < kItems; ++i) x[r][i] += position[i];
    }
  }
#pragma unroll 1
  for (int track = 0; track < a.tracks; ++track) {
    float weight[kItems];
    load_row(a.weight + int64_t(track) * a.dim + c.begin, c, weight);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float signal = tile.of(first + r * step)[kCodes + track];
#pragma unroll
      for (int i = 0; i < kItems; ++i) x[r][i] += signal * weight[i];
    }
  }
}

// Grid: tiles, times segments.
template <class T, class S, bool kVectors>
__global__ void __launch_bounds__(kEmbedThreads, kVectors ? 3 : 1) embed_fwd_kernel(const __grid_constant__ GpuEmbed a, int group, int segments) {
  S2E_DYNAMIC_SHARED(unsigned char, shared);
  const Tile tile(shared, a.tracks);
  const Part<kVectors> c(a, group, blockIdx.x % segments);
  const int slots = kEmbedThreads / group;
  const int64_t row = int64_t(blockIdx.x / segments) * kEmbedThreads + threadIdx.x;
  const bool is = row < a.rows;
  const int64_t place = is && a.indices ? read_global(a.indices + row) : row;
  look_up<S>(a, tile, is ? row : -1, place, place < 0 ? bit_cast<float>(0x7fc00000) : 0.f);
  __syncthreads();
#pragma unroll 1
  for (int step = 0; step < group; step += kForwardRows) {
    const int first = step * slots + c.slot;
    float x[kForwardRows][kItems];
    values(a, tile, first, slots, c, x);
#pragma unroll
    for (int r = 0; r < kForwardRows; ++r) {
      const Line& line = tile.lines[first + r * slots];
      if (line.row < 0) continue;
#pragma unroll
      for (int i = 0; i < kItems; ++i) x[r][i] = line.place < 0 ? line.mask : x[r][i] * line.mask;
      store_row(static_cast<T*>(a.data) + line.row * a.stride + c.begin, c, x[r]);
    }
  }
}

// The sum over the lanes of a group, which are those of `lanes`; in all of them.
__device__ __forceinline__ float group_total(float x, int group, unsigned lanes) {
  for (int step = group / 2; step > 0; step /= 2) {
    x += __shfl_xor_sync(lanes, x, step);
  }
  return x;
}

__device__ __forceinline__ float dot(const float (&x)[kItems], const float (&y)[kItems]) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kItems; ++i) sum += x[i] * y[i];
  return sum;
}

// Gradients of the mask and the signals of a line, sums over its channels. g: the gradient of its row.
template <bool kVectors>
__device__ __forceinline__ void place_gradients(const GpuEmbed& a, const Tile& tile, int at, const Part<kVectors>& c,
                                                const float (&g)[kItems], int group, int segment) {
  const unsigned lanes = (group == 32 ? kAllLanes : (1u << group) - 1) << (threadIdx.x % 32 / group * group);
  const bool writes = threadIdx.x % group == 0;
  const Line& line = tile.lines[at];
  const int64_t place = segment * a.places + line.place;
  if (a.dmask) {
    float x[1][kItems];
    values(a, tile, at, 0, c, x);
    const float total = group_total(dot(g, x[0]), group, lanes);
    if (writes) a.dmask[place] = total;
  }
  if (!a.dsignals) return;
#pragma unroll 1
  for (int track = 0; track < a.tracks; ++track) {
    float weight[kItems];
    load_row(a.weight + int64_t(track) * a.dim + c.begin, c, weight);
    const float total = group_total(dot(g, weight), group, lanes);
    if (writes) a.dsignals[place * a.tracks + track] = total * line.mask;
  }
}

// Grid: embed_parts blocks for each chunk of features and each segment of channels, each with `turns` units a group. A step
// is a row of a unit: with dpositions a unit has one for each of the batch.
template <class T, class S, bool kVectors>
__global__ void __launch_bounds__(kEmbedThreads, kVectors ? 2 : 1)
    embed_bwd_kernel(const __grid_constant__ GpuEmbed a, int group, int segments, int chunks, int turns) {
  S2E_DYNAMIC_SHARED(unsigned char, shared);
  const Tile tile(shared, a.tracks);
  const int segment = blockIdx.x % segments, chunk = blockIdx.x / segments % chunks, features = kCodes + a.tracks;
  const int64_t part = blockIdx.x / segments / chunks;
  const Part<kVectors> c(a, group, segment);
  const int slots = kEmbedThreads / group, of_unit = a.dpositions ? static_cast<int>(a.batch) : 1;
  const int64_t first = part * turns * slots;
  const int steps = static_cast<int>(min(int64_t(turns), (a.units - first + slots - 1) / slots)) * of_unit;
  float sums[kFeatures][kItems] = {}, dposition[kItems] = {};
  int64_t unit = first + c.slot;
  int row_of_unit = 0;
#pragma unroll 1
  for (int begin = 0; begin < steps; begin += group) {
    {
      const int step = begin + static_cast<int>(threadIdx.x) / slots, turn = step / of_unit;
      const int64_t u = first + int64_t(turn) * slots + threadIdx.x % slots;
      int64_t row = -1, place = -1;
      if (step < steps && u < a.units) {
        place = a.dpositions ? (step - turn * of_unit) * a.length.divisor + u : a.indices ? read_global(a.indices + u) : u;
        row = !a.dpositions ? u : a.row_at ? read_global(a.row_at + place) : place;
      }
      __syncthreads();  // the tile before has been read
      look_up<S>(a, tile, row, row < 0 ? -1 : place, 0.f);
      __syncthreads();
    }
#pragma unroll 1
    for (int step = 0; step < min(group, steps - begin); ++step) {
      const int at = step * slots + c.slot;
      const Line& line = tile.lines[at];
      if (line.place >= 0) {
        float g[kItems];
        load_row(static_cast<const T*>(a.data) + line.row * a.stride + c.begin, c, g);
        if (chunk == 0) place_gradients(a, tile, at, c, g, group, segment);
#pragma unroll
        for (int i = 0; i < kItems; ++i) g[i] *= line.mask, dposition[i] += g[i];
        const float* const x = tile.of(at) + chunk * kFeatures;
#pragma unroll
        for (int k = 0; k < kFeatures; ++k) {
          const float feature = x[k];
#pragma unroll
          for (int i = 0; i < kItems; ++i) sums[k][i] += feature * g[i];
        }
      }
      if (++row_of_unit < of_unit) continue;
      row_of_unit = 0;
      if (a.dpositions && chunk == 0 && unit < a.units) {
        store_row(a.dpositions + unit * a.dim + c.begin, c, dposition);
      }
      unit += slots;
#pragma unroll
      for (int i = 0; i < kItems; ++i) dposition[i] = 0.f;
    }
  }

  // over the groups of the block, in order
  __shared__ float slot_sums[kEmbedThreads * kItems];
#pragma unroll
  for (int k = 0; k < kFeatures; ++k) {
    const int feature = chunk * kFeatures + k;
    if (feature >= features) break;
    __syncthreads();  // the feature before has been read
#pragma unroll
    for (int i = 0; i < kItems; ++i) slot_sums[c.slot * group * kItems + c.at(i)] = sums[k][i];
    __syncthreads();
    for (int channel = threadIdx.x; channel < c.dim; channel += kEmbedThreads) {
      float sum = 0.f;
#pragma unroll 1
      for (int i = 0; i < slots; ++i) {
        sum += slot_sums[i * group * kItems + channel];
      }
      a.sums[(part * features + feature) * a.dim + c.begin + channel] = sum;
    }
  }
}

template <class T, class S, bool kVectors>
void forward(const GpuEmbed& a, cudaStream_t stream) {
  const int segments = embed_segments(a.dim);
  launch(embed_fwd_kernel<T, S, kVectors>, embed_blocks(a.rows, kEmbedThreads) * segments, kEmbedThreads, tile_bytes(a.tracks), stream,
         a, embed_group(a.dim), segments);
}

template <class T, class S, bool kVectors>
void backward(const GpuEmbed& a, cudaStream_t stream) {
  const int segments = embed_segments(a.dim), chunks = embed_chunks(a.tracks);
  launch(embed_bwd_kernel<T, S, kVectors>, embed_parts(a) * chunks * segments, kEmbedThreads, tile_bytes(a.tracks), stream, a,
         embed_group(a.dim), segments, chunks, embed_turns(a));
}

}  // namespace

template <class T, class S>
void gpu_embed_forward(const GpuEmbed& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.vectors ? forward<T, S, true>(a, s) : forward<T, S, false>(a, s);
}

template <class T, class S>
void gpu_embed_backward(const GpuEmbed& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  a.vectors ? backward<T, S, true>(a, s) : backward<T, S, false>(a, s);
}

#define S2E_EMBED(T, S)                                           \
  template void gpu_embed_forward<T, S>(const GpuEmbed&, void*);  \
  template void gpu_embed_backward<T, S>(const GpuEmbed&, void*);

}  // namespace seq2exp
