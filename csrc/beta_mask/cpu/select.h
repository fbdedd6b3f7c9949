// Which bases of a row are kept: the k largest scores, or those from a threshold on.
#pragma once
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <vector>

namespace seq2exp {
namespace {

// Scores >= 0 as integers of the same order; NaN is the largest.
using Key = uint32_t;
inline Key key(float score) {
  Key k;
  memcpy(&k, &score, sizeof(k));
  return k & 0x7fffffff;
}
constexpr Key KEY_INFINITY = 0x7f800000;

// Maximum over the `window` (odd) keys around each position, fewer at the ends. In tiles of `window` positions (van Herk; Gil
// and Werman): a window is the end of one tile and the start of the next.
inline void max_pool(std::vector<Key>& keys, int64_t window) {
  const int64_t n = static_cast<int64_t>(keys.size()), half = window / 2;
  std::vector<Key> from_start(n + 2 * half);  // of its tile; `half` zeros stand before and behind the keys
  std::copy(keys.begin(), keys.end(), from_start.begin() + half);
  std::vector<Key> to_end(from_start);
  for (int64_t j = 1; j < n + 2 * half; ++j)
    if (j % window) from_start[j] = std::max(from_start[j], from_start[j - 1]);
  for (int64_t j = n + 2 * half - 2; j >= 0; --j)
    if ((j + 1) % window) to_end[j] = std::max(to_end[j], to_end[j + 1]);
  for (int64_t j = 0; j < n; ++j) keys[j] = std::max(to_end[j], from_start[j + window - 1]);
}

// The value at place k (from 1) in descending order, and how many keys equal to it belong to the first k: a radix select over
// 11, 10 and 10 bits. Four histograms, as neighbours often fall into the same bin.
struct Cut {
  Key value;
  int64_t equal;
};
inline Cut find_cut(const std::vector<Key>& keys, int64_t k) {
  constexpr int SHIFT[] = {20, 10, 0}, BINS = 1 << 11;
  std::vector<Key> left;
  const std::vector<Key>* candidates = &keys;
  Key prefix = 0;
  for (int pass = 0; pass < 3; ++pass) {
    static thread_local std::array<std::array<int32_t, BINS>, 4> count;
    for (auto& c : count) c.fill(0);
    const Key mask = pass ? (1 << 10) - 1 : BINS - 1;
    const int64_t n = static_cast<int64_t>(candidates->size());
    const Key* p = candidates->data();
    int64_t j = 0;
    for (; j + 4 <= n; j += 4)
      for (int i = 0; i < 4; ++i) ++count[i][p[j + i] >> SHIFT[pass] & mask];
    for (; j < n; ++j) ++count[0][p[j] >> SHIFT[pass] & mask];
    Key bin = mask;
    for (;; --bin) {
      const int64_t in_bin = int64_t(count[0][bin]) + count[1][bin] + count[2][bin] + count[3][bin];
      if (in_bin >= k) break;
      k -= in_bin;
    }
    prefix |= bin << SHIFT[pass];
    std::vector<Key> next;
    if (pass < 2)
      for (int64_t i = 0; i < n; ++i)
        if ((p[i] >> SHIFT[pass] & mask) == bin) next.push_back(p[i]);
    left = std::move(next);
    candidates = &left;
  }
  return {prefix, k};
}

// selected = 1 for the k largest, the earlier position first among equals, else 0.
inline void select_top(const std::vector<Key>& keys, int64_t k, uint8_t* selected) {
  const int64_t n = static_cast<int64_t>(keys.size());
  if (k == 0) {
    std::fill_n(selected, n, uint8_t(0));
    return;
  }
  const Cut cut = find_cut(keys, k);
  for (int64_t j = 0; j < n; ++j) selected[j] = keys[j] > cut.value;
  int64_t missing = cut.equal;
  for (int64_t j = 0; missing > 0; ++j)
    if (keys[j] == cut.value) selected[j] = 1, --missing;
}

inline void select_from(const std::vector<Key>& keys, float threshold, uint8_t* selected) {
  const Key least = key(threshold);
  for (size_t j = 0; j < keys.size(); ++j) selected[j] = keys[j] >= least && keys[j] <= KEY_INFINITY;
}

}  // namespace
}  // namespace seq2exp
