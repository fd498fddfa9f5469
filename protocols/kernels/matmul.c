/* Products of matrices modulo 2^64, exact: x of 64 bits by y of 8 to 64.
 *
 * As in BLIS (Van Zee and van de Geijn, 2015), y is packed into panels of a few columns, and a tile of a few rows of x
 * by one panel keeps its sums in registers. A method says how numbers are multiplied, and what a panel holds:
 *
 * wide    y of 64 bits. AVX-512 has a product of 64 bits (vpmullq), and so have scalars. AVX2 has products of 32 bits:
 *         with x = x0 + 2^32 x1, x y = x0 y0 + 2^32 (x0 y1 + x1 y0). One vpmuludq gives x0 y0; one vpmulld, of y and
 *         of x with its halves exchanged, gives both other products.
 * narrow  y of 32 bits: with x0 signed, x y = x0 y + 2^32 x1 y. One vpmuldq gives x0 y of every second column.
 * bytes   y of 8 bits: x = d0 + 2^16 d1 + 2^32 d2 + 2^48 d3 with signed digits. One vpmaddwd multiplies digits by bytes
 *         and adds two terms; VNNI adds them to the sum, too. A sum over 256 terms stays within 2^30. Where 48 bits of
 *         the result matter, three digits do. */

#include "vectors.h"

enum {
    LANES = VECTOR / 8,
    FEW = 8,           /* rows of x for which y is not packed where a panel would hold it as it is */
    BLOCK = 128,       /* rows of x that one panel serves */
    DEPTH = 256,       /* terms of a panel */
    MOST_COLUMNS = 32, /* of a panel */
    SCRATCH = BLOCK * DEPTH + MOST_COLUMNS * DEPTH + 8 * MOST_COLUMNS /* words: x packed, a panel, a tile at an edge */
};

typedef uint32_t __attribute__((may_alias)) half;

/* Compilers may not make one load of two: each is a broadcast from memory, which costs nothing. */
#define APART(pointer) __asm__("" : "+r"(pointer))

/* A method's parts.
 * pack   of x [rows, depth], what its tiles multiply by: out [rows, even depth]
 * fill   of y [depth, wide], a panel [depth, columns], with zeros beyond
 * tile   out += x panel, of at most so many rows as the method has */
#define PACK_ARGUMENTS const u64 *x, size_t x_row, size_t x_column, size_t rows, size_t depth, u64 *out
#define FILL_ARGUMENTS const void *y, int size, size_t y_row, size_t y_column, size_t depth, size_t wide, void *panel
#define TILE_ARGUMENTS \
    size_t rows, const u64 *x, size_t x_row, const void *panel, size_t y_row, size_t depth, u64 *out, size_t out_row

typedef struct {
    size_t rows, columns; /* of a tile */
    size_t size, shallow; /* bytes of a panel's number; terms of a panel for few rows: its lines stay in the cache */
    void (*pack)(PACK_ARGUMENTS);
    void (*fill)(FILL_ARGUMENTS);
    void (*tile)(TILE_ARGUMENTS);
} Method;

#define PACK(packed) \
    for (size_t r = 0; r < rows; r++, x += x_row, out += depth + depth % 2) \
        for (size_t k = 0; k < depth; k++) { \
            u64 e = x[k * x_column]; \
            out[k] = packed; \
        }

#define FILL(type, element, columns) { \
    const type *from = y; \
    element *to = panel; \
    if (y_column == 1 && wide == columns) \
        for (size_t k = 0; k < depth; k++) \
            for (size_t c = 0; c < columns; c++) to[k * columns + c] = from[k * y_row + c]; \
    else \
        for (size_t k = 0; k < depth; k++) \
            for (size_t c = 0; c < columns; c++) \
                to[k * columns + c] = c < wide ? from[k * y_row + c * y_column] : 0; \
}

/* wide */

#if VECTOR == 32
enum { WIDE_ROWS = 2, WIDE = 2 }; /* of a tile: rows, and vectors of columns */
#define PACKED_WIDE e << 32 | e >> 32
#define WIDE_TILE(rows) { \
    words low[rows][WIDE] = {0}; \
    halves high[rows][WIDE] = {0}; \
    const half *low_halves = (const half *)x + 1; \
    APART(low_halves); \
    for (size_t k = 0; k < depth; k++) \
        UNROLL for (int r = 0; r < rows; r++) { \
            words turned = (words){0} + x[r * x_row + k]; \
            halves x0 = (halves){0} + low_halves[2 * (r * x_row + k)]; \
            UNROLL for (int v = 0; v < WIDE; v++) { \
                words y = *(const words_at *)((const u64 *)panel + k * y_row + v * LANES); \
                low[r][v] += PRODUCTS_U32(x0, y); \
                KEEP(low[r][v]); \
                high[r][v] += (halves)turned * (halves)y; \
                KEEP(high[r][v]); \
            } \
        } \
    UNROLL for (int r = 0; r < rows; r++) \
        UNROLL for (int v = 0; v < WIDE; v++) { \
            words both = (words)high[r][v]; \
            *(words_at *)(out + r * out_row + v * LANES) += low[r][v] + (both << 32) + (both >> 32 << 32); \
        } \
}
#else
enum { WIDE_ROWS = VECTOR == 64 ? 6 : 2, WIDE = 4 };
#define PACKED_WIDE e
#define WIDE_TILE(rows) { \
    words sums[rows][WIDE] = {0}; \
    for (size_t k = 0; k < depth; k++) \
        UNROLL for (int r = 0; r < rows; r++) { \
            words factor = (words){0} + x[r * x_row + k]; \
            UNROLL for (int v = 0; v < WIDE; v++) { \
                sums[r][v] += factor * *(const words_at *)((const u64 *)panel + k * y_row + v * LANES); \
                KEEP(sums[r][v]); \
            } \
        } \
    UNROLL for (int r = 0; r < rows; r++) \
        UNROLL for (int v = 0; v < WIDE; v++) *(words_at *)(out + r * out_row + v * LANES) += sums[r][v]; \
}
#endif

static void pack_wide(PACK_ARGUMENTS) { PACK(PACKED_WIDE) }

static void fill_wide(FILL_ARGUMENTS)
{
#define FILL_WIDE(type) FILL(type, u64, WIDE * LANES)
    FOR_TYPE(size, FILL_WIDE)
}

static void tile_wide(TILE_ARGUMENTS)
{
    switch (rows) {
    case 1: WIDE_TILE(1) break;
#if VECTOR == 64
    case 3: WIDE_TILE(3) break;
    case 4: WIDE_TILE(4) break;
    case 5: WIDE_TILE(5) break;
    case 6: WIDE_TILE(6) break;
#endif
    default: WIDE_TILE(2)
    }
}

static const Method wide = {WIDE_ROWS, WIDE * LANES, 8, 32, pack_wide, fill_wide, tile_wide};

#if VECTOR > 8
/* narrow: a vector of y has twice as many columns. */

#define NARROW_TILE(rows) { \
    words even[rows], odd[rows]; \
    halves high[rows]; \
    UNROLL for (int r = 0; r < rows; r++) even[r] = odd[r] = (words){0}, high[r] = (halves){0}; \
    const half *high_halves = (const half *)x + 1; \
    APART(high_halves); \
    for (size_t k = 0; k < depth; k++) { \
        halves y = *(const halves_at *)((const half *)panel + k * y_row); \
        words y_odd = (words)y >> 32; \
        UNROLL for (int r = 0; r < rows; r++) { \
            size_t at = 2 * (r * x_row + k); \
            halves x0 = (halves){0} + ((const half *)x)[at], x1 = (halves){0} + high_halves[at]; \
            even[r] += PRODUCTS_I32(x0, y); \
            KEEP(even[r]); \
            odd[r] += PRODUCTS_I32(x0, y_odd); \
            KEEP(odd[r]); \
            high[r] += x1 * y; \
            KEEP(high[r]); \
        } \
    } \
    UNROLL for (int r = 0; r < rows; r++) { \
        words both = (words)high[r], left = even[r] + (both << 32), right = odd[r] + (both >> 32 << 32); \
        for (int i = 0; i < LANES; i++) { \
            out[r * out_row + 2 * i] += left[i]; \
            out[r * out_row + 2 * i + 1] += right[i]; \
        } \
    } \
}

static void pack_narrow(PACK_ARGUMENTS) { PACK((e + 0x80000000u) >> 32 << 32 | (uint32_t)e) }

static void fill_narrow(FILL_ARGUMENTS)
{
#define FILL_NARROW(type) FILL(type, half, 2 * LANES)
    FOR_TYPE(size, FILL_NARROW)
}

static void tile_narrow(TILE_ARGUMENTS)
{
    if (rows == 1) NARROW_TILE(1)
    else NARROW_TILE(2)
}

static const Method narrow = {2, 2 * LANES, 4, 32, pack_narrow, fill_narrow, tile_narrow};

/* bytes: pairs of digits by pairs of bytes, of which a panel makes 16 bits each: [depth / 2, columns, 2]. */

enum { BYTES = 4 * LANES }; /* columns of a tile: two vectors */

#define BYTES_TILE(digits) { \
    halves sums[digits][2]; \
    UNROLL for (int d = 0; d < digits; d++) sums[d][0] = sums[d][1] = (halves){0}; \
    for (size_t k = 0; k < depth; k += 2) \
        UNROLL for (int d = 0; d < digits; d++) { \
            halves factor = (halves){0} + ((const half *)(x + k))[d]; \
            UNROLL for (int v = 0; v < 2; v++) { \
                halves y = *(const halves_at *)((const half *)panel + k / 2 * y_row + v * 2 * LANES); \
                ADD_PRODUCTS_I16(sums[d][v], factor, y); \
                KEEP(sums[d][v]); \
            } \
        } \
    UNROLL for (int v = 0; v < 2; v++) \
        for (int i = 0; i < 2 * LANES; i++) { \
            u64 sum = 0; \
            UNROLL for (int d = 0; d < digits; d++) sum += (u64)(i64)(int32_t)sums[d][v][i] << 16 * d; \
            out[v * 2 * LANES + i] += sum; \
        } \
}

INLINE half pair(u64 first, u64 second, int shift)
{
    return (uint16_t)(first >> shift) | (uint32_t)(uint16_t)(second >> shift) << 16;
}

static void pack_bytes(PACK_ARGUMENTS)
{
    const u64 half_digits = 0x800080008000u; /* digits are signed: those above make up for it */
    for (size_t r = 0; r < rows; r++, x += x_row)
        for (size_t k = 0; k < depth; k += 2, out += 2) {
            u64 one = x[k * x_column], two = k + 1 < depth ? x[(k + 1) * x_column] : 0;
            one = (one + half_digits) ^ half_digits, two = (two + half_digits) ^ half_digits;
            for (int d = 0; d < 4; d++) ((half *)out)[d] = pair(one, two, 16 * d);
        }
}

static void fill_bytes(FILL_ARGUMENTS)
{
    const wire8 *one = y;
    half *to = panel;
    for (size_t k = 0; k < depth; k += 2, one += 2 * y_row, to += BYTES) {
        const wire8 *two = one + y_row;
        if (y_column == 1 && wide == BYTES && k + 1 < depth)
            for (size_t c = 0; c < BYTES; c++) to[c] = pair(one[c], two[c], 0);
        else
            for (size_t c = 0; c < BYTES; c++)
                to[c] = c < wide ? pair(one[c * y_column], k + 1 < depth ? two[c * y_column] : 0, 0) : 0;
    }
}

static void tile_four_digits(TILE_ARGUMENTS) { BYTES_TILE(4) }
static void tile_three_digits(TILE_ARGUMENTS) { BYTES_TILE(3) }

static const Method bytes = {1, BYTES, 2, DEPTH, pack_bytes, fill_bytes, tile_four_digits};
static const Method bytes_of_48 = {1, BYTES, 2, DEPTH, pack_bytes, fill_bytes, tile_three_digits};
#endif

static const Method *method_of(int size, int bits, size_t rows)
{
#if VECTOR > 8
    if (size == 1) return bits > 48 ? &bytes : &bytes_of_48;
    /* vpmullq is as fast, on a panel of more bytes. */
    if (size < 8 && (VECTOR == 32 || rows <= FEW)) return &narrow;
#endif
    return &wide;
}

/* out = x [rows, inner] y [inner, columns], y of integers of `size` bytes; distances in elements. */
static void product(const Method *method, const u64 *x, size_t x_row, size_t x_column, const char *y, int size,
                    size_t y_row, size_t y_column, size_t rows, size_t inner, size_t columns, u64 *scratch, u64 *out)
{
    u64 *packed = scratch, *own = packed + BLOCK * DEPTH, *edge = own + MOST_COLUMNS * DEPTH;
    int few = rows <= FEW, in_place = few && size == (int)method->size && y_column == 1;
    size_t most = few ? method->shallow : DEPTH;
    memset(out, 0, rows * columns * sizeof *out);
    for (size_t first = 0; first < rows; first += BLOCK, x += BLOCK * x_row, out += BLOCK * columns) {
        size_t block = rows - first < BLOCK ? rows - first : BLOCK;
        for (size_t k = 0; k < inner; k += most) {
            size_t depth = inner - k < most ? inner - k : most, packed_row = depth + depth % 2;
            method->pack(x + k * x_column, x_row, x_column, block, depth, packed);
            for (size_t j = 0; j < columns; j += method->columns) {
                size_t wide = columns - j < method->columns ? columns - j : method->columns, panel_row = y_row;
                int whole = wide == method->columns;
                const void *panel = y + size * (k * y_row + j * y_column);
                if (!in_place || !whole) {
                    method->fill(panel, size, y_row, y_column, depth, wide, own);
                    panel = own, panel_row = method->columns;
                }
                for (size_t r = 0; r < block; r += method->rows) {
                    size_t some = block - r < method->rows ? block - r : method->rows;
                    u64 *to = out + r * columns + j, *tile = whole ? to : edge;
                    if (!whole) memset(edge, 0, some * method->columns * sizeof *edge);
                    method->tile(some, packed + r * packed_row, packed_row, panel, panel_row, depth, tile,
                                 whole ? columns : method->columns);
                    for (size_t i = 0; !whole && i < some; i++)
                        for (size_t c = 0; c < wide; c++) to[i * columns + c] += edge[i * method->columns + c];
                }
            }
        }
    }
}

const i64 matmul_scratch = SCRATCH;

/* A batch of products, right in the low `bits` bits. sizes: of two dimensions of the batch, rows, inner, columns; then,
 * by dimension of the batch, row and column, the distances of x's elements, and of y's. scratch: matmul_scratch words. */
void matmul(const u64 *x, const char *y, int size, int bits, const i64 *sizes, u64 *scratch, u64 *out)
{
    const i64 *rows = sizes + 2, *of_x = sizes + 5, *of_y = sizes + 9;
    const Method *method = method_of(size, bits, rows[0]);
    for (i64 a = 0; a < sizes[0]; a++)
        for (i64 b = 0; b < sizes[1]; b++, out += rows[0] * rows[2])
            product(method, x + a * of_x[0] + b * of_x[1], of_x[2], of_x[3], y + size * (a * of_y[0] + b * of_y[1]),
                    size, of_y[2], of_y[3], rows[0], rows[1], rows[2], scratch, out);
}
