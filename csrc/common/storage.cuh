// 16-bit storage types and their conversion to and from float, one value or 16 bytes at a time.
#pragma once
#include "common/cuda.cuh"

#ifndef SEQ2EXP_EMULATOR
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace seq2exp {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

namespace {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float to_float(float16 x) {
#ifdef SEQ2EXP_EMULATOR
  return static_cast<float>(bit_cast<_Float16>(x.bits));
#else
  return __half2float(bit_cast<__half>(x.bits));
#endif
}

// The two values of a 32-bit word.
template <class T>
__device__ __forceinline__ void unpack(uint32_t word, float& low, float& high);
template <>
__device__ __forceinline__ void unpack<bfloat16>(uint32_t word, float& low, float& high) {
  low = bit_cast<float>(word << 16);
  high = bit_cast<float>(word & 0xffff0000u);
}
template <>
__device__ __forceinline__ void unpack<float16>(uint32_t word, float& low, float& high) {
  low = to_float(float16{static_cast<uint16_t>(word)});
  high = to_float(float16{static_cast<uint16_t>(word >> 16)});
}

// Rounds to nearest, ties to even; NaN stays NaN.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) {
#ifdef SEQ2EXP_EMULATOR
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
#else
  return bit_cast<bfloat16>(__float2bfloat16_rn(x));
#endif
}
template <>
__device__ __forceinline__ float16 from_float<float16>(float x) {
#ifdef SEQ2EXP_EMULATOR
  return bit_cast<float16>(static_cast<_Float16>(x));
#else
  return bit_cast<float16>(__float2half_rn(x));
#endif
}

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

// Pointers that went through shared memory have lost that they point to global memory; these say it.
template <class V>
__device__ __forceinline__ V read_global(const V* p) {
#ifdef SEQ2EXP_EMULATOR
  return *p;
#else
  return __ldg(p);
#endif
}
template <class V>
__device__ __forceinline__ void write_global(V* p, V x) {
#ifdef SEQ2EXP_EMULATOR
  *p = x;
#else
  __stwb(p, x);
#endif
}

// 16 bytes as floats: 4 of float, 8 of the 16-bit types.
template <class T>
constexpr int kVector = 16 / sizeof(T);

template <class T>
__device__ __forceinline__ void load_vector(const T* p, float* x) {
  const uint4 raw = read_global(reinterpret_cast<const uint4*>(p));
  if constexpr (sizeof(T) == 4) {
    x[0] = bit_cast<float>(raw.x), x[1] = bit_cast<float>(raw.y), x[2] = bit_cast<float>(raw.z), x[3] = bit_cast<float>(raw.w);
  } else {
    unpack<T>(raw.x, x[0], x[1]), unpack<T>(raw.y, x[2], x[3]), unpack<T>(raw.z, x[4], x[5]), unpack<T>(raw.w, x[6], x[7]);
  }
}

template <class T>
__device__ __forceinline__ void store_vector(T* p, const float* x) {
  uint4 raw;
  if constexpr (sizeof(T) == 4) {
    raw = {bit_cast<uint32_t>(x[0]), bit_cast<uint32_t>(x[1]), bit_cast<uint32_t>(x[2]), bit_cast<uint32_t>(x[3])};
  } else {
    raw = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])};
  }
  write_global(reinterpret_cast<uint4*>(p), raw);
}

template <class T>
__device__ __forceinline__ float load_scalar(const T* p) {
  if constexpr (sizeof(T) == 4) {
    return read_global(p);
  } else {
    return to_float(T{read_global(reinterpret_cast<const uint16_t*>(p))});
  }
}

template <class T>
__device__ __forceinline__ void store_scalar(T* p, float x) {
  if constexpr (sizeof(T) == 4) {
    write_global(p, x);
  } else {
    write_global(reinterpret_cast<uint16_t*>(p), from_float<T>(x).bits);
  }
}

}  // namespace
}  // namespace seq2exp
