// The convolutions of a mixer, compiled once per instruction set: both directions and silu in one pass over x. Positions in
// the outer loop, channels in the lanes and in the inner loop, so that memory with adjacent channels is read and written as
// it lies; any other layout goes through tiles. A row that lies outside the sequence is a row of zeros.
#pragma once
#include <initializer_list>

#include "bimamba/cpu/conv.h"
#include "common/tile.h"

namespace seq2exp {
namespace {

constexpr int64_t W = WIDTH;
constexpr int64_t HALO = CONV_TAPS - 1;
constexpr int64_t AHEAD = 8;  // positions between fetching a row and using it: rows are too short for hardware to follow in time
constexpr int64_t RING = CONV_TAPS;  // rows kept of the gradient before silu

// Rows of `channels` values, one per position.
template <Storage S>
struct View {
  typename Memory<S>::Element* data;
  int64_t first, time;  // position of the first row; step
  typename Memory<S>::Element* row(int64_t t) const { return data + (t - first) * time; }
};

// A task's block: positions [begin, end) of batch row b, `channels` from `channel` on (`padded` to whole vectors).
struct Block {
  int64_t b, begin, end, channel, channels, padded;
};
Block block_of(const ConvArgs& a, int64_t group, int64_t block) {
  const int64_t per_row = ceil_div(a.length, CONV_BLOCK), begin = block % per_row * CONV_BLOCK, channel = group * CONV_CHANNELS;
  const int64_t end = begin + CONV_BLOCK < a.length ? begin + CONV_BLOCK : a.length;
  const int64_t channels = a.dim - channel < CONV_CHANNELS ? a.dim - channel : CONV_CHANNELS;
  return {block / per_row, begin, end, channel, channels, ceil_div(channels, W) * W};
}

// Scratch of a thread; rows of CONV_CHANNELS.
struct ConvScratch {
  float *zeros, *dx;                          // one row each
  float *taps[2], *ring[2], *sums[2];         // (CONV_SUMS; RING; CONV_SUMS) rows; taps: from the own position outwards, bias
  float *x, *grad[2], *out[2];                // blocks of layouts that are not read in place; dx goes to out[0]
};
constexpr int64_t X_ROWS = CONV_BLOCK + 4 * HALO, GRAD_ROWS = CONV_BLOCK + 2 * HALO;
constexpr int64_t SCRATCH_ROWS = 2 + 2 * (2 * CONV_SUMS + RING) + X_ROWS + 2 * GRAD_ROWS + 2 * CONV_BLOCK;

ConvScratch take_scratch(float* memory) {
  const auto take = [&](int64_t rows) {
    float* p = memory;
    memory += rows * CONV_CHANNELS;
    return p;
  };
  ConvScratch m;
  m.zeros = take(1), m.dx = take(1), m.x = take(X_ROWS);
  for (int i = 0; i < 2; ++i) {
    m.taps[i] = take(CONV_SUMS), m.ring[i] = take(RING), m.sums[i] = take(CONV_SUMS);
    m.grad[i] = take(GRAD_ROWS), m.out[i] = take(CONV_BLOCK);
  }
  memset(m.zeros, 0, sizeof(float) * CONV_CHANNELS);
  return m;
}

void load_taps(const ConvDirection& d, const Block& b, float* taps) {
  memset(taps, 0, sizeof(float) * CONV_SUMS * CONV_CHANNELS);
  for (int64_t c = 0; c < b.channels; ++c) {
    for (int64_t k = 0; k < d.width; ++k) taps[k * CONV_CHANNELS + c] = d.weight[(b.channel + c) * d.width + d.width - 1 - k];
    taps[CONV_TAPS * CONV_CHANNELS + c] = d.bias[b.channel + c];
  }
}

// The rows of x that the taps of position t read.
template <Storage S, int K>
struct TapRows {
  const typename Memory<S>::Element* row[K];
  TapRows(const View<S>& x, int64_t t, int64_t sign, int64_t begin, int64_t end, const float* zeros) {
    for (int k = 0; k < K; ++k) {
      const int64_t s = t + sign * k;
      row[k] = s >= begin && s < end ? x.row(s) : reinterpret_cast<const typename Memory<S>::Element*>(zeros);
    }
  }
};

template <Storage S, int K>
S2E_INLINE Vec before_silu(const TapRows<S, K>& x, const float* taps, int64_t c) {
  Vec sum = load(taps + CONV_TAPS * CONV_CHANNELS + c);
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) sum = load(taps + k * CONV_CHANNELS + c) * Memory<S>::load(x.row[k] + c) + sum;
  return sum;
}

template <Storage S, int K>
void convolve_row(const TapRows<S, K>& x, const float* taps, int64_t n, typename Memory<S>::Element* out) {
  for (int64_t c = 0; c < n; c += W) {
    const Vec pre = before_silu(x, taps, c);
    Memory<S>::store(out + c, pre * sigmoid(pre));
  }
}

// Gradient before silu, and its share in the gradients of taps and bias when SUM.
template <Storage S, int K, bool SUM>
void gradient_row(const TapRows<S, K>& x, const typename Memory<S>::Element* grad, const float* taps, int64_t n, float* out, float* sums) {
  for (int64_t c = 0; c < n; c += W) {
    const Vec pre = before_silu(x, taps, c), q = sigmoid(pre);
    const Vec g = Memory<S>::load(grad + c) * (q * (pre * (splat<Vec>(1.f) - q) + 1.f));
    store(out + c, g);
    if (SUM) {
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        float* sum = sums + k * CONV_CHANNELS + c;
        store(sum, g * Memory<S>::load(x.row[k] + c) + load(sum));
      }
      float* sum = sums + CONV_TAPS * CONV_CHANNELS + c;
      store(sum, g + load(sum));
    }
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};
// Calls f with the number of taps as a constant.
template <class F>
void with_width(int64_t width, F f) {
  if (width == 2) return f(Count<2>());
  if (width == 3) return f(Count<3>());
  f(Count<4>());
}

// Calls f(begin, end, first position of the sequence, its end) for the pieces of sequences in a block.
template <class F>
void for_sequences(const ConvArgs& a, const Block& b, F f) {
  int64_t low = 0, high = a.sequences;  // the last sequence that starts at or before the block
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.starts[middle] <= b.begin ? low : high) = middle;
  }
  for (int64_t i = low; i < a.sequences && a.starts[i] < b.end; ++i) {
    const int64_t begin = a.starts[i] > b.begin ? a.starts[i] : b.begin, end = a.starts[i + 1] < b.end ? a.starts[i + 1] : b.end;
    if (begin < end) f(begin, end, a.starts[i], a.starts[i + 1]);
  }
}

// Fetches the row of a position that is needed soon.
template <Storage S>
void fetch(const View<S>& x, int64_t t, int64_t n) {
  if (!x.data) return;
  const char* row = reinterpret_cast<const char*>(x.row(t));
  for (int64_t i = 0; i < n * static_cast<int64_t>(sizeof(*x.data)); i += 64) __builtin_prefetch(row + i);
}

template <Storage S>
void forward_block(const ConvArgs& a, const Block& b, const View<S>& x, const View<S>* outs, const ConvScratch& m) {
  for_sequences(a, b, [&](int64_t begin, int64_t end, int64_t first, int64_t last) {
    for (int64_t t = begin; t < end; ++t) {
      for (const View<S>& v : {x, outs[0], outs[1]}) fetch(v, t + AHEAD, b.padded);
      for (int i = 0; i < 2; ++i) {
        const ConvDirection& d = a.directions[i];
        if (!d.weight) continue;
        with_width(d.width, [&](auto count) {
          constexpr int K = decltype(count)::value;
          convolve_row<S, K>(TapRows<S, K>(x, t, d.sign, first, last, m.zeros), m.taps[i], b.padded, outs[i].row(t));
        });
      }
    }
  });
}

// dx (+)= the taps of the rows of gradients that lie in the ring.
template <int K>
void spread_row(const float* ring, int64_t t, int64_t sign, const float* taps, int64_t n, bool add, float* dx) {
  const float* row[K];
  for (int k = 0; k < K; ++k) row[k] = ring + ((t - sign * k) & (RING - 1)) * CONV_CHANNELS;
  for (int64_t c = 0; c < n; c += W) {
    Vec sum = add ? load(dx + c) : Vec{};
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) sum = load(taps + k * CONV_CHANNELS + c) * load(row[k] + c) + sum;
    store(dx + c, sum);
  }
}

template <Storage S>
void backward_block(const ConvArgs& a, const Block& b, const View<S>& x, const View<S>* grads, const View<S>& dx, const ConvScratch& m) {
  for (float* sums : m.sums) memset(sums, 0, sizeof(float) * CONV_SUMS * CONV_CHANNELS);
  for_sequences(a, b, [&](int64_t begin, int64_t end, int64_t first, int64_t last) {
    // row t of the ring of direction i
    const auto fill = [&](int i, int64_t t) {
      const ConvDirection& d = a.directions[i];
      float* row = m.ring[i] + (t & (RING - 1)) * CONV_CHANNELS;
      if (t < first || t >= last) {
        memset(row, 0, sizeof(float) * b.padded);
        return;
      }
      with_width(d.width, [&](auto count) {
        constexpr int K = decltype(count)::value;
        const TapRows<S, K> rows(x, t, d.sign, first, last, m.zeros);
        const auto f = t >= begin && t < end ? gradient_row<S, K, true> : gradient_row<S, K, false>;
        f(rows, grads[i].row(t), m.taps[i], b.padded, row, m.sums[i]);
      });
    };
    // dx of t takes rows t - sign k: the newest is `lead` positions on
    const auto lead = [&](int i) { return a.directions[i].sign < 0 ? a.directions[i].width - 1 : 0; };
    for (int i = 0; i < 2; ++i)
      if (a.directions[i].weight)
        for (int64_t k = 1 - a.directions[i].width; k < 0; ++k) fill(i, begin + lead(i) + k);
    for (int64_t t = begin; t < end; ++t) {
      for (const View<S>& v : {x, grads[0], grads[1], dx}) fetch(v, t + AHEAD, b.padded);
      bool add = false;
      for (int i = 0; i < 2; ++i) {
        const ConvDirection& d = a.directions[i];
        if (!d.weight) continue;
        fill(i, t + lead(i));
        with_width(d.width, [&](auto count) {
          spread_row<decltype(count)::value>(m.ring[i], t, d.sign, m.taps[i], b.padded, add, m.dx);
        });
        add = true;
      }
      for (int64_t c = 0; c < b.padded; c += W) Memory<S>::store(dx.row(t) + c, load(m.dx + c));
    }
  });
}

bool in_place(const ConvArgs& a, const Strided& x) { return !x.data || (x.storage == a.x.storage && x.row == 1); }

// Whether a block can be worked on where it lies.
bool in_place(const ConvArgs& a, const Block& b) {
  bool all = b.padded == b.channels && in_place(a, a.x) && in_place(a, a.dx);
  for (const ConvDirection& d : a.directions) all = all && in_place(a, d.out) && in_place(a, d.grad);
  return all;
}

template <Storage S>
View<S> view(const Strided& x, const Block& b) {
  return {x.data ? address<S>(x, b.b, 0, b.channel, 0) : nullptr, 0, x.time};
}

// The rows of positions [begin, end), as far as they exist, in scratch.
typedef View<Storage::float32> Copy;
Copy read_block(const ConvArgs& a, const Strided& x, const Block& b, int64_t begin, int64_t end, float* buffer) {
  if (begin < 0) begin = 0;
  if (end > a.length) end = a.length;
  for (int64_t c = 0; x.data && c < b.padded; c += W)
    read_tile(buffer + c, CONV_CHANNELS, x, b.b, 0, b.channel + c, b.channels - c < W ? b.channels - c : W, begin, end - begin, a.length, false);
  return {buffer, begin, CONV_CHANNELS};
}
void write_block(const ConvArgs& a, const float* buffer, const Strided& x, const Block& b) {
  for (int64_t c = 0; x.data && c < b.padded; c += W)
    write_tile(buffer + c, CONV_CHANNELS, x, b.b, 0, b.channel + c, b.channels - c < W ? b.channels - c : W, b.begin, b.end - b.begin, a.length,
               false);
}

template <Storage S>
void forward_in_place(const ConvArgs& a, const Block& b, const ConvScratch& m) {
  const View<S> outs[2] = {view<S>(a.directions[0].out, b), view<S>(a.directions[1].out, b)};
  forward_block(a, b, view<S>(a.x, b), outs, m);
}

void forward_copied(const ConvArgs& a, const Block& b, const ConvScratch& m) {
  const Copy outs[2] = {{m.out[0], b.begin, CONV_CHANNELS}, {m.out[1], b.begin, CONV_CHANNELS}};
  forward_block(a, b, read_block(a, a.x, b, b.begin - HALO, b.end + HALO, m.x), outs, m);
  for (int i = 0; i < 2; ++i) write_block(a, m.out[i], a.directions[i].out, b);
}

template <Storage S>
void backward_in_place(const ConvArgs& a, const Block& b, const ConvScratch& m) {
  const View<S> grads[2] = {view<S>(a.directions[0].grad, b), view<S>(a.directions[1].grad, b)};
  backward_block(a, b, view<S>(a.x, b), grads, view<S>(a.dx, b), m);
}

void backward_copied(const ConvArgs& a, const Block& b, const ConvScratch& m) {
  const Copy x = read_block(a, a.x, b, b.begin - 2 * HALO, b.end + 2 * HALO, m.x), dx = {m.out[0], b.begin, CONV_CHANNELS};
  const Copy grads[2] = {read_block(a, a.directions[0].grad, b, b.begin - HALO, b.end + HALO, m.grad[0]),
                         read_block(a, a.directions[1].grad, b, b.begin - HALO, b.end + HALO, m.grad[1])};
  backward_block(a, b, x, grads, dx, m);
  write_block(a, m.out[0], a.dx, b);
}

typedef void (*BlockFunction)(const ConvArgs&, const Block&, const ConvScratch&);
constexpr BlockFunction FORWARD[] = {forward_in_place<Storage::float32>, forward_in_place<Storage::bfloat16>, forward_in_place<Storage::float16>};
constexpr BlockFunction BACKWARD[] = {backward_in_place<Storage::float32>, backward_in_place<Storage::bfloat16>,
                                      backward_in_place<Storage::float16>};

void load_group(const ConvArgs& a, const Block& b, const ConvScratch& m) {
  for (int i = 0; i < 2; ++i)
    if (a.directions[i].weight) load_taps(a.directions[i], b, m.taps[i]);
}

void forward(const ConvArgs& a, int64_t task_begin, int64_t task_end, float* memory) {
  const ConvScratch m = take_scratch(memory);
  for (int64_t task = task_begin; task < task_end; ++task) {
    const Block b = block_of(a, task / conv_blocks(a), task % conv_blocks(a));
    if (task == task_begin || task % conv_blocks(a) == 0) load_group(a, b, m);
    (in_place(a, b) ? FORWARD[static_cast<int>(a.x.storage)] : forward_copied)(a, b, m);
  }
}

void add_sums(const ConvArgs& a, const Block& b, int64_t slot, const ConvScratch& m) {
  for (int i = 0; i < 2; ++i) {
    if (!a.directions[i].weight) continue;
    for (int64_t k = 0; k < CONV_SUMS; ++k) {
      double* sums = a.directions[i].sums + (slot * CONV_SUMS + k) * a.dim + b.channel;
      for (int64_t c = 0; c < b.channels; ++c) sums[c] += static_cast<double>(m.sums[i][k * CONV_CHANNELS + c]);
    }
  }
}

void backward(const ConvArgs& a, int64_t task_begin, int64_t task_end, float* memory) {
  const ConvScratch m = take_scratch(memory);
  for (int64_t task = task_begin; task < task_end; ++task) {
    const int64_t group = task / a.slots, slot = task % a.slots, blocks = conv_blocks(a);
    load_group(a, block_of(a, group, 0), m);
    for (int64_t i = slot * blocks / a.slots; i < (slot + 1) * blocks / a.slots; ++i) {
      const Block b = block_of(a, group, i);
      (in_place(a, b) ? BACKWARD[static_cast<int>(a.x.storage)] : backward_copied)(a, b, m);
      add_sums(a, b, slot, m);
    }
  }
}

constexpr ConvKernels KERNELS = {SCRATCH_ROWS * CONV_CHANNELS, forward, backward};

}  // namespace
}  // namespace seq2exp
