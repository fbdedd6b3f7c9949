// What the torch side (gather.cu) and the kernels (select.cu; rows.cuh, one translation unit per storage type) share: plain data.
#pragma once
#include <stdint.h>

namespace seq2exp {

constexpr int kGatherThreads = 256;  // of a block
constexpr int kSelectItems = 8;      // bases of a thread
constexpr int kSelectTile = kGatherThreads * kSelectItems;
constexpr int kUnpackTurns = 8;      // rows of a group of lanes

// (batch, L) of a storage type: 0 float, 1 bfloat16, 2 float16. Strides in elements. Positions below `length` are in the
// first row: of tensors whose rows follow one another it is all of them.
struct GpuMarks {
  void* data;  // null: absent
  int storage;
  int64_t length, batch, time;
};

// (batch, L, d), or packed (total, d) as one row.
struct GpuRows {
  void* data;
  int64_t length, batch, time, channel;
};

struct GpuSelect {
  GpuMarks mask;
  int64_t batch, length, tiles;  // tiles of a row
  int64_t* offsets;              // (batch * tiles + 1): how many are selected before each tile, and in all
  int64_t* indices;              // (size)
  int64_t* cu_seqlens;           // (batch + 1), padded (batch + 2)
  int64_t size;
  bool padded;                   // with a capacity, which is size
};

struct GpuGather {
  int64_t total, bases, dim;
  const int64_t* indices;  // (total), ascending
  bool vectors;            // all rows begin at 16-byte words, dim is a multiple of what they hold
  GpuMarks mask;           // absent: 1 everywhere
  GpuRows dense;           // pack: read; unpack: x where there is a mask
  GpuRows packed;          // unpack: read
  void* out;               // pack (total, d); unpack (bases, d)
  void* grad_mask;         // (bases) in the mask's storage type; unpack with a mask
};

void gpu_select_count(const GpuSelect&, void* stream);
void gpu_select_place(const GpuSelect&, void* stream);

// T: storage of x and values. float, bfloat16 or float16. `stream` is a cudaStream_t.
template <class T>
void gpu_pack(const GpuGather&, void* stream);
template <class T>
void gpu_unpack(const GpuGather&, void* stream);

}  // namespace seq2exp
