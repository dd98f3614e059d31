// SPDX-License-Identifier: Apache-2.0
// Kernels for x86-64 processors with AVX2 and FMA.
#if defined(__x86_64__)
#define ISA avx2
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#define TARGET "avx2,fma"

#include "kernels.h"
#endif
