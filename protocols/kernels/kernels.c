/* The hot loops of a session: each computes what the torch function that carries its name computes, bit for bit.
 *
 * Numbers are modulo 2^64; arrays are contiguous, and an output is no input. Nothing branches on a share or a mask, and
 * no index is made of one: what is looked up is public (opened under a mask).
 *
 * It is built once for each level of processors (setup.py); loops are written so that compilers vectorize them. */

#include <math.h>

#include "kernels.h"

#ifdef SOURCES
const i64 kernels_sources = SOURCES; /* which files these are: library.py compares */
#else
const i64 kernels_sources = 0;
#endif

enum { BLOCK = 256, LANES = 8 };

typedef u64 lanes __attribute__((vector_size(8 * LANES)));

/* Up to LANES words; zeros beyond. */
INLINE void read_lanes(lanes *out, const u64 *x, size_t length)
{
    *out = (lanes){0};
    if (length == LANES) memcpy(out, x, sizeof *out);
    else memcpy(out, x, length * sizeof *x);
}

INLINE void write_lanes(u64 *out, size_t length, const lanes *x)
{
    if (length == LANES) memcpy(out, x, sizeof *x);
    else memcpy(out, x, length * sizeof *out);
}

INLINE u64 low_bits(int bits) { return bits == 64 ? ~(u64)0 : ((u64)1 << bits) - 1; }

static int plane(int left) { return left == 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

/* x, less `minus` where there is one, as signed planes of 4, 2 and 1 bytes: `width` bytes together. */
void pack(const u64 *x, const u64 *minus, size_t n, int width, char *out)
{
    for (int left = width, shift = 0; left;) {
        int bytes = plane(left);
        /* A plane is signed: those above make up for its sign, which is to round at its weight. */
        u64 half = shift == 16 ? (u64)1 << 15 : shift == 32 ? (u64)1 << 31 : shift ? 0x800080000000u : 0;
#define PLANE(type) \
    if (minus) \
        for (size_t i = 0; i < n; i++) ((type *)out)[i] = (i64)(x[i] - minus[i] + half) >> shift; \
    else \
        for (size_t i = 0; i < n; i++) ((type *)out)[i] = (i64)(x[i] + half) >> shift;
        FOR_TYPE(bytes, PLANE)
        out += n * bytes, shift += 8 * bytes, left -= bytes;
    }
}

/* To integers of `size` bytes. */
void unpack(const char *in, size_t n, int width, int size, char *out)
{
    if (width == size) {
        memcpy(out, in, n * size);
        return;
    }
    u64 value[BLOCK];
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t length = n - at < BLOCK ? n - at : BLOCK;
        const char *from = in;
        for (int left = width, shift = 0; left;) {
            int bytes = plane(left);
#define JOIN(type) \
    if (shift) \
        for (size_t i = 0; i < length; i++) value[i] += (u64)(i64)((type *)from)[at + i] << shift; \
    else \
        for (size_t i = 0; i < length; i++) value[i] = (u64)(i64)((type *)from)[at + i];
            FOR_TYPE(bytes, JOIN)
            from += n * bytes, shift += 8 * bytes, left -= bytes;
        }
#define STORE(type) for (size_t i = 0; i < length; i++) ((type *)out)[at + i] = value[i];
        FOR_TYPE(size, STORE)
    }
}

/* A party's part of x / 2^bits, of x modulo 2^ring: half a unit goes up at the leader, and down at the others. */
void divide(const u64 *x, size_t n, int bits, int ring, int leader, u64 *out)
{
    u64 keep = low_bits(ring), half = (u64)1 << (bits - 1), sign = leader ? 1 : ~(u64)0;
    for (size_t i = 0; i < n; i++) out[i] = sign * ((sign * x[i] + half & keep) >> bits);
}

/* What is opened of low_bits(bits), made a share of more bits. */
void extend(const u64 *mine, const u64 *theirs, const u64 *low, const u64 *wrap, size_t n, int bits, int leader,
            u64 *public, u64 *wrapped, u64 *share)
{
    u64 keep = low_bits(bits), offset = (u64)1 << (bits - 2), all = leader ? ~(u64)0 : 0;
    for (size_t i = 0; i < n; i++) {
        u64 opened = mine[i] + theirs[i];
        public[i] = (opened & keep) - offset;
        wrapped[i] = 1 - (opened >> (bits - 1) & 1);
        share[i] = low[i] + wrapped[i] * wrap[i] + (public[i] & all);
    }
}

/* sum_t factors_t values_t; a factor that is 0 stands for 1. */
void sum_products(const u64 **factors, const u64 **values, int count, size_t n, u64 *out)
{
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t end = n - at < BLOCK ? n : at + BLOCK;
        for (int t = 0; t < count; t++) {
            const u64 *factor = factors[t], *value = values[t];
            if (t == 0)
                for (size_t i = at; i < end; i++) out[i] = factor ? factor[i] * value[i] : value[i];
            else if (factor)
                for (size_t i = at; i < end; i++) out[i] += factor[i] * value[i];
            else
                for (size_t i = at; i < end; i++) out[i] += value[i];
        }
    }
}

/* sum_j (sum_k series[j, k] x^k) powers_j; powers that are 0 stand for ones. series: [count, degree + 1]. */
void polynomial(const u64 *x, const u64 **powers, const u64 *series, int count, int degree, size_t n, u64 *out)
{
    u64 value[BLOCK];
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t length = n - at < BLOCK ? n - at : BLOCK;
        for (size_t i = 0; i < length; i++) out[at + i] = 0;
        for (int j = 0; j < count; j++) {
            const u64 *row = series + j * (degree + 1);
            for (size_t i = 0; i < length; i++) value[i] = row[degree];
            for (int k = degree - 1; k >= 0; k--)
                for (size_t i = 0; i < length; i++) value[i] = value[i] * x[at + i] + row[k];
            const u64 *power = powers[j];
            if (power)
                for (size_t i = 0; i < length; i++) out[at + i] += value[i] * power[at + i];
            else
                for (size_t i = 0; i < length; i++) out[at + i] += value[i];
        }
    }
}

INLINE i64 wave_at(const i64 *wave, u64 x, int bits, int points)
{
    x &= low_bits(bits);
    int fine = bits - points;
    if (fine <= 0) return wave[x << -fine];
    const i64 *left = wave + (x >> fine);
    return left[0] + ((left[1] - left[0]) * (i64)(x & low_bits(fine)) >> fine);
}

/* cos and sin of 1 to `count` times each of n angles, times 2^fraction, rounded. out: [n, count, 2]. */
void waves(const double *cosine, const double *sine, size_t n, int count, int fraction, i64 *out)
{
    double scale = (double)((i64)1 << fraction);
    for (size_t i = 0; i < n; i++) {
        double c = cosine[i], s = sine[i];
        for (int k = 0; k < count; k++, out += 2) {
            double next_c = cosine[i] * c - sine[i] * s, next_s = sine[i] * c + cosine[i] * s;
            out[0] = (i64)rint(c * scale), out[1] = (i64)rint(s * scale);
            c = next_c, s = next_s;
        }
    }
}

/* numbers: [n, count, 2], `size` bytes each. table: [count + 1, 2]. wave: [2^points + 1], of `scale` bits. */
void fourier(const u64 *x, const i64 *wave, int points, int scale, const i64 *table, int count,
                    const void *numbers, int size, size_t n, int bits, u64 first, u64 *out)
{
    i64 half = (i64)1 << (scale - 1);
    i64 cosine[BLOCK], sine[BLOCK], c[BLOCK], s[BLOCK], c_before[BLOCK], s_before[BLOCK], even[BLOCK], odd[BLOCK];
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t length = n - at < BLOCK ? n - at : BLOCK;
        for (size_t i = 0; i < length; i++) {
            c[i] = cosine[i] = wave_at(wave, x[at + i], bits, points);
            s[i] = sine[i] = wave_at(wave, x[at + i] - ((u64)1 << (bits - 2)), bits, points);
            c_before[i] = (i64)1 << scale, s_before[i] = 0;
            out[at + i] = first;
        }
        for (int k = 1; k <= count; k++) {
            i64 a = table[2 * k], b = table[2 * k + 1];
#define TERM(type) { \
    const type *number = (const type *)numbers + 2 * (count * at + k - 1); \
    for (size_t i = 0; i < length; i++, number += 2 * count) even[i] = number[0], odd[i] = number[1]; \
}
            FOR_TYPE(size, TERM)
            for (size_t i = 0; i < length; i++)
                out[at + i] += (u64)((a * c[i] + b * s[i] + half) >> scale) * (u64)even[i] +
                               (u64)((a * s[i] - b * c[i] + half) >> scale) * (u64)odd[i];
            for (size_t i = 0; i < length; i++) {
                i64 twice = cosine[i], next_c = ((twice * c[i] + half / 2) >> (scale - 1)) - c_before[i];
                i64 next_s = ((twice * s[i] + half / 2) >> (scale - 1)) - s_before[i];
                c_before[i] = c[i], s_before[i] = s[i], c[i] = next_c, s[i] = next_s;
            }
        }
    }
}

/* numbers: [n, 1 + rows], `size` bytes each: one, and its products with the rows' bits, of which `opened` [rows, words] is
 * public. table: [rows, 2^points + 1], of the last cells. */
void exponential(const u64 *x, const i64 *table, int rows, int points, const u64 *opened, const void *numbers, int size,
                 size_t n, u64 start, int bits, int low, int drop, u64 *out)
{
    int fine = low - drop, step = fine - points;
    u64 of = low_bits(points) + 2;
    size_t words = (n + 63) / 64;
    for (size_t i = 0; i < n; i++) {
        u64 rest = ((x[i] - start) & low_bits(bits)) >> drop & low_bits(fine), point = rest >> step, total = 0;
        i64 beyond = rest & low_bits(step);
#define CHOSEN(type) { \
    const type *number = (const type *)numbers + (1 + rows) * i; \
    for (int r = 0; r < rows; r++) { \
        const i64 *left = table + r * of + point; \
        i64 value = left[0] + ((left[1] - left[0]) * beyond >> step); \
        u64 set = -(opened[r * words + i / 64] >> i % 64 & 1), masked = number[1 + r]; \
        total += ((set & (u64)(i64)number[0]) + (masked ^ set) - set) * (u64)value; \
    } \
}
        FOR_TYPE(size, CHOSEN)
        out[i] = total;
    }
}

INLINE u64 word_of(const void *numbers, int size, u64 i)
{
    u64 word = 0;
#define WORD_OF(type) word = ((const type *)numbers)[i];
    FOR_TYPE(size, WORD_OF)
    return word;
}

/* cells: of each x a bit for each of its cells, in `size` bytes or in several words: those of its last cells, turned by x,
 * as planes [rows, words]. */
void last_cells(const u64 *x, const void *cells, int size, size_t n, int rows, u64 start, int bits, int low, u64 *out)
{
    u64 count = (u64)1 << (bits - low), wide = count < 64 ? 1 : count / 64;
    size_t words = (n + 63) / 64;
    for (size_t i = 0; i < rows * words; i++) out[i] = 0;
    for (size_t i = 0; i < n; i++) {
        u64 cell = ((x[i] - start) & low_bits(bits)) >> low;
        for (int r = 0; r < rows; r++) {
            u64 place = (count - rows + r - cell) & (count - 1);
            out[r * words + i / 64] |= (word_of(cells, size, wide * i + place / 64) >> place % 64 & 1) << i % 64;
        }
    }
}

/* Word w of each of n x's bits of cells, turned by x: the exclusive or of a cell's bit and those above it (`above`: of the
 * words above, by x), and of that the exclusive or over those x that are kept and chosen, for `groups` times LANES parities.
 * choices: [n, wide, groups times LANES] words. */
INLINE void parities_of(int groups, const u64 *x, const u64 *keep, const void *cells, int size, size_t n, u64 w, u64 wide,
                        u64 each, const u64 *choices, u64 start, int bits, int low, u64 *above, lanes *sums)
{
    u64 whole = each < 64 ? each : 64, all = low_bits(whole);
    for (int g = 0; g < groups; g++) sums[g] = (lanes){0};
#define SUM(type) { \
    const type *number = cells; \
    for (size_t i = 0; i < n; i++, number += wide) { \
        u64 cell = ((x[i] - start) & low_bits(bits)) >> low, jump = w - cell / 64, turn = cell % 64; \
        u64 value = number[jump & (wide - 1)] & all, before = wide > 1 ? number[(jump - 1) & (wide - 1)] : value; \
        if (turn) value = (value << turn | before >> (whole - turn)) & all; \
        for (int by = 1; by < 64; by *= 2) value ^= value >> by; \
        value ^= -above[i] & all; \
        above[i] = value & 1; \
        if (keep) value &= -(u64)(keep[i] != 0); \
        for (int g = 0; g < groups; g++) { \
            lanes chosen; \
            memcpy(&chosen, choices + ((wide * i + w) * groups + g) * LANES, sizeof chosen); \
            sums[g] ^= chosen & value; \
        } \
    } \
}
    FOR_TYPE(size, SUM)
}

/* x: [rows, n]; cells and choices as above: planes [count, words] of rows of cells. scratch: [n]. */
void row_parities(const u64 *x, const u64 *keep, const void *cells, int size, size_t rows, size_t n, const u64 *choices, int count,
                  u64 start, int bits, int low, u64 *scratch, u64 *out)
{
    u64 each = (u64)1 << (bits - low), wide = each < 64 ? 1 : each / 64;
    size_t words = (rows * each + 63) / 64;
    int groups = (count + LANES - 1) / LANES;
    for (size_t i = 0; i < count * words; i++) out[i] = 0;
    for (size_t r = 0; r < rows; r++) {
        const char *numbers = (const char *)cells + r * n * wide * size;
        for (size_t i = 0; i < n; i++) scratch[i] = 0;
        for (u64 w = wide; w-- > 0;) {
            lanes sums[64 / LANES];
#define GROUPS(known) \
    parities_of(known, x + r * n, keep ? keep + r * n : keep, numbers, size, n, w, wide, each, choices, start, bits, low, \
                scratch, sums);
            if (groups == 3) GROUPS(3)
            else GROUPS(groups)
            for (int k = 0; k < count; k++)
                out[k * words + r * each / 64 + w] |= sums[k / LANES][k % LANES] << r * each % 64;
        }
    }
}

/* `count` is known where this is inlined: then sums stay in registers. */
INLINE void lookup_of(int count, const u64 *x, const u64 *table, const void *numbers, int size, size_t n, u64 start,
                      int bits, int low, int drop, u64 *out)
{
    int fine = low - drop;
    u64 cells = (u64)1 << (bits - low);
    for (size_t e = 0; e < n; e++) {
        u64 past = ((x[e] - start) & low_bits(bits)) >> drop, cell = past >> fine, rest = past & low_bits(fine);
        u64 sums[8][8] = {0}, total = 0;
#define ROWS(type) { \
    const type *number = (const type *)numbers + cells * count * e; \
    for (u64 j = 0; j < cells; j++) { \
        const u64 *row = table + ((cell - j) & (cells - 1)) * count; \
        for (int d = 0; d < count; d++) \
            for (int i = 0; i <= d; i++) sums[d][i] += (u64)(i64)number[j * count + i] * row[d]; \
    } \
}
        FOR_TYPE(size, ROWS)
        for (int i = 0; i < count; i++) {
            u64 power = 1, binomial = 1;
            for (int d = i; d < count; d++, power *= rest, binomial = binomial * d / (d - i))
                total += sums[d][i] * power * binomial << fine * (count - 1 - d);
        }
        out[e] = total;
    }
}

/* numbers: [n, cells, count], `size` bytes each; table: [cells, count]; count at most 8. */
void lookup(const u64 *x, const u64 *table, int count, const void *numbers, int size, size_t n, u64 start,
                   int bits, int low, int drop, u64 *out)
{
    switch (count) {
    case 1: lookup_of(1, x, table, numbers, size, n, start, bits, low, drop, out); break;
    case 2: lookup_of(2, x, table, numbers, size, n, start, bits, low, drop, out); break;
    case 3: lookup_of(3, x, table, numbers, size, n, start, bits, low, drop, out); break;
    default: lookup_of(count, x, table, numbers, size, n, start, bits, low, drop, out);
    }
}

/* Bit b of number e to bit e of number b, 64 by 64 (Hacker's Delight, 7-3). */
INLINE void transpose(u64 *x)
{
    u64 mask = 0xffffffff;
    for (int half = 32; half; half /= 2, mask ^= mask << half)
        for (int at = 0; at < 64; at += 2 * half)
            for (int i = at; i < at + half; i++) {
                u64 swapped = ((x[i] >> half) ^ x[i + half]) & mask;
                x[i] ^= swapped << half, x[i + half] ^= swapped;
            }
}

/* Element e's bit b, after `shift`, to bit e of plane b: [bits, words]. */
void to_planes(const u64 *x, size_t n, int shift, int bits, u64 *out)
{
    size_t words = (n + 63) / 64;
    for (size_t w = 0; w < words; w++) {
        size_t length = n - 64 * w < 64 ? n - 64 * w : 64;
        u64 part[64] = {0};
        for (size_t e = 0; e < length; e++) part[e] = x[64 * w + e] >> shift;
        transpose(part);
        for (int b = 0; b < bits; b++) out[b * words + w] = part[b];
    }
}

void from_plane(const u64 *plane, size_t n, u64 *out)
{
    for (size_t e = 0; e < n; e++) out[e] = plane[e / 64] >> e % 64 & 1;
}

/* planes: [bits, words] of c, to which `number` is added; the top one goes to `top`, the others are compared with rho's,
 * of which products has every subset of each block of 4: [blocks, 16, words]. wires: [blocks, 2, words]. */
void compare_blocks(const u64 *planes, const u64 *products, size_t words, int bits, u64 number, u64 *wires,
                           u64 *top)
{
    int blocks = (bits + 2) / 4;
    for (size_t at = 0; at < words; at += LANES) {
        size_t length = words - at < LANES ? words - at : LANES;
        lanes carry = {0}, plane;
        for (int block = 0; block < blocks; block++) {
            lanes same[16], more[8], alone[16];
            for (int s = 0; s < 16; s++) {
                read_lanes(alone + s, products + (16 * block + s) * words + at, length);
                same[s] = alone[s];
            }
            for (int i = 0, half = 8, b = 4 * block; i < 4; i++, half /= 2, b++) {
                lanes bit = {0};
                if (b < bits - 1) {
                    lanes added = (lanes){0} - (number >> b & 1);
                    read_lanes(&plane, planes + b * words + at, length);
                    bit = plane ^ added ^ carry;
                    carry = (plane & added) | (carry & (plane | added));
                }
                bit = ~bit;
                for (int s = 0; s < half; s++) {
                    lanes one = alone[(2 * s + 1) << i];
                    more[s] = i ? more[2 * s + 1] ^ (bit & (one ^ more[2 * s])) : bit & one;
                    same[s] = same[2 * s + 1] ^ (bit & same[2 * s]);
                }
            }
            write_lanes(wires + 2 * block * words + at, length, more);
            write_lanes(wires + (2 * block + 1) * words + at, length, same);
        }
        read_lanes(&plane, planes + (bits - 1) * words + at, length);
        plane ^= carry ^ ((lanes){0} - (number >> (bits - 1) & 1));
        write_lanes(top + at, length, &plane);
    }
}

/* Gates (gates.py): each output is the exclusive or of `most` products of up to n <= 5 wires. A product is
 * folded in chunks that stay in the cache; rows beyond 2^(its wires), and factors beyond its wires, are none and one. */
enum { CHUNK = 64, MOST_SHARES = 32 };

void join(const i64 *rows, const i64 *factors, int outputs, int most, int n, const u64 *masks, i64 mask_count,
          const u64 *products, i64 product_count, const u64 *wires, const u64 *opened, int leader, size_t words, u64 *out)
{
    u64 none[CHUNK] = {0}, public[CHUNK], table[MOST_SHARES / 2][CHUNK];
    for (int i = 0; i < CHUNK; i++) public[i] = leader ? ~(u64)0 : 0;
    for (int product = 0; product < outputs * most; product++) {
        const i64 *row = rows + ((size_t)product << n), *factor = factors + (size_t)product * n;
        u64 *total = out + product / most * words;
        int count = 0;
        while (count < n && factor[count]) count++;
        for (size_t at = 0; at < words; at += CHUNK) {
            size_t length = words - at < CHUNK ? words - at : CHUNK;
            const u64 *share[MOST_SHARES], *sum;
            for (int s = 0; s < 1 << count; s++) {
                i64 place = row[s] - 2;
                share[s] = place == -2                            ? none
                           : place == -1                          ? public
                           : place < mask_count                   ? masks + place * words + at
                           : (place -= mask_count) < product_count ? products + place * words + at
                                                                  : wires + (place - product_count) * words + at;
            }
            sum = share[0];
            for (int i = 0; i < count; i++) {
                const u64 *x = opened + (factor[i] - 1) * words + at;
                for (int s = 0; s < 1 << (count - 1 - i); s++) {
                    const u64 *with = i ? table[2 * s + 1] : share[2 * s + 1], *without = i ? table[2 * s] : share[2 * s];
                    for (size_t w = 0; w < length; w++) table[s][w] = with[w] ^ (x[w] & without[w]);
                }
                sum = table[0];
            }
            if (product % most)
                for (size_t w = 0; w < length; w++) total[at + w] ^= sum[w];
            else
                memcpy(total + at, sum, length * sizeof *sum);
        }
    }
}

/* Trees of seeds (point_function.py). A node: a seed of 128 bits, whose lowest says whether what grows from it is
 * corrected; the next one is 0. `words`: of each of n rows of m nodes, from `at` on, of `wide` words. */

/* The children: what a node becomes (left, right), exclusive or the node, and its row's word where its bit is set. */
void corrected_children(const u64 *nodes, const u64 *left, const u64 *right, const u64 *words, size_t at, size_t wide,
    size_t n, size_t m, u64 *out)
{
    for (size_t row = 0; row < n; row++) {
        const u64 *word = words + row * wide + at;
        const u64 low[2] = {word[0] & ~(u64)2, (word[0] & ~(u64)3) | (word[0] >> 1 & 1)};
        for (size_t j = 0; j < m; j++, nodes += 2, left += 2, right += 2, out += 4) {
            u64 set = -(nodes[0] & 1);
            out[0] = ((left[0] ^ nodes[0]) & ~(u64)2) ^ (set & low[0]);
            out[1] = left[1] ^ nodes[1] ^ (set & word[1]);
            out[2] = ((right[0] ^ nodes[0]) & ~(u64)2) ^ (set & low[1]);
            out[3] = right[1] ^ nodes[1] ^ (set & word[1]);
        }
    }
}

/* The dealer's step: of n points the words of a level, and both parties' nodes on the way, which go on to the next level.
 * `becomes`: left and right of the first party's, and of the other's. `path`: its bit `shift` says where a way turns. */
void deal_level(u64 *first, u64 *second, const u64 *const *becomes, const u64 *path, int shift, u64 *words, size_t at,
    size_t wide, size_t n)
{
    u64 *ways[2] = {first, second};
    for (size_t i = 0; i < n; i++, words += wide) {
        u64 turn = path[i] >> shift & 1, right = -turn, child[2][2][2], word[2];
        for (int party = 0; party < 2; party++)
            for (int side = 0; side < 2; side++) {
                const u64 *node = ways[party] + 2 * i, *hashed = becomes[2 * party + side] + 2 * i;
                child[party][side][0] = (hashed[0] ^ node[0]) & ~(u64)2;
                child[party][side][1] = hashed[1] ^ node[1];
            }
        u64 bits[2] = {(child[0][0][0] ^ child[1][0][0] ^ turn ^ 1) & 1, (child[0][1][0] ^ child[1][1][0] ^ turn) & 1};
        for (int half = 0; half < 2; half++)
            word[half] = ((child[0][0][half] ^ child[1][0][half]) & right) |
                         ((child[0][1][half] ^ child[1][1][half]) & ~right);
        word[0] &= ~(u64)3;
        words[at] = word[0] | bits[0] | bits[1] << 1, words[at + 1] = word[1];
        word[0] |= (bits[1] & right) | (bits[0] & ~right);
        for (int party = 0; party < 2; party++) {
            u64 *node = ways[party] + 2 * i, set = -(node[0] & 1);
            for (int half = 0; half < 2; half++)
                node[half] = ((child[party][1][half] & right) | (child[party][0][half] & ~right)) ^ (set & word[half]);
        }
    }
}

/* `count` numbers of each node, of `size` bytes, out of what it becomes: as above, with a sum for the last exclusive or.
 * Where they fill four blocks, the loops have lengths that the compiler knows. */
#define LEAVES(type, blocks, count) { \
    type *numbers = (type *)out; \
    for (size_t row = 0; row < n; row++) { \
        const type *last = (const type *)(words + row * wide + at); \
        for (size_t j = 0; j < m; j++, i += 2, numbers += (count)) { \
            u64 leaf[8], set = -(nodes[i] & 1); \
            for (int block = 0; block < (blocks); block++) { \
                leaf[2 * block] = becomes[block][i] ^ nodes[i]; \
                leaf[2 * block + 1] = becomes[block][i + 1] ^ nodes[i + 1]; \
            } \
            for (int k = 0; k < (int)(count); k++) \
                numbers[k] = (type)((((u64)((type *)leaf)[k] + (set & (u64)last[k])) ^ sign) - sign); \
        } \
    } \
}
#define ANY_LEAVES(type) LEAVES(type, blocks, count)
#define FULL_LEAVES(type) LEAVES(type, 4, 64 / sizeof(type))

void leaf_numbers(const u64 *nodes, const u64 *const *becomes, const u64 *words, size_t at, size_t wide, size_t n, size_t m,
    int blocks, int count, int size, int negative, char *out)
{
    u64 sign = -(u64)negative;
    size_t i = 0;
    if (blocks == 4 && count * size == 64) FOR_TYPE(size, FULL_LEAVES)
    else FOR_TYPE(size, ANY_LEAVES)
}
