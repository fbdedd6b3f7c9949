// What the torch side (embed.cu) and the kernels (one translation unit per storage type of the output) share: plain data.
#pragma once
#include <stdint.h>

#include "common/division.h"
#include "common/items.h"

namespace seq2exp {

constexpr int kCodes = 5;           // A C G T N
constexpr int kFeatures = 8;        // of a chunk: a feature is a code or a signal, a thread sums so many at once
constexpr int kEmbedThreads = 256;  // of a block, and lines of a tile
constexpr int kSegment = 256;       // channels of a block: of a warp's row at most
constexpr int kForwardRows = 4;     // of a thread at once

struct GpuEmbed {
  int64_t rows, places;             // places = batch * length
  Divider length;
  int dim, tracks;
  bool complement;
  bool vectors;                     // all rows of channels begin at 16-byte words, dim is a multiple of kItems
  const uint8_t* codes;             // (batch, length)
  const float *table, *weight;      // (kCodes, dim), (tracks, dim)
  const void* signals;              // (batch, length, tracks) with these strides, in elements
  int64_t signal_batch, signal_time, signal_track;
  const float* positions;           // (length, dim), may be null
  int64_t position_stride;
  const float* mask;                // (batch, length), may be null
  const int64_t* indices;           // (rows), may be null
  void* data;                       // (rows, dim): the output, or its gradient
  int64_t stride;
  // backward; a unit is a row, or with dpositions a position, which has a row for each of the batch
  int64_t units, batch;
  const int64_t* row_at;            // (places): inverse of indices, where there are both those and dpositions
  float* sums;                      // (parts, kCodes + tracks, dim): of the masked gradient, by feature
  float *dpositions, *dmask, *dsignals;  // (length, dim), (segments, places), (segments, places, tracks); may be null
};

inline int64_t embed_blocks(int64_t n, int64_t each) { return (n + each - 1) / each; }

// Threads of a row, a power of two, and rows that a block has at once.
inline int embed_group(int dim) {
  const int lanes = lanes_of(dim < kSegment ? dim : kSegment);
  return lanes < kForwardRows ? kForwardRows : lanes;
}
inline int embed_slots(int dim) { return kEmbedThreads / embed_group(dim); }
inline int embed_segments(int dim) { return static_cast<int>(embed_blocks(dim, kSegment)); }
inline int embed_chunks(int tracks) { return static_cast<int>(embed_blocks(kCodes + tracks, kFeatures)); }

// Units that each group of the backward takes in turn, and blocks for each chunk and segment: from shapes alone, hence so
// are the bits.
inline int embed_turns(const GpuEmbed& a) {
  constexpr int64_t blocks = 1024, most = 64;  // enough for a GPU; enough for sums to be worth their while
  constexpr int64_t floats = 1 << 24;          // of all sums, or little more
  const int64_t each = embed_blocks(a.units, blocks * embed_slots(a.dim));
  const int64_t fewest = embed_blocks(a.units * (kCodes + a.tracks) * a.dim, floats * embed_slots(a.dim));
  const int64_t wanted = each < most ? each : most;
  return static_cast<int>(wanted > fewest ? wanted : fewest);
}
inline int64_t embed_parts(const GpuEmbed& a) { return embed_blocks(a.units, int64_t(embed_turns(a)) * embed_slots(a.dim)); }

// T: storage of the output and its gradient. S: of the signals. float, bfloat16 or float16. `stream` is a cudaStream_t.
template <class T, class S>
void gpu_embed_forward(const GpuEmbed&, void* stream);
template <class T, class S>
void gpu_embed_backward(const GpuEmbed&, void* stream);

}  // namespace seq2exp
