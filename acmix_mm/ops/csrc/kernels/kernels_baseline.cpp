// SPDX-License-Identifier: Apache-2.0
// Kernels for any processor: 16-byte vectors, which x86-64 and ARM64 always have.
#define ISA baseline
#define VECTOR_BYTES 16
#if defined(__aarch64__)
#define VECTOR_REGISTERS 32
#else
#define VECTOR_REGISTERS 16
#endif

#include "kernels.h"
