// SPDX-License-Identifier: Apache-2.0
// Compiles all kernels for the instruction set that the including file names.

// Before the instruction set is switched on: inline functions of the system stay common code.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(TARGET)
#define STRINGIFY(x) #x
#define PRAGMA(x) _Pragma(STRINGIFY(x))
#if defined(__clang__)
PRAGMA(clang attribute push(__attribute__((target(TARGET))), apply_to = function))
#else
PRAGMA(GCC target(TARGET))
#endif
#endif

#include "acmix_layer_kernels.h"
#include "neighborhood_attention_kernels.h"
#include "pointwise_conv_kernels.h"
#include "shift_conv_kernels.h"
#include "shift_conv_lines_kernels.h"
#include "window_attention_kernels.h"

namespace acmix::ISA {

template <typename T>
AttentionKernels<T> attention_kernels() {
  return {attention_forward<T>, attention_backward<T>, attention_fold_halo<T>};
}

template <typename T>
ConvKernels<T> conv_kernels() {
  return {convolve<T>, convolution_weight_grad<T>};
}

template <typename T>
ConvKernels<T> line_conv_kernels() {
  return {convolve_lines<T>, weight_grad_of_lines<T>};
}

template <typename T>
PointwiseKernels<T> pointwise_kernels() {
  return {pointwise<T>};
}

template <typename T>
LayerKernels<T> layer_kernels() {
  return {layer_forward<T>, layer_backward<T>};
}

template <typename T>
WindowKernels<T> window_kernels() {
  return {window_forward<T>, window_backward<T>};
}

template AttentionKernels<float> attention_kernels<float>();
template AttentionKernels<double> attention_kernels<double>();
template ConvKernels<float> conv_kernels<float>();
template ConvKernels<double> conv_kernels<double>();
template ConvKernels<float> line_conv_kernels<float>();
template ConvKernels<double> line_conv_kernels<double>();
template PointwiseKernels<float> pointwise_kernels<float>();
template PointwiseKernels<double> pointwise_kernels<double>();
template LayerKernels<float> layer_kernels<float>();
template LayerKernels<double> layer_kernels<double>();
template WindowKernels<float> window_kernels<float>();
template WindowKernels<double> window_kernels<double>();

}  // namespace acmix::ISA

#if defined(TARGET) && defined(__clang__)
PRAGMA(clang attribute pop)
#endif
