/* Polynomials modulo X^N + 1 and primes, by their values at N points (homomorphic/polynomials.py says which).
 *
 * A prime is 2^bits less at most 2^24, of 48 to 56 bits: so 2^bits is nearly 0, and `folded` reduces without a
 * quotient. Numbers are reduced late: words hold 2^8 primes, and a product with a known factor w is below 4 primes if
 * floor(2^64 w / prime) is known, too (Shoup; Harvey, arXiv 1205.2926).
 *
 * Points come in groups, of which each X^group has one value: so a polynomial below that degree is evaluated there in
 * log2 group steps from its coefficients. BLOCK groups are computed at once, a lane each, at every level. */

#include "vectors.h"

enum {
    BLOCK = 8,
    WIDE = 8 * BLOCK / VECTOR, /* vectors of a block */
    LIMB = 28,                 /* bits: packed numbers have one in each half of a word */
    MOST_TERMS = 64,           /* products of limbs that are added in a word */
    /* Of a prime: itself, 2^LIMB, 2^(2 LIMB), and 1 / degree, each with its quotient. */
    OF_LIMBS = 1,
    OF_DEGREE = 5,
    CONSTANTS = 7
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

/* One step from coefficients to values, and one back: half as many of each as there were. */
INLINE void split(words *a, words *b, words w, words quotient, struct modulus q)
{
    words x = *a, y = times(*b, w, quotient, q);
    *a = x + y;
    *b = x - y + 4 * q.prime;
}

INLINE void join_halves(words *a, words *b, words w, words quotient, struct modulus q)
{
    words x = *a, y = *b;
    *a = folded(x + y, q);
    *b = times(x - y + 4 * q.prime, w, quotient, q);
}

/* x [group], a block each, from coefficients to values. roots: [group - 1, 2, BLOCK], factors and their quotients. */
INLINE void evaluate(words_at *x, const u64 *roots, int group, struct modulus q)
{
    for (int half = group / 2; half; half /= 2)
        for (int start = 0; start < group; start += 2 * half, roots += 2 * BLOCK)
            for (int j = 0; j < WIDE; j++) {
                words w = ((const words_at *)roots)[j], quotient = ((const words_at *)roots)[WIDE + j];
                for (int i = start; i < start + half; i++) {
                    words a = x[i * WIDE + j], b = x[(i + half) * WIDE + j];
                    split(&a, &b, w, quotient, q);
                    x[i * WIDE + j] = a;
                    x[(i + half) * WIDE + j] = b;
                }
            }
}

/* Back; to `group` times the coefficients. */
INLINE void interpolate(words_at *x, const u64 *roots, int group, struct modulus q)
{
    roots += 2 * BLOCK * (group - 1);
    for (int half = 1; half < group; half *= 2) {
        roots -= 2 * BLOCK * (group / (2 * half));
        const u64 *at = roots;
        for (int start = 0; start < group; start += 2 * half, at += 2 * BLOCK)
            for (int j = 0; j < WIDE; j++) {
                words w = ((const words_at *)at)[j], quotient = ((const words_at *)at)[WIDE + j];
                for (int i = start; i < start + half; i++) {
                    words a = x[i * WIDE + j], b = x[(i + half) * WIDE + j];
                    join_halves(&a, &b, w, quotient, q);
                    x[i * WIDE + j] = a;
                    x[(i + half) * WIDE + j] = b;
                }
            }
    }
}

/* x [BLOCK, columns], transposed. */
INLINE void transposed(const u64 *x, int columns, u64 *out)
{
    for (int j = 0; j < columns; j++)
        for (int i = 0; i < BLOCK; i++) out[j * BLOCK + i] = x[i * columns + j];
}

/* Factors of a transform's steps and their quotients: outer [degree / BLOCK - 1, 2] to groups of BLOCK, inner
 * [degree / BLOCK^2, BLOCK - 1, 2, BLOCK] below. */
struct roots {
    const u64 *outer, *inner;
};

/* Of a prime. */
INLINE struct roots roots_of(const u64 *outer, const u64 *inner, size_t degree, int number)
{
    const size_t wide = degree / BLOCK;
    return (struct roots){outer + number * 2 * (wide - 1), inner + number * 2 * wide * (BLOCK - 1)};
}

/* A polynomial x [degree], numbers below 4 primes, to values below a prime. */
static void to_values(u64 *x, size_t degree, struct roots roots, struct modulus q)
{
    const u64 *outer = roots.outer, *inner = roots.inner;
    for (size_t half = degree / 2; half >= BLOCK; half /= 2)
        for (size_t start = 0; start < degree; start += 2 * half, outer += 2) {
            words w = every(outer[0]), quotient = every(outer[1]);
            words_at *left = (words_at *)(x + start), *right = (words_at *)(x + start + half);
            for (size_t i = 0; i < half / (VECTOR / 8); i++) {
                words a = left[i], b = right[i];
                split(&a, &b, w, quotient, q);
                left[i] = a;
                right[i] = b;
            }
        }
    for (size_t at = 0; at < degree; at += BLOCK * BLOCK, inner += 2 * BLOCK * (BLOCK - 1)) {
        u64 block[BLOCK * BLOCK];
        transposed(x + at, BLOCK, block);
        evaluate((words_at *)block, inner, BLOCK, q);
        for (int i = 0; i < BLOCK * WIDE; i++) ((words_at *)block)[i] = reduced(((words_at *)block)[i], q);
        transposed(block, BLOCK, x + at);
    }
}

/* Back, from values below 4 primes. by: 1 / degree, and its quotient. */
static void to_coefficients(u64 *x, size_t degree, struct roots roots, const u64 *by, struct modulus q)
{
    const u64 *outer = roots.outer + 2 * (degree / BLOCK - 1), *inner = roots.inner;
    for (size_t at = 0; at < degree; at += BLOCK * BLOCK, inner += 2 * BLOCK * (BLOCK - 1)) {
        u64 block[BLOCK * BLOCK];
        transposed(x + at, BLOCK, block);
        interpolate((words_at *)block, inner, BLOCK, q);
        transposed(block, BLOCK, x + at);
    }
    for (size_t half = BLOCK; half < degree; half *= 2) {
        outer -= degree / half;
        for (size_t start = 0; start < degree; start += 2 * half) {
            words w = every(outer[start / half]), quotient = every(outer[start / half + 1]);
            words_at *left = (words_at *)(x + start), *right = (words_at *)(x + start + half);
            for (size_t i = 0; i < half / (VECTOR / 8); i++) {
                words a = left[i], b = right[i];
                join_halves(&a, &b, w, quotient, q);
                left[i] = a;
                right[i] = b;
            }
        }
    }
    words w = every(by[0]), quotient = every(by[1]);
    for (size_t at = 0; at < degree; at += VECTOR / 8)
        *(words_at *)(x + at) = reduced(times(*(words_at *)(x + at), w, quotient, q), q);
}

/* A sum of MOST_TERMS products of packed numbers at most. */
struct limbs {
    words low, middle, high;
};
#define NO_LIMBS (struct limbs){ZERO, ZERO, ZERO}

INLINE void add_product(struct limbs *sum, words a, words b)
{
    words above = a >> 32, beyond = b >> 32;
    sum->low += PRODUCTS_U32(a, b);
    sum->middle += PRODUCTS_U32(above, b) + PRODUCTS_U32(a, beyond);
    sum->high += PRODUCTS_U32(above, beyond);
}

/* Below 10 primes. constants: 2^LIMB, 2^(2 LIMB), and their quotients. */
INLINE words joined(struct limbs sum, const u64 *constants, struct modulus q)
{
    words total = folded(sum.low, q) + times(sum.middle, every(constants[0]), every(constants[1]), q);
    return total + times(sum.high, every(constants[2]), every(constants[3]), q);
}

/* Sums over terms of packed weights [terms, 2, group, BLOCK] times packed values [terms, group, BLOCK], below a prime,
 * out [2, ...]: point `at` + BLOCK group of part i at i * apart. */
static void sum_terms(const u64 *weights, const u64 *values, size_t terms, int group, const u64 *constants,
                      size_t apart, struct modulus q, u64 *out)
{
    const size_t step = (size_t)group * WIDE;
    for (int s = 0; s < group; s++)
        for (int j = 0; j < WIDE; j++) {
            const words_at *v = (const words_at *)values + s * WIDE + j, *w = (const words_at *)weights + s * WIDE + j;
            words total[2] = {ZERO, ZERO};
            for (size_t from = 0; from < terms; from += MOST_TERMS) {
                size_t to = terms - from < MOST_TERMS ? terms : from + MOST_TERMS;
                struct limbs sums[2] = {NO_LIMBS, NO_LIMBS};
                for (size_t term = from; term < to; term++) {
                    add_product(&sums[0], v[term * step], w[2 * term * step]);
                    add_product(&sums[1], v[term * step], w[(2 * term + 1) * step]);
                }
                for (int part = 0; part < 2; part++)
                    total[part] = folded(total[part] + joined(sums[part], constants, q), q);
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

/* Polynomials x [count, primes, degree], numbers below 4 primes, to values, or back, in place; below a prime.
 *
 * outer      [primes, degree / BLOCK - 1, 2], inner [primes, degree / BLOCK^2, BLOCK - 1, 2, BLOCK]: of the points to
 *            values, of their inverses back
 * constants  [primes, CONSTANTS] */
void transform(u64 *x, size_t count, int primes, size_t degree, const u64 *outer, const u64 *inner,
               const u64 *constants, int back)
{
    for (; count; count--)
        for (int i = 0; i < primes; i++, x += degree) {
            const u64 *c = constants + i * CONSTANTS;
            if (back) to_coefficients(x, degree, roots_of(outer, inner, degree, i), c + OF_DEGREE, modulus_of(c[0]));
            else to_values(x, degree, roots_of(outer, inner, degree, i), modulus_of(c[0]));
        }
}

/* Of values x [count, primes, degree], all divided by the last prime and rounded: out [count, primes - 1, degree].
 *
 * outer, inner  as in transform, of the points; outer_back, inner_back: of their inverses
 * by            [primes - 1, 2]: 1 / the last prime, and its quotient
 * scratch       [2, degree] */
void divide_by_last(const u64 *x, size_t count, int primes, size_t degree, const u64 *outer, const u64 *inner,
                    const u64 *outer_back, const u64 *inner_back, const u64 *constants, const u64 *by, u64 *scratch,
                    u64 *out)
{
    const u64 *c = constants + (primes - 1) * CONSTANTS;
    const struct modulus last = modulus_of(c[0]);
    const u64 half = last.prime / 2;
    for (; count; count--, x += primes * degree) {
        u64 *rest = scratch, *moved = scratch + degree;
        memcpy(rest, x + (primes - 1) * degree, 8 * degree);
        to_coefficients(rest, degree, roots_of(outer_back, inner_back, degree, primes - 1), c + OF_DEGREE, last);
        for (size_t at = 0; at < degree; at += VECTOR / 8)
            *(words_at *)(rest + at) = reduced(*(words_at *)(rest + at) + half, last);
        for (int i = 0; i < primes - 1; i++, out += degree) {
            const struct modulus q = modulus_of(constants[i * CONSTANTS]);
            const u64 *from = x + i * degree;
            const words less = every(q.prime - half % q.prime), w = every(by[2 * i]), quotient = every(by[2 * i + 1]);
            for (size_t at = 0; at < degree; at += VECTOR / 8)
                *(words_at *)(moved + at) = folded(*(const words_at *)(rest + at), q) + less;
            to_values(moved, degree, roots_of(outer, inner, degree, i), q);
            for (size_t at = 0; at < degree; at += VECTOR / 8) {
                words difference = *(const words_at *)(from + at) - *(const words_at *)(moved + at) + q.prime;
                *(words_at *)(out + at) = reduced(times(difference, w, quotient, q), q);
            }
        }
    }
}

INLINE words packed(words x) { return (x & (((u64)1 << LIMB) - 1)) | x >> LIMB << 32; }

/* Values out [parts, primes, degree]: sums of pairs [terms, parts, primes, degree] times factors [terms, primes,
 * degree]. */
void sum_pairs(const u64 *pairs, const u64 *factors, size_t terms, int parts, int primes, size_t degree,
               const u64 *constants, u64 *out)
{
    for (int part = 0; part < parts; part++)
        for (int i = 0; i < primes; i++, out += degree) {
            const u64 *c = constants + i * CONSTANTS;
            const struct modulus q = modulus_of(c[0]);
            for (size_t at = 0; at < degree; at += VECTOR / 8) {
                words total = ZERO;
                for (size_t term = 0; term < terms; term++) {
                    words a = packed(*(const words_at *)(factors + (term * primes + i) * degree + at));
                    words b = packed(*(const words_at *)(pairs + ((term * parts + part) * primes + i) * degree + at));
                    struct limbs sum = NO_LIMBS;
                    add_product(&sum, a, b);
                    total = folded(total + joined(sum, c + OF_LIMBS, q), q);
                }
                *(words_at *)(out + at) = reduced(total, q);
            }
        }
}

/* Sums over all primes but the last of x's residue, an integer, times the key's pair for it: out [2, primes, degree].
 *
 * x        values [primes - 1, degree]
 * keys     [primes - 1, 2, primes, degree] packed
 * scratch  [2, primes - 1, degree]; others as in divide_by_last */
static void digit_products(const u64 *x, const u64 *keys, int primes, size_t degree, const u64 *outer, const u64 *inner,
                    const u64 *outer_back, const u64 *inner_back, const u64 *constants, u64 *scratch, u64 *out)
{
    const int digits = primes - 1;
    u64 *values = scratch + digits * degree;
    memcpy(scratch, x, 8 * digits * degree);
    for (int digit = 0; digit < digits; digit++) {
        const u64 *c = constants + digit * CONSTANTS;
        struct roots back = roots_of(outer_back, inner_back, degree, digit);
        to_coefficients(scratch + digit * degree, degree, back, c + OF_DEGREE, modulus_of(c[0]));
    }
    for (int i = 0; i < primes; i++) {
        const u64 *c = constants + i * CONSTANTS;
        const struct modulus q = modulus_of(c[0]);
        for (int digit = 0; digit < digits; digit++) {
            u64 *of = values + digit * degree;
            memcpy(of, (digit == i ? x : scratch) + digit * degree, 8 * degree);
            if (digit != i) {
                for (size_t at = 0; at < degree; at += VECTOR / 8)
                    *(words_at *)(of + at) = folded(*(const words_at *)(of + at), q);
                to_values(of, degree, roots_of(outer, inner, degree, i), q);
            }
        }
        for (size_t at = 0; at < degree; at += VECTOR / 8) {
            struct limbs sums[2] = {NO_LIMBS, NO_LIMBS};
            for (int digit = 0; digit < digits; digit++) {
                words a = packed(*(const words_at *)(values + digit * degree + at));
                for (int part = 0; part < 2; part++)
                    add_product(&sums[part], a,
                                *(const words_at *)(keys + ((2 * digit + part) * primes + i) * degree + at));
            }
            for (int part = 0; part < 2; part++)
                *(words_at *)(out + (part * primes + i) * degree + at) = reduced(joined(sums[part], c + OF_LIMBS, q), q);
        }
    }
}

/* Two ciphertexts, values [2, primes - 1, degree], to one: x + X^h y + s(x - X^h y), s switched back to its key.
 *
 * shift    values of X^h [primes - 1, degree] packed
 * turn     [degree]: s(f) has at a place f's value at this one
 * keys     of digit_products, for s
 * scratch  [5 primes, degree]; others as in divide_by_last */
void merge_pair(const u64 *x, const u64 *y, const u64 *shift, const u64 *turn, const u64 *keys, int primes,
                size_t degree, const u64 *outer, const u64 *inner, const u64 *outer_back, const u64 *inner_back,
                const u64 *constants, const u64 *by, u64 *scratch, u64 *out)
{
    const int data = primes - 1;
    u64 *difference = scratch, *turned = difference + degree, *sums = turned + data * degree;
    u64 *rest = sums + 2 * primes * degree, *switched = rest + 2 * degree;
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < data; i++) {
            const u64 *c = constants + i * CONSTANTS;
            const struct modulus q = modulus_of(c[0]);
            const size_t start = (part * data + i) * degree;
            for (size_t at = 0; at < degree; at += VECTOR / 8) {
                struct limbs product = NO_LIMBS;
                words a = *(const words_at *)(shift + i * degree + at);
                add_product(&product, a, packed(*(const words_at *)(y + start + at)));
                words moved = reduced(joined(product, c + OF_LIMBS, q), q), kept = *(const words_at *)(x + start + at);
                *(words_at *)(out + start + at) = kept + moved;
                *(words_at *)(difference + at) = reduced(kept - moved + q.prime, q);
            }
            if (part)
                for (size_t at = 0; at < degree; at++) turned[i * degree + at] = difference[turn[at]];
            else
                for (size_t at = 0; at < degree; at++) out[start + at] += difference[turn[at]];
        }
    digit_products(turned, keys, primes, degree, outer, inner, outer_back, inner_back, constants, switched, sums);
    divide_by_last(sums, 2, primes, degree, outer, inner, outer_back, inner_back, constants, by, rest, switched);
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < data; i++) {
            const struct modulus q = modulus_of(constants[i * CONSTANTS]);
            for (size_t at = 0; at < degree; at += VECTOR / 8, out += VECTOR / 8, switched += VECTOR / 8)
                *(words_at *)out = reduced(*(words_at *)out + *(words_at *)switched, q);
        }
}

/* Of pairs of polynomials, by their values: the sums out [rows, 2, primes, degree] over terms of polynomials times
 * weights.
 *
 * weights    [terms, 2, primes, degree]
 * rows       [primes, rows, terms, group] coefficients
 * roots      [primes, degree / group / BLOCK, group - 1, 2, BLOCK]
 * constants  [primes, CONSTANTS]
 * scratch    [3 terms, group, BLOCK] */
void row_products(const u64 *weights, const u64 *rows, size_t count, size_t terms, int group,
                  const u64 *roots, const u64 *constants, int primes, size_t degree, u64 *scratch, u64 *out)
{
    const size_t wide = (size_t)group * BLOCK;
    u64 *factors = scratch + terms * wide;
    for (int prime = 0; prime < primes; prime++, constants += CONSTANTS) {
        struct modulus q = modulus_of(constants[0]);
        for (size_t at = 0; at < degree; at += wide, roots += 2 * (wide - BLOCK)) {
            for (size_t i = 0; i < 2 * terms; i++) {
                words_at *packed_values = (words_at *)(factors + i * wide);
                transposed(weights + (i * primes + prime) * degree + at, group, factors + i * wide);
                for (size_t j = 0; j < (size_t)group * WIDE; j++) packed_values[j] = packed(packed_values[j]);
            }
            for (size_t row = 0; row < count; row++) {
                const u64 *from = rows + (prime * count + row) * terms * group;
                for (size_t term = 0; term < terms; term++, from += group) {
                    words_at *values = (words_at *)(scratch + term * wide);
                    for (size_t i = 0; i < (size_t)group * WIDE; i++) values[i] = every(from[i / WIDE]);
                    evaluate(values, roots, group, q);
                    for (size_t i = 0; i < (size_t)group * WIDE; i++) values[i] = packed(folded(values[i], q));
                }
                sum_terms(factors, scratch, terms, group, constants + OF_LIMBS, primes * degree, q,
                          out + (row * 2 * primes + prime) * degree + at);
            }
        }
    }
}
