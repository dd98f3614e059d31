// SPDX-License-Identifier: Apache-2.0
// Vectors of the instruction set that the including file is compiled for.
//
// Every kernels_<isa>.cpp defines ISA, VECTOR_BYTES and VECTOR_REGISTERS, switches its instruction
// set on and includes the kernels, so that one binary serves every processor. The kernels use no
// templates of the standard library: the linker might keep a copy that needs newer instructions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "inline.h"

namespace acmix::ISA {

template <typename T>
struct Simd {
  static constexpr int64_t lanes = VECTOR_BYTES / sizeof(T);
  typedef T Vec __attribute__((vector_size(VECTOR_BYTES)));
  // The same without a demand on its address.
  typedef T Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

template <typename T>
using Vec = typename Simd<T>::Vec;

template <typename T>
INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(from);
}

// Keeps a loaded value in a register. Compilers would rather load it again for each of its uses,
// which takes longer than the arithmetic where it lies across two cache lines.
template <typename V>
INLINE V held(V value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
  return value;
}

template <typename T>
INLINE void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(to) = value;
}

// Only the first `count` lanes.
template <typename T>
INLINE void store(T* to, Vec<T> value, int64_t count) {
  if (count >= Simd<T>::lanes) {
    store(to, value);
  } else {
    std::memcpy(to, &value, count * sizeof(T));
  }
}

// Only the first `count` elements; the other lanes are 0.
template <typename T>
INLINE Vec<T> load(const T* from, int64_t count) {
  if (count >= Simd<T>::lanes) return load(from);
  Vec<T> value{};
  std::memcpy(&value, from, count * sizeof(T));
  return value;
}

template <typename T>
INLINE T sum(Vec<T> value) {
  T total = 0;
  for (int64_t lane = 0; lane < Simd<T>::lanes; ++lane) total += value[lane];
  return total;
}

constexpr double LOG2_E = 1.4426950408889634;

// 2^x for x <= 0 or barely above, results below 2^-126 rounded up to it.
INLINE Vec<float> exp2(Vec<float> x) {
  typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  const Vec<float> low = Vec<float>{} - 126.0f;
  x = x < low ? low : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the representation.
  const Vec<float> shifted = x + 12582912.0f;
  const Vec<float> f = x - (shifted - 12582912.0f);
  // Minimax polynomial of degree 5 on [-1/2, 1/2], relative error 9e-8.
  Vec<float> p = f * 0.001326472731307149f + 0.009671512991189957f;
  p = p * f + 0.05550733581185341f;
  p = p * f + 0.24022242426872253f;
  p = p * f + 0.6931470036506653f;
  p = p * f + 1.0f;
  // The product keeps every NaN one, whatever its bits; a sum of the bits would not.
  constexpr uint32_t one = 0x3f800000;
  return p * (Vec<float>)(((Bits)shifted << 23) + one);
}

INLINE Vec<double> exp2(Vec<double> x) {
  for (int64_t lane = 0; lane < Simd<double>::lanes; ++lane) x[lane] = std::exp2(x[lane]);
  return x;
}

// For positive numbers that are not subnormal. A NaN stays one.
INLINE Vec<float> log2(Vec<float> x) {
  typedef int32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  // x = 2^exponent * (1 + f), with 1 + f from sqrt(1/2) to sqrt(2).
  constexpr int32_t sqrt_half = 0x3f3504f3;
  const Bits exponent = ((Bits)x - sqrt_half) >> 23;
  const Vec<float> f = (Vec<float>)((Bits)x - (exponent << 23)) - 1.0f;
  // Minimax polynomial of degree 8 of log2(1 + f) / f, error 4e-8.
  Vec<float> p = f * 0.1292640864849091f - 0.2089337259531021f;
  p = p * f + 0.21521228551864624f;
  p = p * f - 0.23867569863796234f;
  p = p * f + 0.2879391014575958f;
  p = p * f - 0.3607162535190582f;
  p = p * f + 0.4809102714061737f;
  p = p * f - 0.7213472127914429f;
  p = p * f + 1.4426950216293335f;
  const Vec<float> result = p * f + __builtin_convertvector(exponent, Vec<float>);
  return result + (x - x);
}

INLINE Vec<double> log2(Vec<double> x) {
  for (int64_t lane = 0; lane < Simd<double>::lanes; ++lane) x[lane] = std::log2(x[lane]);
  return x;
}

template <typename T>
INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return a < b ? b : a;
}

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Distance of consecutive rows in scratch memory: an odd number of cache lines, so that a column
// of rows does not compete for the same few places of the cache.
template <typename T>
constexpr int64_t row_distance(int64_t width) {
  constexpr int64_t line = 64 / sizeof(T);
  return (round_up(width, line) / line | 1) * line;
}

// Memory of one thread in parts, each from the start of a cache line.
template <typename T>
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // `allocate` sets *part to `size` elements, filled with zeros.
  void add(T** part, int64_t size) {
    parts_[count_] = part;
    begins_[count_++] = total_;
    total_ += round_up(size, 64 / sizeof(T));
  }

  void allocate() {
    allocate_uninitialized();
    std::memset(data_, 0, total_ * sizeof(T));
  }

  void allocate_uninitialized() {
    // The size must be a multiple of the alignment, whatever the size of T.
    data_ = static_cast<T*>(std::aligned_alloc(64, round_up(total_ * sizeof(T), 64)));
    if (data_ == nullptr) throw std::bad_alloc();
    for (int i = 0; i < count_; ++i) *parts_[i] = data_ + begins_[i];
  }

 private:
  static constexpr int MOST = 16;
  T* data_ = nullptr;
  T** parts_[MOST];
  int64_t begins_[MOST], total_ = 0;
  int count_ = 0;
};

}  // namespace acmix::ISA
