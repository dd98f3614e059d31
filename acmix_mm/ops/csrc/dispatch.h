// The kernels compiled for each instruction set, and the choice among them.
#pragma once

#include <ATen/Version.h>

#include "neighborhood_attention.h"

namespace acmix {

#define ACMIX_DECLARE_KERNELS(isa)            \
  namespace isa {                             \
  template <typename T>                       \
  AttentionKernels<T> attention_kernels();    \
  extern template AttentionKernels<float> attention_kernels<float>();   \
  extern template AttentionKernels<double> attention_kernels<double>(); \
  }

ACMIX_DECLARE_KERNELS(baseline)
#if defined(__x86_64__)
ACMIX_DECLARE_KERNELS(avx2)
ACMIX_DECLARE_KERNELS(avx512)
#endif

// What torch's own kernels use on this processor; ATEN_CPU_CAPABILITY overrides it for both.
template <typename T>
AttentionKernels<T> attention_kernels() {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return avx512::attention_kernels<T>();
  if (capability == "AVX2") return avx2::attention_kernels<T>();
#endif
  return baseline::attention_kernels<T>();
}

}  // namespace acmix
