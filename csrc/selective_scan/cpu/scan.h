// What the torch side (selective_scan.cpp) and the kernels (one translation unit per instruction set) share: plain data.
#pragma once
#include "common/strided.h"

namespace seq2exp {

// Positions between saved states; the backward recomputes so many states at a time.
constexpr int64_t SCAN_CHUNK = 256;
// Positions that are read and written at a time.
constexpr int64_t SCAN_TILE = 64;

// "Position" k below counts in scan order: time t = k, or L - 1 - k when reverse.
struct ScanArgs {
  int64_t batch, dim, state, length;
  int64_t groups;              // blocks of channels that share both B and C: lcm(groups_b, groups_c)
  int64_t groups_b, groups_c;
  bool softplus, reverse;
  const int64_t* starts;       // (sequences + 1) first positions of the sequences, then L
  int64_t sequences;           // per batch row
  Strided u, z, B, C, out;
  Strided delta;               // absent: delta = dt_proj low
  Strided low;                 // (batch, rank, L)
  const float* dt_proj;        // (dim, rank)
  int64_t rank;                // 0 with delta
  Strided add;                 // added to y before the gate; may be absent
  const float *A, *D, *bias;   // (dim, state), (dim), (dim); D and bias may be null
  float* last_state;           // (batch * sequences, dim, state); sequences in memory order
  float* states;               // (batch, chunks, state, dim): state at the first position of each chunk; null: not saved
  // backward only
  Strided grad, du, ddelta, dB, dC;
  Strided dz;                    // where z is; may be absent
  Strided y;                     // the output before the gate, without `add`, or after it (gated); may be absent
  bool gated;
  float *partial_b, *partial_c;  // (vectors, span, padded state): sums over the channels of one vector
  int64_t span;                  // positions per call of backward, a multiple of SCAN_CHUNK
  float* carry;                  // (vectors, padded state, width): adjoint handed from a span to the one before
  double *sum_a, *sum_d, *sum_bias;  // (vectors, padded state, width), (vectors, width), (vectors, width)
};

// Channels are cut into vectors of `width`; vectors never straddle a group. Vector v = ((batch * groups + group) * n + j).
struct ScanKernels {
  const char* name;
  int64_t width;
  int64_t (*forward_scratch)(const ScanArgs&);   // floats of scratch a thread needs
  int64_t (*backward_scratch)(const ScanArgs&);
  void (*forward)(const ScanArgs&, int64_t vector_begin, int64_t vector_end, float* scratch);
  // positions [begin, end), begin a multiple of SCAN_CHUNK; spans are called from the last to the first
  void (*backward)(const ScanArgs&, int64_t begin, int64_t end, int64_t vector_begin, int64_t vector_end, float* scratch);
  // adds the partial sums of [begin, end) in a fixed order; tasks count (batch, group, chunk of the span)
  void (*reduce_b)(const ScanArgs&, int64_t begin, int64_t end, int64_t task_begin, int64_t task_end, float* scratch);
  void (*reduce_c)(const ScanArgs&, int64_t begin, int64_t end, int64_t task_begin, int64_t task_end, float* scratch);
};

const ScanKernels* scan_kernels_portable();
#ifdef SEQ2EXP_X86
const ScanKernels* scan_kernels_avx2();
const ScanKernels* scan_kernels_avx512();
#endif

}  // namespace seq2exp
