/* Linear layers modulo 2^32 of weights of 8 or 16 bits, and what a client does around them (delegated/arithmetic.py).
 *
 * x = d0 + 2^16 d1 with signed digits of 16 bits. One vpmaddwd multiplies digits by weights and adds two terms; VNNI
 * adds them to the sum, too. All of these wrap modulo 2^32. The sums of d1 are shifted once, at the end.
 *
 * Rows of x and of the weight both lie along the terms, so nothing is packed but the digits: a tile of a few rows of x
 * by a few of the weight keeps its sums in registers. Digits are padded with zeros. A row of the weight is read beyond
 * its end, into those that follow; the last ones, which have too few behind them, are copied. */

#include <math.h>

#include "vectors.h"

enum {
    PADDED = 32,          /* terms: digits of a row are a multiple of these */
    FEW = 8,              /* rows: reading the weights is what takes the time */
    DEPTH = 1536,         /* terms of a block, of more rows: the digits of a tile stay in the first cache */
    WEIGHTS = 256 * 1024, /* bytes of a block: they stay in the second */
    NEAR = 2048,          /* bytes of a row, up to which the next tile is read into the first cache */
    PIECE = 512           /* numbers of an answer that are opened at once */
};

typedef int16_t digit;
typedef uint32_t u32;

const i64 linear32_padded = PADDED;

#if VECTOR > 8
#if VECTOR == 64
enum { ROWS = 3, OUTPUTS = 4 }; /* of a tile: 24 sums in 32 registers */
#else
enum { ROWS = 3, OUTPUTS = 2 }; /* 12 sums in 16 */
#endif
enum { STEP = VECTOR / 2 };

typedef int16_t shorts __attribute__((vector_size(VECTOR)));
typedef int16_t shorts_at __attribute__((vector_size(VECTOR), may_alias, aligned(1)));
typedef int8_t bytes_at __attribute__((vector_size(VECTOR / 2), may_alias, aligned(1)));

/* The sums of four vectors. */
INLINE void add_up(halves a, halves b, halves c, halves d, u32 *out)
{
#if VECTOR == 64
#define FOLDED(v) _mm256_add_epi32(_mm512_castsi512_si256((__m512i)(v)), _mm512_extracti64x4_epi64((__m512i)(v), 1))
#else
#define FOLDED(v) (__m256i)(v)
#endif
    __m256i pairs = _mm256_hadd_epi32(FOLDED(a), FOLDED(b)), others = _mm256_hadd_epi32(FOLDED(c), FOLDED(d));
    __m256i sums = _mm256_hadd_epi32(pairs, others);
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)));
}

INLINE shorts read_weights(const char *from, int size)
{
    if (size == 1) return __builtin_convertvector(*(const bytes_at *)from, shorts);
    return *(const shorts_at *)from;
}

INLINE void tile(const int rows, const int outputs, const int size, const digit *x, size_t x_row, const char *weight,
                 size_t inner, size_t depth, u32 *sums)
{
    halves both[ROWS * OUTPUTS + 3] = {0}, low[ROWS][OUTPUTS] = {0}, high[ROWS][OUTPUTS] = {0};
    for (size_t k = 0; k < depth; k += STEP) {
        shorts w[OUTPUTS];
        UNROLL for (int c = 0; c < outputs; c++) {
            w[c] = read_weights(weight + (c * inner + k) * size, size);
            /* The next tile, line by line: processors do not foresee the rows' short streams, and need twice as long. */
            const char *next = weight + (outputs * (inner + k) + c * STEP) * size;
            if (depth * size <= NEAR) __builtin_prefetch(next);
            else __builtin_prefetch(next, 0, 2);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            shorts d0 = *(const shorts_at *)(x + 2 * r * x_row + k), d1 = *(const shorts_at *)(x + (2 * r + 1) * x_row + k);
            UNROLL for (int c = 0; c < outputs; c++) {
                ADD_PRODUCTS_I16(low[r][c], d0, w[c]);
                KEEP(low[r][c]);
                ADD_PRODUCTS_I16(high[r][c], d1, w[c]);
                KEEP(high[r][c]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < outputs; c++) both[r * outputs + c] = low[r][c] + (high[r][c] << 16);
    UNROLL for (int i = 0; i < rows * outputs; i += 4) add_up(both[i], both[i + 1], both[i + 2], both[i + 3], sums + i);
}
#else
enum { ROWS = 1, OUTPUTS = 1 };

/* Compilers vectorize it. */
INLINE void tile(const int rows, const int outputs, const int size, const digit *x, size_t x_row, const char *weight,
                 size_t inner, size_t depth, u32 *sums)
{
    int32_t low = 0, high = 0;
    (void)rows, (void)outputs, (void)inner;
#define DOT(type) \
    for (size_t k = 0; k < depth; k++) { \
        int16_t w = ((const type *)weight)[k]; \
        low += x[k] * w, high += x[x_row + k] * w; \
    }
    if (size == 1) DOT(wire8)
    else DOT(wire16)
    *sums = (u32)low + ((u32)high << 16);
}
#endif

/* out (+)= x weight^T of some rows and outputs, of `depth` terms. */
INLINE void block(const int size, const digit *x, size_t x_row, const char *weight, size_t inner, size_t rows,
                  size_t outputs, size_t depth, int add, u32 *out, size_t out_row)
{
    for (size_t r = 0; r < rows;) {
        int some = rows - r < ROWS ? rows - r : ROWS;
        for (size_t j = 0; j < outputs;) {
            int wide = outputs - j < OUTPUTS ? 1 : OUTPUTS;
            u32 sums[ROWS * OUTPUTS + 3];
#define TILE(rows, outputs) tile(rows, outputs, size, x + 2 * r * x_row, x_row, weight + j * inner * size, inner, depth, sums)
            if (some == ROWS && wide == OUTPUTS) TILE(ROWS, OUTPUTS);
            else if (some == ROWS) TILE(ROWS, 1);
            else if (ROWS == 3 && some == 2 && wide == OUTPUTS) TILE(2, OUTPUTS);
            else if (ROWS == 3 && some == 2) TILE(2, 1);
            else if (wide == OUTPUTS) TILE(1, OUTPUTS);
            else TILE(1, 1);
            for (int i = 0; i < some; i++)
                for (int c = 0; c < wide; c++) {
                    u32 *to = out + (r + i) * out_row + j + c;
                    *to = sums[i * wide + c] + (add ? *to : 0);
                }
            j += wide;
        }
        r += some;
    }
}

#define PRODUCT_ARGUMENTS \
    const digit *x, size_t x_row, const char *weight, size_t inner, size_t rows, size_t outputs, u32 *out, size_t out_row
#define PRODUCT(size) \
    size_t depth = rows <= FEW || x_row < DEPTH ? x_row : DEPTH, most = WEIGHTS / (depth * size) / OUTPUTS * OUTPUTS; \
    if (!most) most = OUTPUTS; \
    for (size_t j = 0; j < outputs; j += most) \
        for (size_t k = 0; k < x_row; k += depth) \
            block(size, x + k, x_row, weight + (j * inner + k) * size, inner, rows, outputs - j < most ? outputs - j : most, \
                  x_row - k < depth ? x_row - k : depth, k > 0, out + j, out_row);

static void product_of_bytes(PRODUCT_ARGUMENTS) { PRODUCT(1) }
static void product_of_16_bits(PRODUCT_ARGUMENTS) { PRODUCT(2) }

/* out [rows, outputs], in rows of `out_row` numbers, = x [rows, inner] weight [outputs, inner]^T modulo 2^32. scratch:
 * for each row of x, and for the last ones of the weight (of which there are few if they are long), words: `inner` up to
 * a multiple of `PADDED`. */
void linear32(const wire32 *x, const char *weight, int size, size_t rows, size_t inner, size_t outputs, u32 *scratch,
              u32 *out, size_t out_row)
{
    size_t padded = (inner + PADDED - 1) / PADDED * PADDED, copied = (padded - 1) / inner;
    size_t whole = copied < outputs ? outputs - copied : 0;
    digit *digits = (digit *)scratch;
    char *last = (char *)(scratch + rows * padded);
    for (size_t r = 0; r < rows; r++) {
        digit *low = digits + 2 * r * padded, *high = low + padded;
        for (size_t k = 0; k < inner; k++) low[k] = x[r * inner + k];
        for (size_t k = 0; k < inner; k++) high[k] = (x[r * inner + k] + 0x8000) >> 16;
        for (size_t k = inner; k < padded; k++) low[k] = high[k] = 0;
    }
    memset(last, 0, (outputs - whole) * padded * size);
    for (size_t j = whole; j < outputs; j++)
        memcpy(last + (j - whole) * padded * size, weight + j * inner * size, inner * size);
    void (*product)(PRODUCT_ARGUMENTS) = size == 1 ? product_of_bytes : product_of_16_bits;
    product(digits, padded, weight, inner, rows, whole, out, out_row);
    product(digits, padded, last, padded, rows, outputs - whole, out + whole, out_row);
}

/* Integers q, of squares that add up to `most` at most, and steps: x is about q step. reach: 2^20 times the norm of q
 * that is aimed at. */
void quantise_rows(const float *x, size_t rows, size_t columns, i64 most, double reach, int32_t *q, double *step)
{
    const double whole = 0x1.8p52; /* a number beside it has no fraction: adding it rounds, to even */
    for (size_t r = 0; r < rows; r++, x += columns, q += columns) {
        u32 top = 0; /* the largest number, as bits, without its sign */
        for (size_t i = 0; i < columns; i++) {
            u32 bits;
            memcpy(&bits, x + i, sizeof bits);
            bits &= 0x7fffffff;
            top = bits > top ? bits : top;
        }
        if (!top || top >= 0x7f800000) {
            memset(q, 0, columns * sizeof *q);
            step[r] = top ? NAN : 1;
            continue;
        }
        float largest;
        memcpy(&largest, &top, sizeof largest);
        i64 squares = 0;
        for (size_t i = 0; i < columns; i++) {
            int32_t e = x[i] * (0x1p20 / largest) + whole - whole;
            squares += (i64)e * e;
        }
        step[r] = largest * sqrt((double)squares) / reach;
        for (;; step[r] *= 1 + 0x1p-6) {
            double by = step[r];
            squares = 0;
            for (size_t i = 0; i < columns; i++) q[i] = x[i] / by + whole - whole;
            for (size_t i = 0; i < columns; i++) squares += (i64)q[i] * q[i];
            if (squares <= most) break;
        }
    }
}

/* Integers modulo 2^24 as they travel: the planes of `pack`, of 16 and 8 bits. */
void pack24(const u32 *x, size_t n, char *out)
{
    wire16 *low = (wire16 *)out;
    wire8 *high = (wire8 *)(out + 2 * n);
    for (size_t i = 0; i < n; i++) low[i] = x[i];
    for (size_t i = 0; i < n; i++) high[i] = (x[i] + 0x8000) >> 16;
}

void unpack24(const char *in, size_t n, u32 *out)
{
    const wire16 *low = (const wire16 *)in;
    const wire8 *high = (const wire8 *)(in + 2 * n);
    for (size_t i = 0; i < n; i++) out[i] = (u32)low[i] + ((u32)high[i] << 16);
}

static u64 dot(const wire32 *x, const wire64 *y, size_t n)
{
    u64 sum = 0;
    for (size_t i = 0; i < n; i++) sum += (u64)(i64)x[i] * (u64)y[i];
    return sum;
}

/* Of y = W q - s: out = W q step scale, computed with 64 bits, of numbers without their `above` highest bits. hold:
 * whether rho W q = u q modulo 2^64, by row, for both rho. */
void open_rows(const wire32 *y, const wire32 *s, const wire32 *q, const wire64 *rho, const wire64 *u, const double *step,
               const float *scale, size_t rows, size_t outputs, size_t inner, int above, float *out, char *hold)
{
    for (size_t r = 0; r < rows; r++, y += outputs, s += outputs, q += inner, out += outputs) {
        u64 one = 0, other = 0;
        for (size_t j = 0; j < outputs; j += PIECE) {
            size_t n = outputs - j < PIECE ? outputs - j : PIECE;
            wire32 product[PIECE];
            for (size_t i = 0; i < n; i++) product[i] = (int32_t)(((u32)y[j + i] + (u32)s[j + i]) << above) >> above;
            one += dot(product, rho + j, n), other += dot(product, rho + outputs + j, n);
            for (size_t i = 0; i < n; i++) out[j + i] = product[i] * step[r] * scale[j + i];
        }
        hold[r] = one == dot(q, u, inner) && other == dot(q, u + inner, inner);
    }
}
