// SPDX-License-Identifier: Apache-2.0
// What the torch binding and the kernel of the 1x1 convolution share.
#pragma once

#include <cstdint>

#include "inline.h"

namespace acmix {

// Number of pixels of a block. With up to 512 channels, a block leaves most of the second-level
// cache to the weights. With fewer than 64 pixels, it would not fill the vector registers.
INLINE int64_t pointwise_block(int64_t channels) {
  constexpr int64_t elements = 1 << 15, least = 64;
  const int64_t pixels = elements / channels;
  return pixels < least ? least : pixels / least * least;
}

// One channel of a batch of images, whose pixels are contiguous.
template <typename T>
struct Channel {
  T* data;
  int64_t image_stride;
};

// results[o] = bias[o] + sum_c weight[o][c] * sources[c], at every pixel.
template <typename T>
struct Pointwise {
  int64_t batch, pixels, sources_count, results_count;
  int64_t block;  // pixels taken at a time
  const Channel<const T>* sources;
  const Channel<T>* results;
  const T* weight;
  const T* bias;  // null for none

  INLINE int64_t blocks() const { return (pixels + block - 1) / block; }
  INLINE int64_t items() const { return batch * blocks(); }
};

// Runs the blocks [begin, end) of all images.
template <typename T>
struct PointwiseKernels {
  void (*run)(const Pointwise<T>&, int64_t begin, int64_t end);
};

}  // namespace acmix
