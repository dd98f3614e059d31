// SPDX-License-Identifier: Apache-2.0
// The interface between the torch binding and the kernels of the shifted convolution.
//
// It is a convolution with few inputs and outputs in each of many groups. The inputs of group g are
// channel g of every map, which is read in place.
#pragma once

#include "window.h"

namespace acmix {

// Number of groups whose channels fill a cache line where they are next to each other. It is a
// multiple of the size of a vector.
template <typename T>
constexpr int64_t LINE = 64 / sizeof(T);

// Computes the result or, with the kernels rotated by 180 degrees, the gradient of the maps.
template <typename T>
struct Convolution {
  BandedShape shape;  // its channels are the inputs
  int64_t outputs;    // of each group
  // Inputs stand `spread` pixels apart with zeros between: the gradient of a strided convolution.
  int64_t spread;
  // The last input is 1 inside the map and 0 outside: it carries the bias of the maps.
  bool constant;
  bool add;                   // adds to the results instead of overwriting them
  const Maps<const T>* maps;  // one map per input
  const Maps<T>* results;     // one map per output
  // The first position of the first kernel, and the distances to the next in each dimension.
  const T* weight;
  int64_t weight_group, weight_output, weight_input, weight_position;
};

template <typename T>
struct ConvolutionWeightGrad {
  BandedShape shape;
  int64_t outputs;
  bool constant;
  const Maps<const T>*maps, *grads;  // one map per input, and per output
  T* partial;                        // (items, outputs, inputs, k, k): the gradient from each band
};

// There are two sets of kernels. One is vectorized over the columns. The other one is for maps
// whose channels are next to each other, and vectorized over them: every group of its shape stands
// for a line of groups. Their weights are next to each other, too, and so are their gradients:
// `partial` is (items, outputs, inputs, k, k, LINE).
template <typename T>
struct ConvKernels {
  void (*convolve)(const Convolution<T>&, int64_t begin, int64_t end);
  void (*weight_grad)(const ConvolutionWeightGrad<T>&, int64_t begin, int64_t end);
};

}  // namespace acmix
