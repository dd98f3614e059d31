// SPDX-License-Identifier: Apache-2.0
// Chooses the kernels compiled for the processor's instruction set, and runs them on threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <new>
#include <string>

#include "kernels/acmix_layer.h"
#include "kernels/neighborhood_attention.h"
#include "kernels/pointwise_conv.h"
#include "kernels/shift_conv.h"
#include "kernels/window_attention.h"

namespace acmix {

// Defined in kernels/kernels.h, for float and double.
#define ACMIX_DECLARE(isa)                 \
  namespace isa {                          \
  template <typename T>                    \
  AttentionKernels<T> attention_kernels(); \
  template <typename T>                    \
  ConvKernels<T> conv_kernels();           \
  template <typename T>                    \
  ConvKernels<T> line_conv_kernels();      \
  template <typename T>                    \
  PointwiseKernels<T> pointwise_kernels(); \
  template <typename T>                    \
  LayerKernels<T> layer_kernels();         \
  template <typename T>                    \
  WindowKernels<T> window_kernels();       \
  }

// The instruction set that torch's own kernels use. The environment variable ATEN_CPU_CAPABILITY
// overrides it for both.
#if defined(__x86_64__)
#define ACMIX_CHOOSE(kernels)                                     \
  static const std::string capability = at::get_cpu_capability(); \
  if (capability == "AVX512") return avx512::kernels<T>();        \
  if (capability == "AVX2") return avx2::kernels<T>();            \
  return baseline::kernels<T>();
ACMIX_DECLARE(avx2)
ACMIX_DECLARE(avx512)
#else
#define ACMIX_CHOOSE(kernels) return baseline::kernels<T>();
#endif
ACMIX_DECLARE(baseline)

template <typename T>
AttentionKernels<T> attention_kernels() {
  ACMIX_CHOOSE(attention_kernels)
}

template <typename T>
ConvKernels<T> conv_kernels() {
  ACMIX_CHOOSE(conv_kernels)
}

template <typename T>
ConvKernels<T> line_conv_kernels() {
  ACMIX_CHOOSE(line_conv_kernels)
}

template <typename T>
PointwiseKernels<T> pointwise_kernels() {
  ACMIX_CHOOSE(pointwise_kernels)
}

template <typename T>
LayerKernels<T> layer_kernels() {
  ACMIX_CHOOSE(layer_kernels)
}

template <typename T>
WindowKernels<T> window_kernels() {
  ACMIX_CHOOSE(window_kernels)
}

#undef ACMIX_DECLARE
#undef ACMIX_CHOOSE

// Calls `run(begin, end)` for ranges of the items [0, count) on the threads of torch.
template <typename F>
void run_items(const char* op, int64_t count, const F& run) {
  try {
    at::parallel_for(0, count, 1, run);
  } catch (const std::bad_alloc&) {
    TORCH_CHECK(false, op,
                ": not enough memory for the scratch space of the kernels, which grows with the "
                "number of channels and with dilation * kernel_size; use smaller ones");
  }
}

}  // namespace acmix
