// What the torch side (embed.cpp) and the kernels (one translation unit per instruction set) share: plain data.
#pragma once
#include "common/strided.h"

namespace seq2exp {

constexpr int64_t CODES = 5;  // A C G T N

struct EmbedArgs {
  int64_t rows, dim, batch, length, tracks;
  bool complement;
  const uint8_t* codes;            // (batch, length)
  const float *table, *weight;     // (CODES, dim), (tracks, dim)
  Strided signals;                 // (batch, tracks, length)
  const float* positions;          // (length, dim), may be null
  int64_t position_stride;
  const float* mask;               // (batch, length), may be null
  const int64_t* indices;          // (rows), may be null
  void* data;                      // (rows, dim): the output, or its gradient
  Storage storage;
  int64_t stride;
  // backward
  int64_t units, part;             // units: rows, or with dpositions positions, of which a part has so many
  const int64_t* row_at;           // (batch, length): inverse of indices, where there are both those and dpositions
  float* sums;                     // (parts, CODES + tracks, dim): of the masked gradient, by code and by signal
  float *dpositions, *dmask, *dsignals;  // (length, dim), (batch, length), (batch, length, tracks); may be null
};

// Scratch: a float for each track.
struct EmbedKernels {
  void (*forward)(const EmbedArgs&, int64_t row_begin, int64_t row_end, float* scratch);
  void (*backward)(const EmbedArgs&, int64_t part_begin, int64_t part_end, float* scratch);
};

const EmbedKernels* embed_kernels_portable();
#ifdef SEQ2EXP_X86
const EmbedKernels* embed_kernels_avx2();
const EmbedKernels* embed_kernels_avx512();
#endif

}  // namespace seq2exp
