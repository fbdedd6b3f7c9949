// The CPU kernels of select, pack_selected and unpack_selected. All are bound by memory, so one build serves every CPU. Threads
// take whole tiles or rows, none of which depends on how many threads there are. See kernels/gather/README.md.
#define WIDTH 4
#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "common/cpu_tensors.h"
#include "common/vector.h"
#include "gather/tensors.h"

namespace seq2exp {
namespace {

constexpr int64_t TILE = 4096;         // bases of one row of the mask whose selected ones are counted together
constexpr int64_t ELEMENTS = 1 << 15;  // that are worth a thread

int64_t rows_a_thread(int64_t d) { return std::max(ELEMENTS / d, int64_t(1)); }

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// Bits of a floating point number without its sign: 0 where it is 0.
template <class Bits>
bool is_selected(Bits x) {
  return static_cast<Bits>(x << 1) != 0;
}

// The mask in tiles: one after the other over each row.
struct Tiles {
  const Tensor& mask;
  int64_t length = mask.size(1), a_row = ceil_div(length, TILE), all = mask.size(0) * a_row;

  // f(tile, first of its bases in the flattened mask, pointer to it, distance of two, how many), over [begin, end).
  template <class Bits, class F>
  void each(int64_t begin, int64_t end, F f) const {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile / a_row, first = tile % a_row * TILE;
      f(tile, row * length + first, data<Bits>(mask) + row * mask.stride(0) + first * mask.stride(1), mask.stride(1),
        std::min(TILE, length - first));
    }
  }

  // Calls f with an integer as wide as the elements of the mask.
  template <class F>
  void with_bits(F f) const {
    storage(mask, "pack_selected: mask") == Storage::float32 ? f(uint32_t()) : f(uint16_t());
  }
};

// (tiles + 1,): how many are selected before each tile, and in all.
Tensor select_offsets(Tensor mask) {
  STD_TORCH_CHECK(mask.dim() == 2 && mask.numel() > 0, "pack_selected: mask must be (batch, L), not empty");
  const Tiles tiles{mask};
  Tensor offsets = torch::stable::new_empty(mask, {tiles.all + 1}, ScalarType::Long);
  auto* const sums = data<int64_t>(offsets);
  tiles.with_bits([&](auto bits) {
    using Bits = decltype(bits);
    torch::stable::parallel_for(0, tiles.all, ELEMENTS / TILE, [&](int64_t begin, int64_t end) {
      tiles.each<Bits>(begin, end, [&](int64_t tile, int64_t, const Bits* m, int64_t step, int64_t n) {
        int64_t count = 0;
        for (int64_t i = 0; i < n; ++i) count += is_selected(m[i * step]);
        sums[tile + 1] = count;
      });
    });
  });
  sums[0] = 0;
  for (int64_t tile = 0; tile < tiles.all; ++tile) sums[tile + 1] += sums[tile];
  return offsets;
}

// indices (size,) and cu_seqlens; padded: of a selection with a capacity, see kernels/gather/ops.py.
std::tuple<Tensor, Tensor> select_places(Tensor mask, Tensor offsets, int64_t size, bool padded) {
  const Tiles tiles{mask};
  const int64_t batch = mask.size(0), *sums = dense_longs(offsets, "offsets");
  check_shape(offsets, {tiles.all + 1}, "offsets");
  const int64_t total = sums[tiles.all];
  STD_TORCH_CHECK(padded || total == size, "pack_selected: the mask selects ", total, " bases, not ", size);
  Tensor indices = fresh(mask, {size}, ScalarType::Long);
  Tensor cu_seqlens = torch::stable::new_empty(mask, {batch + 1 + padded}, ScalarType::Long);
  auto* const out = data<int64_t>(indices);
  for (int64_t row = 0; row <= batch; ++row) data<int64_t>(cu_seqlens)[row] = std::min(sums[row * tiles.a_row], size);
  if (padded) data<int64_t>(cu_seqlens)[batch + 1] = size;
  if (total > size) {
    std::fill_n(out, size, int64_t(-1));
    return {indices, cu_seqlens};
  }
  tiles.with_bits([&](auto bits) {
    using Bits = decltype(bits);
    torch::stable::parallel_for(0, tiles.all, ELEMENTS / TILE, [&](int64_t begin, int64_t end) {
      tiles.each<Bits>(begin, end, [&](int64_t tile, int64_t first, const Bits* m, int64_t step, int64_t n) {
        int64_t* next = out + sums[tile];
        for (int64_t i = 0; i < n; ++i)
          if (is_selected(m[i * step])) *next++ = first + i;
      });
    });
  });
  std::fill(out + total, out + size, mask.numel());
  return {indices, cu_seqlens};
}

template <Storage S>
struct Kind {
  static constexpr Storage value = S;
};

// Calls f with the storage type of x as a constant.
template <class F>
void with_storage(const Tensor& x, F f) {
  switch (storage(x, "pack_selected: x")) {
    case Storage::float32: return f(Kind<Storage::float32>());
    case Storage::bfloat16: return f(Kind<Storage::bfloat16>());
    case Storage::float16: return f(Kind<Storage::float16>());
  }
}

template <Storage S>
using Element = typename Memory<S>::Element;

// (batch, L, d), or packed (total, d) as one row of a batch, with any strides.
template <Storage S>
struct Rows {
  Element<S>* data;
  int64_t length, batch, time, channel;

  explicit Rows(const Tensor& x)
      : data(static_cast<Element<S>*>(x.data_ptr())),
        length(x.dim() == 3 ? x.size(1) : std::numeric_limits<int64_t>::max()),
        batch(x.dim() == 3 ? x.stride(0) : 0),
        time(x.stride(x.dim() - 2)),
        channel(x.stride(x.dim() - 1)) {}
  Element<S>* at(int64_t i) const { return data + i / length * batch + i % length * time; }
  Vec load(const Element<S>* row, int64_t c, int64_t lanes) const {
    return channel == 1 && lanes == WIDTH ? Memory<S>::load(row + c) : load_some<S>(row + c * channel, channel, lanes);
  }
  // Outputs have adjacent channels.
  static void store(Element<S>* row, int64_t c, int64_t lanes, Vec x) {
    lanes == WIDTH ? Memory<S>::store(row + c, x) : store_some<S>(row + c, 1, lanes, x);
  }
};

// f(channel, how many), WIDTH at a time.
template <class F>
void each_vector(int64_t d, F f) {
  for (int64_t c = 0; c < d; c += WIDTH) f(c, std::min(int64_t(WIDTH), d - c));
}

// The mask, or its gradient, value by value: (batch, L) of any storage type and strides.
class Marks {
 public:
  explicit Marks(const Tensor& x)
      : data_(x.data_ptr()), storage_(seq2exp::storage(x, "pack_selected: mask")), length_(x.size(1)), batch_(x.stride(0)), time_(x.stride(1)) {}
  float operator[](int64_t i) const {
    const int64_t at = i / length_ * batch_ + i % length_ * time_;
    switch (storage_) {
      case Storage::bfloat16: return load_some<Storage::bfloat16>(static_cast<const uint16_t*>(data_) + at, 1, 1)[0];
      case Storage::float16: return load_some<Storage::float16>(static_cast<const uint16_t*>(data_) + at, 1, 1)[0];
      default: return static_cast<const float*>(data_)[at];
    }
  }
  void set(int64_t i, float value) const {  // contiguous
    switch (storage_) {
      case Storage::bfloat16: return store_some<Storage::bfloat16>(static_cast<uint16_t*>(data_) + i, 1, 1, Vec{value});
      case Storage::float16: return store_some<Storage::float16>(static_cast<uint16_t*>(data_) + i, 1, 1, Vec{value});
      default: static_cast<float*>(data_)[i] = value;
    }
  }

 private:
  void* data_;
  Storage storage_;
  int64_t length_, batch_, time_;
};

std::optional<Marks> marks_of(const Optional& mask) { return mask ? std::optional(Marks(*mask)) : std::nullopt; }

// (total, d): the rows of x (batch, L, d) at the indices, times the mask where there is one. Without a place: 0, and NaN at -1
// of a masked one.
Tensor pack_rows(Tensor x, Optional mask, Tensor indices) {
  STD_TORCH_CHECK(x.dim() == 3, "pack_selected: x must be (batch, L, d)");
  if (mask) check_shape(*mask, {x.size(0), x.size(1)}, "mask");
  const int64_t total = indices.numel(), d = x.size(2), bases = x.size(0) * x.size(1), *at = dense_longs(indices, "indices");
  const auto marks = marks_of(mask);
  Tensor values = fresh(x, {total, d});
  with_storage(x, [&](auto kind) {
    constexpr Storage S = decltype(kind)::value;
    const Rows<S> from(x), to(values);
    torch::stable::parallel_for(0, total, rows_a_thread(d), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        auto* const out = to.data + k * d;
        if (at[k] < 0 || at[k] >= bases) {
          const float missing = marks && at[k] == -1 ? std::numeric_limits<float>::quiet_NaN() : 0.f;
          each_vector(d, [&](int64_t c, int64_t n) { to.store(out, c, n, Vec{} + missing); });
          continue;
        }
        const auto* const row = from.at(at[k]);
        const float by = marks ? (*marks)[at[k]] : 1.f;
        each_vector(d, [&](int64_t c, int64_t n) { to.store(out, c, n, from.load(row, c, n) * by); });
      }
    });
  });
  return values;
}

// (batch, L, d): values (total, d) at the indices, times the mask where there is one; zero elsewhere. With x and mask also the
// gradient of the mask (batch, L) where that of its pack is `values`.
std::vector<Tensor> unpack_rows(Tensor values, Tensor indices, Optional x, Optional mask, int64_t batch, int64_t length) {
  STD_TORCH_CHECK(values.dim() == 2 && x.has_value() == mask.has_value(), "unpack_selected: values must be (total, d)");
  const int64_t total = indices.numel(), d = values.size(1), bases = batch * length, *at = dense_longs(indices, "indices");
  check_shape(values, {total, d}, "values");
  std::vector<Tensor> results{fresh(values, {batch, length, d})};
  if (mask) {
    check_shape(*mask, {batch, length}, "mask");
    check_shape(*x, {batch, length, d}, "x");
    STD_TORCH_CHECK(x->scalar_type() == values.scalar_type(), "pack_selected: grad must have the dtype of x");
    results.push_back(fresh(*mask, {batch, length}));
  }
  const auto marks = marks_of(mask), grad_marks = mask ? marks_of(results[1]) : std::nullopt;
  const int64_t mark_bytes = mask ? mask->element_size() : 0;
  with_storage(values, [&](auto kind) {
    constexpr Storage S = decltype(kind)::value;
    const Rows<S> from(values), other(x ? *x : values), to(results[0]);
    torch::stable::parallel_for(0, bases, rows_a_thread(d), [&](int64_t begin, int64_t end) {
      const auto zeros = [&](int64_t first, int64_t last) { std::fill(to.data + first * d, to.data + last * d, Element<S>(0)); };
      if (marks) std::fill_n(data<char>(results[1]) + begin * mark_bytes, (end - begin) * mark_bytes, char(0));
      int64_t done = begin;
      for (const int64_t* i = std::lower_bound(at, at + total, begin); i < at + total && *i < end; ++i) {
        if (*i < done) continue;  // they do not ascend
        zeros(done, *i);
        done = *i + 1;
        const auto* const row = from.at(i - at);
        auto* const out = to.data + *i * d;
        if (!marks) {
          each_vector(d, [&](int64_t c, int64_t n) { to.store(out, c, n, from.load(row, c, n)); });
          continue;
        }
        const float by = (*marks)[*i];
        const auto* const input = other.at(*i);
        Vec products = {};
        each_vector(d, [&](int64_t c, int64_t n) {
          const Vec g = from.load(row, c, n);
          to.store(out, c, n, g * by);
          products += g * other.load(input, c, n);
        });
        grad_marks->set(*i, products[0] + products[1] + products[2] + products[3]);
      }
      zeros(done, end);
    });
  });
  return results;
}

}  // namespace
}  // namespace seq2exp

STABLE_TORCH_LIBRARY_IMPL(seq2exp_native, CPU, m) {
  m.impl("select_offsets", TORCH_BOX(&seq2exp::select_offsets));
  m.impl("select_places", TORCH_BOX(&seq2exp::select_places));
  m.impl("pack_rows", TORCH_BOX(&seq2exp::pack_rows));
  m.impl("unpack_rows", TORCH_BOX(&seq2exp::unpack_rows));
}
