// SPDX-License-Identifier: Apache-2.0
// The kernels compiled for each instruction set, and the choice among them.
#pragma once

#include <ATen/Version.h>

#include "kernels/neighborhood_attention.h"
#include "kernels/pointwise_conv.h"
#include "kernels/shift_conv.h"

namespace acmix {

// Defined in kernels.h, for float and double.
#define ACMIX_DECLARE(isa)                 \
  namespace isa {                          \
  template <typename T>                    \
  AttentionKernels<T> attention_kernels(); \
  template <typename T>                    \
  ConvKernels<T> conv_kernels();           \
  template <typename T>                    \
  PointwiseKernels<T> pointwise_kernels(); \
  }

// What torch's own kernels use on this processor; ATEN_CPU_CAPABILITY overrides it for both.
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
PointwiseKernels<T> pointwise_kernels() {
  ACMIX_CHOOSE(pointwise_kernels)
}

#undef ACMIX_DECLARE
#undef ACMIX_CHOOSE

}  // namespace acmix
