// How the threads of a GPU share a row of channels: plain numbers.
#pragma once

namespace seq2exp {

constexpr int kItems = 8;  // channels of a thread

// Threads of a row of so many channels: a power of two.
inline int lanes_of(int dim) {
  int lanes = 1;
  while (lanes * kItems < dim) lanes *= 2;
  return lanes;
}

}  // namespace seq2exp
