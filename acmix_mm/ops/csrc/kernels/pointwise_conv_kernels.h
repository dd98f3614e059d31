// SPDX-License-Identifier: Apache-2.0
// 1x1 convolution as a matrix product of few rows, the channels, and many columns, the pixels.
//
// A block of pixels of all channels is copied to scratch memory, in slices that a row of registers
// holds. There every loaded vector serves 6 results, so that arithmetic is the limit, not loads.
#pragma once

#include "pointwise_conv.h"
#include "simd.h"

namespace acmix::ISA {

constexpr int RESULTS = 6;
constexpr int VECTORS = VECTOR_REGISTERS >= 32 ? 4 : 2;

template <typename T>
class PointwiseBlock {
  static constexpr int64_t lanes = Simd<T>::lanes;
  static constexpr int64_t slice = VECTORS * lanes;  // pixels
  using V = Vec<T>;

 public:
  explicit PointwiseBlock(const Pointwise<T>& call) : call_(call) {
    scratch_.add(&pixels_, round_up(call.block, slice) * call.sources_count);
    scratch_.allocate_uninitialized();
  }

  // Computes the pixels [first, last) of an image, at most a block.
  void run(int64_t image, int64_t first, int64_t last) {
    image_ = image;
    first_ = first;
    count_ = last - first;
    copy_pixels();
    for (int64_t o = 0; o < call_.results_count; o += RESULTS) {
      for (int64_t x = 0; x < count_; x += slice) {
        switch (call_.results_count - o) {
          case 1:
            multiply<1>(o, x);
            break;
          case 2:
            multiply<2>(o, x);
            break;
          case 3:
            multiply<3>(o, x);
            break;
          case 4:
            multiply<4>(o, x);
            break;
          case 5:
            multiply<5>(o, x);
            break;
          default:
            multiply<RESULTS>(o, x);
            break;
        }
      }
    }
  }

 private:
  const Pointwise<T>& call_;
  Scratch<T> scratch_;
  T* pixels_;  // [slice][channel][pixel]
  int64_t image_, first_, count_;

  // Beyond the last pixel lies what only reaches lanes that are not stored: zeros, since anything
  // else might be slow to multiply. Channels are read one after the other, in long runs, and whole
  // slices as vectors: a call of `memcpy` for each would take longer than the copy.
  void copy_pixels() {
    for (int64_t c = 0; c < call_.sources_count; ++c) {
      const Channel<const T>& source = call_.sources[c];
      const T* from = source.data + image_ * source.image_stride + first_;
      T* to = pixels_ + c * slice;
      int64_t x = 0;
      for (; x + slice <= count_; x += slice, to += slice * call_.sources_count) {
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) store(to + j * lanes, load(from + x + j * lanes));
      }
      if (x == count_) continue;
      std::memcpy(to, from + x, (count_ - x) * sizeof(T));
      std::memset(to + count_ - x, 0, (slice - count_ + x) * sizeof(T));
    }
  }

  template <int R>
  INLINE void multiply(int64_t o, int64_t x) const {
    V total[R][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) {
        total[i][j] = V{} + (call_.bias == nullptr ? T(0) : call_.bias[o + i]);
      }
    }
    const T* pixel = pixels_ + x * call_.sources_count;
    const T* weight = call_.weight + o * call_.sources_count;
    for (int64_t c = 0; c < call_.sources_count; ++c, pixel += slice) {
      V value[VECTORS];
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) value[j] = load(pixel + j * lanes);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const T w = weight[i * call_.sources_count + c];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) total[i][j] += w * value[j];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Channel<T> result = call_.results[o + i];
      T* to = result.data + image_ * result.image_stride + first_ + x;
      const int64_t left = count_ - x;
      if (left >= slice) {
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) store(to + j * lanes, total[i][j]);
        continue;
      }
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) {
        if (left > j * lanes) store(to + j * lanes, total[i][j], left - j * lanes);
      }
    }
  }
};

template <typename T>
void pointwise(const Pointwise<T>& call, int64_t begin, int64_t end) {
  PointwiseBlock<T> block(call);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item % call.blocks() * call.block, next = first + call.block;
    block.run(item / call.blocks(), first, next < call.pixels ? next : call.pixels);
  }
}

}  // namespace acmix::ISA
