// Functions that files for different instruction sets share must leave no copy of their own: the
// linker would keep one of them, perhaps with instructions that the processor lacks.
#pragma once

#define INLINE inline __attribute__((always_inline))
