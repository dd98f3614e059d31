// SPDX-License-Identifier: Apache-2.0
// Kernels for x86-64 processors with AVX-512.
#if defined(__x86_64__)
#define ISA avx512
#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#define TARGET "avx512f,avx512bw,avx512dq,avx512vl,fma"

#include "kernels.h"
#endif
