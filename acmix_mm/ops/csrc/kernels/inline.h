// SPDX-License-Identifier: Apache-2.0
// Functions that files for different instruction sets share must be inlined: otherwise the linker
// may keep the AVX-512 copy for all of them (the one-definition rule).
#pragma once

#define INLINE inline __attribute__((always_inline))
