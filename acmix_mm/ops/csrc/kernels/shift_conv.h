// SPDX-License-Identifier: Apache-2.0
// What the torch binding and the kernels of the grouped convolution share.
#pragma once

#include "window.h"

namespace acmix {

// A convolution with few inputs and outputs in each of many groups. The inputs of group g are
// channel g of every map, read where they are.
struct ConvShape : Window {
  int64_t batch, groups, inputs, outputs;
  int64_t height, width;                // of the inputs
  int64_t result_height, result_width;  // of the outputs

  INLINE int64_t band_rows() const {
    return acmix::band_rows(result_height, inputs * stride * (width + 2 * padding()));
  }
  INLINE int64_t bands() const { return ceil_div(result_height, band_rows()); }
  INLINE int64_t items() const { return batch * groups * bands(); }
};

// Serves the result and, with turned kernels, the gradient of the maps.
template <typename T>
struct Convolution {
  ConvShape shape;
  // Inputs stand `spread` pixels apart with zeros between: the gradient of a strided convolution.
  int64_t spread;
  // The last input is 1 inside the map and 0 outside: it carries the bias of the maps.
  bool constant;
  const Maps<const T>* maps;  // a table: one map each
  const Maps<T>* results;     // likewise
  // Distances in the weights, which begin at the first position of the first kernel.
  const T* weight;
  int64_t weight_group, weight_output, weight_input, weight_position;
};

template <typename T>
struct ConvolutionWeightGrad {
  ConvShape shape;
  bool constant;
  const Maps<const T>*maps, *grads;  // tables: one map each
  T* partial;                        // (items, outputs, inputs, k, k): the share of each band
};

template <typename T>
struct ConvKernels {
  void (*convolve)(const Convolution<T>&, int64_t begin, int64_t end);
  void (*weight_grad)(const ConvolutionWeightGrad<T>&, int64_t begin, int64_t end);
};

}  // namespace acmix
