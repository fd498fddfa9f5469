/* Polynomials modulo X^N + 1 and primes, by their values at N points (homomorphic/polynomials.py says which).
 *
 * A prime is 2^bits less at most 2^32, of 40 to 56 bits: so 2^bits is nearly 0, and `folded` reduces without a quotient.
 * Numbers are reduced late: words hold 2^8 primes, and a product with a known factor w is below 4 primes if
 * floor(2^64 w / prime) is known, too (Shoup; Harvey, arXiv 1205.2926).
 *
 * Points come in groups, of which each X^group has one value: so a polynomial below that degree is evaluated there in
 * log2 group steps from its coefficients. BLOCK groups are computed at once, a lane each, at every level. */

#include "vectors.h"

enum {
    BLOCK = 8,
    WIDE = 8 * BLOCK / VECTOR, /* vectors of a block */
    LIMB = 28,                 /* bits: packed numbers have one in each half of a word */
    MOST_TERMS = 64            /* products of limbs that are added in a word */
};

#if VECTOR == 8
#define PRODUCTS_U32(a, b) ((u64)(uint32_t)(a) * (uint32_t)(b))
#endif

struct modulus {
    u64 prime, low, less; /* of 2^bits */
    int bits;
};

INLINE struct modulus modulus_of(u64 prime)
{
    int bits = 64 - __builtin_clzll(prime);
    return (struct modulus){prime, ((u64)1 << bits) - 1, ((u64)1 << bits) - prime, bits};
}

#define ZERO (words){0}
INLINE words every(u64 x) { return x - ZERO; }

/* The same modulo the prime: below 2^bits, and 2^40 more. */
INLINE words folded(words x, struct modulus q) { return (x & q.low) + PRODUCTS_U32(x >> q.bits, every(q.less)); }

INLINE words reduced(words x, struct modulus q)
{
    words less = folded(x, q) - q.prime;
    return less + (q.prime & -(less >> 63));
}

/* x w modulo the prime, below 4 primes. The quotient is too small by 3 at most. */
INLINE words times(words x, words w, words quotient, struct modulus q)
{
    words high = x >> 32, above = quotient >> 32;
    words whole = PRODUCTS_U32(high, above) + (PRODUCTS_U32(high, quotient) >> 32) + (PRODUCTS_U32(x, above) >> 32);
    return x * w - whole * q.prime;
}

/* x [group], a block each, from coefficients to values. roots: [group - 1, 2, BLOCK], factors and their quotients. */
INLINE void evaluate(words_at *x, const u64 *roots, int group, struct modulus q)
{
    for (int half = group / 2; half; half /= 2)
        for (int start = 0; start < group; start += 2 * half, roots += 2 * BLOCK)
            for (int j = 0; j < WIDE; j++) {
                words w = ((const words_at *)roots)[j], quotient = ((const words_at *)roots)[WIDE + j];
                for (int i = start; i < start + half; i++) {
                    words a = x[i * WIDE + j], b = times(x[(i + half) * WIDE + j], w, quotient, q);
                    x[i * WIDE + j] = a + b;
                    x[(i + half) * WIDE + j] = a - b + 4 * q.prime;
                }
            }
}

/* Sums over terms of packed weights [terms, 2, group, BLOCK] times packed values [terms, group, BLOCK], below a prime,
 * out [2, ...]: point `at` + BLOCK group of part i at i * apart. constants: 2^LIMB, 2^(2 LIMB), and their quotients. */
INLINE void sum_terms(const u64 *weights, const u64 *values, size_t terms, int group, const u64 *constants, size_t apart,
                      struct modulus q, u64 *out)
{
    const size_t step = (size_t)group * WIDE;
    for (int s = 0; s < group; s++)
        for (int j = 0; j < WIDE; j++) {
            const words_at *v = (const words_at *)values + s * WIDE + j, *w = (const words_at *)weights + s * WIDE + j;
            words total[2] = {ZERO, ZERO};
            for (size_t from = 0; from < terms; from += MOST_TERMS) {
                size_t to = terms - from < MOST_TERMS ? terms : from + MOST_TERMS;
                words low[2] = {ZERO, ZERO}, middle[2] = {ZERO, ZERO}, high[2] = {ZERO, ZERO};
                for (size_t term = from; term < to; term++) {
                    words a = v[term * step], above = a >> 32;
                    UNROLL
                    for (int part = 0; part < 2; part++) {
                        words b = w[(2 * term + part) * step], beyond = b >> 32;
                        low[part] += PRODUCTS_U32(a, b);
                        middle[part] += PRODUCTS_U32(above, b) + PRODUCTS_U32(a, beyond);
                        high[part] += PRODUCTS_U32(above, beyond);
                    }
                }
                for (int part = 0; part < 2; part++) {
                    words sum = folded(low[part], q) + times(middle[part], every(constants[0]), every(constants[1]), q);
                    sum += times(high[part], every(constants[2]), every(constants[3]), q);
                    total[part] = folded(total[part] + sum, q);
                }
            }
            for (int part = 0; part < 2; part++) {
                words sum = reduced(total[part], q);
                u64 lanes[VECTOR / 8];
                memcpy(lanes, &sum, sizeof sum);
                for (int lane = 0; lane < VECTOR / 8; lane++)
                    out[part * apart + (size_t)(j * (VECTOR / 8) + lane) * group + s] = lanes[lane];
            }
        }
}

/* Of pairs of polynomials, by their values: the sums out [rows, 2, primes, degree] over terms of polynomials times
 * weights.
 *
 * weights    [primes, degree / group / BLOCK, all, 2, group, BLOCK] packed, of which the first `terms` of `all` count
 * rows       [primes, rows, terms, group] coefficients
 * roots      [primes, degree / group / BLOCK, group - 1, 2, BLOCK]
 * constants  [primes, 5]: the prime, and those of sum_terms
 * scratch    [terms, group, BLOCK] */
void row_products(const u64 *weights, size_t all, const u64 *rows, size_t count, size_t terms, int group,
                  const u64 *roots, const u64 *constants, int primes, size_t degree, u64 *scratch, u64 *out)
{
    const size_t wide = (size_t)group * BLOCK;
    for (int prime = 0; prime < primes; prime++, constants += 5) {
        struct modulus q = modulus_of(constants[0]);
        for (size_t at = 0; at < degree; at += wide, weights += all * 2 * wide, roots += 2 * (wide - BLOCK))
            for (size_t row = 0; row < count; row++) {
                const u64 *from = rows + (prime * count + row) * terms * group;
                for (size_t term = 0; term < terms; term++, from += group) {
                    words_at *values = (words_at *)(scratch + term * wide);
                    for (size_t i = 0; i < (size_t)group * WIDE; i++) values[i] = every(from[i / WIDE]);
                    evaluate(values, roots, group, q);
                    for (size_t i = 0; i < (size_t)group * WIDE; i++) {
                        words x = folded(values[i], q);
                        values[i] = (x & (((u64)1 << LIMB) - 1)) | x >> LIMB << 32;
                    }
                }
                sum_terms(weights, scratch, terms, group, constants + 1, primes * degree, q,
                          out + (row * 2 * primes + prime) * degree + at);
            }
    }
}
