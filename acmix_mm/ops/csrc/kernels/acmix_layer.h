// SPDX-License-Identifier: Apache-2.0
// The interface between the torch binding and the kernels of a whole ACmix layer.
#pragma once

#include "neighborhood_attention.h"
#include "pointwise_conv.h"
#include "shift_conv.h"

namespace acmix {

// Where queries, keys and values come from.
template <typename T>
struct LayerInput {
  Pointwise<T> projection;  // from the channels of x to those of q, k and v, without results
  int64_t reach;            // number of rows above and below a band that it reads
};

// The maps q, k and v of `attention` and `convolution` exist in scratch memory only: the kernels
// set their pointers. Both have bands of the same rows, and write the same result.
template <typename T>
struct LayerForward {
  LayerInput<T> input;
  AttentionForward<T> attention;
  Convolution<T> convolution;
};

template <typename T>
struct LayerBackward {
  LayerInput<T> input;
  AttentionBackward<T> attention;
  Convolution<T> convolution;  // adds to the gradients of q, k and v
  ConvolutionWeightGrad<T> weight_grad;
};

// Compute the bands [begin, end) of all images, for all heads. After `backward`, the halos of the
// attention remain to be added.
template <typename T>
struct LayerKernels {
  void (*forward)(const LayerForward<T>&, int64_t begin, int64_t end);
  void (*backward)(const LayerBackward<T>&, int64_t begin, int64_t end);
};

}  // namespace acmix
