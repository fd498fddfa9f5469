/* What the kernels' files share. */

#ifndef BLINDFORMER_KERNELS_H
#define BLINDFORMER_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef int64_t i64;
typedef uint64_t u64;

/* Messages promise no alignment. */
#define WIRE __attribute__((aligned(1), may_alias))
typedef int8_t WIRE wire8;
typedef int16_t WIRE wire16;
typedef int32_t WIRE wire32;
typedef int64_t WIRE wire64;

#define INLINE static inline __attribute__((always_inline))

/* The integers, of `bytes` bytes each, as what `use` does with `type`. */
#define FOR_TYPE(bytes, use) \
    switch (bytes) { \
    case 1: use(wire8) break; \
    case 2: use(wire16) break; \
    case 4: use(wire32) break; \
    default: use(wire64) \
    }

#endif
