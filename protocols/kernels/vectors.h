/* The vectors of a level's processors, and how they multiply. */

#ifndef BLINDFORMER_VECTORS_H
#define BLINDFORMER_VECTORS_H

#include "kernels.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR 64
#define IN_REGISTER "+v"
#define PRODUCTS_U32(a, b) (words)_mm512_mul_epu32((__m512i)(a), (__m512i)(b))
#define PRODUCTS_I32(a, b) (words)_mm512_mul_epi32((__m512i)(a), (__m512i)(b))
#define PRODUCTS_I16(a, b) (halves)_mm512_madd_epi16((__m512i)(a), (__m512i)(b))
#elif defined(__AVX2__)
#define VECTOR 32
#define IN_REGISTER "+x"
#define PRODUCTS_U32(a, b) (words)_mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#define PRODUCTS_I32(a, b) (words)_mm256_mul_epi32((__m256i)(a), (__m256i)(b))
#define PRODUCTS_I16(a, b) (halves)_mm256_madd_epi16((__m256i)(a), (__m256i)(b))
#else
#define VECTOR 8
#define IN_REGISTER "+r"
#endif

#if VECTOR == 8
typedef u64 words, words_at;
#else
typedef u64 words __attribute__((vector_size(VECTOR)));
typedef uint32_t halves __attribute__((vector_size(VECTOR)));
/* In memory: wherever a number lies. */
typedef u64 words_at __attribute__((vector_size(VECTOR), may_alias, aligned(8)));
typedef uint32_t halves_at __attribute__((vector_size(VECTOR), may_alias, aligned(4)));
#endif
#if VECTOR > 8
#if defined(__AVX512VNNI__)
#define ADD_PRODUCTS_I16(sum, a, b) sum = (halves)_mm512_dpwssd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(b))
#elif defined(__AVXVNNI__)
#define ADD_PRODUCTS_I16(sum, a, b) sum = (halves)_mm256_dpwssd_avx_epi32((__m256i)(sum), (__m256i)(a), (__m256i)(b))
#else
#define ADD_PRODUCTS_I16(sum, a, b) sum += PRODUCTS_I16(a, b)
#endif
#endif

#define UNROLL _Pragma("GCC unroll 8")
/* Compilers reorder sums, and then run out of registers: this ties one to its place. */
#define KEEP(sum) __asm__("" : IN_REGISTER(sum))

#endif
