/* Oblivious transfer: key streams and their sums, transposition, trees, codes, hashes and check sums (oblivious/folding.py
 * says what they compute).
 *
 * AES is the processor's: these kernels are for x86-64 with AVX2, AES-NI and PCLMULQDQ, and with AVX-512, VAES and
 * VPCLMULQDQ take four blocks at once. Elsewhere `cryptography` encrypts, and torch computes the rest. Whoever calls
 * passes `lanes`: 1 or 4. All counts are of whole vectors: 512 rows.
 *
 * A tree's leaves are streams of a key each. Their sums over all leaves with a bit set, by bit, are those over right
 * children of each level, whose nodes are sums of their children: about two vectors added for each leaf, whatever the
 * depth. A piece of all nodes on the way stays in the first cache. */

#include "vectors.h"

#if defined(__x86_64__) && VECTOR > 8

enum {
    ROUNDS = 10,    /* of AES-128 */
    PIECE = 512,    /* bytes of key stream of a leaf at once */
    MOST_DEPTH = 8, /* of a tree */
    CODE_TERMS = 10, /* of a row, each a place of 16 bits */
    CODE_ROWS = 128,
    CODE_BLOCKS = CODE_ROWS * CODE_TERMS / 8
};

const i64 transfer_lanes = VECTOR == 64 ? 4 : 1; /* at most */

/* Of 128 bits, the most significant byte first in memory. */
struct counter {
    u64 high, low;
};

INLINE struct counter advanced(struct counter from, u64 blocks)
{
    u64 low = from.low + blocks;
    return (struct counter){from.high + (low < blocks), low};
}

__attribute__((target("aes"))) INLINE __m128i next_key(__m128i key, __m128i helped)
{
    key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
    key = _mm_xor_si128(key, _mm_slli_si128(key, 8));
    return _mm_xor_si128(key, _mm_shuffle_epi32(helped, 0xff));
}

/* FIPS 197, 5.2. */
__attribute__((target("aes"))) static void expand_key(const u64 *key, __m128i *keys)
{
    keys[0] = _mm_loadu_si128((const __m128i *)key);
#define NEXT(i, constant) keys[i] = next_key(keys[i - 1], _mm_aeskeygenassist_si128(keys[i - 1], constant))
    NEXT(1, 0x01);
    NEXT(2, 0x02);
    NEXT(3, 0x04);
    NEXT(4, 0x08);
    NEXT(5, 0x10);
    NEXT(6, 0x20);
    NEXT(7, 0x40);
    NEXT(8, 0x80);
    NEXT(9, 0x1b);
    NEXT(10, 0x36);
#undef NEXT
}

#define LANES 1
#include "transfer_lanes.h"
#if VECTOR == 64
#define LANES 4
#include "transfer_lanes.h"
#define BY_LANES(lanes, name, ...) ((lanes) == 4 ? name##_4(__VA_ARGS__) : name##_1(__VA_ARGS__))
#else
#define BY_LANES(lanes, name, ...) ((void)(lanes), name##_1(__VA_ARGS__))
#endif

/* Of leaves' streams from block `start` on: `total` [count], and planes [depth, count] of the leaves with bit i set.
 * leaves: [2^depth, 4], a key and a first counter each; `unknown`: the first leaf's stream counts as zeros. */
void fold(const u64 *leaves, int depth, int unknown, u64 start, size_t count, int lanes, u64 *planes, u64 *total)
{
    __m128i keys[1 << MOST_DEPTH][ROUNDS + 1];
    struct counter counters[1 << MOST_DEPTH];
    for (int leaf = unknown; leaf < 1 << depth; leaf++) {
        const u64 *from = leaves + 4 * leaf;
        expand_key(from, keys[leaf]);
        counters[leaf] = (struct counter){__builtin_bswap64(from[2]), __builtin_bswap64(from[3])};
    }
    BY_LANES(lanes, fold, (const __m128i(*)[ROUNDS + 1])keys, counters, start, depth, unknown, count, planes, total);
}

/* Hashes of rows [count, 2] with an offset [2] added: signed numbers of `width` bytes, or, of width 0, a plane of their
 * lowest bits. key: [2]. */
void hash_rows(const u64 *rows, size_t count, const u64 *offset, u64 first, const u64 *key, int width, int lanes,
               u64 *out)
{
    __m128i keys[ROUNDS + 1];
    expand_key(key, keys);
    BY_LANES(lanes, hash_rows, rows, count, offset, first, keys, width, out);
}

/* Of nodes [trees, width, 2] the children [trees, 2 width, 2], left ones first, and the sums [trees, 2, 2] of either.
 * key: [2]. */
void grow_nodes(const u64 *nodes, size_t trees, size_t width, const u64 *key, int lanes, u64 *children, u64 *sums)
{
    __m128i keys[ROUNDS + 1];
    expand_key(key, keys);
    BY_LANES(lanes, grow_nodes, nodes, trees, width, keys, children, sums);
}

/* Add to rows [count, 2] CODE_TERMS rows each of `secret` [2^16, 2], whose places AES of block numbers draws. count: a
 * multiple of CODE_ROWS. */
void add_code(u64 *rows, size_t count, const u64 *secret, const u64 *key, int lanes)
{
    __m128i keys[ROUNDS + 1];
    expand_key(key, keys);
    BY_LANES(lanes, add_code, rows, count, secret, keys);
}

/* Modulo x^128 + x^7 + x^2 + x + 1: of planes [n, count], the sums [n, 2] of blocks times factors [count]. */
void check_sums(const u64 *planes, size_t n, size_t count, const u64 *factors, int lanes, u64 *out)
{
    for (size_t plane = 0; plane < n; plane++) {
        u64 sum[4];
        BY_LANES(lanes, sum_products, planes + plane * count, factors, count / 2, sum);
        for (int high = 3; high > 1; high--) {
            u64 x = sum[high];
            sum[high - 2] ^= x ^ x << 1 ^ x << 2 ^ x << 7;
            sum[high - 1] ^= x >> 63 ^ x >> 62 ^ x >> 57;
        }
        memcpy(out + 2 * plane, sum, 16);
    }
}

#if VECTOR == 64
#define BYTES_LOW(a, b) (words)_mm512_unpacklo_epi8((__m512i)(a), (__m512i)(b))
#define BYTES_HIGH(a, b) (words)_mm512_unpackhi_epi8((__m512i)(a), (__m512i)(b))
#else
#define BYTES_LOW(a, b) (words)_mm256_unpacklo_epi8((__m256i)(a), (__m256i)(b))
#define BYTES_HIGH(a, b) (words)_mm256_unpackhi_epi8((__m256i)(a), (__m256i)(b))
#endif

/* Bit r of byte c of x[i] changes places with bit i of byte c of x[r]. */
INLINE void transpose_bits(words *x)
{
#define EXCHANGE(distance, mask) \
    UNROLL \
    for (int i = 0; i < 8; i++) \
        if (!(i & distance)) { \
            words moved = (x[i] >> distance ^ x[i + distance]) & mask; \
            x[i + distance] ^= moved; \
            x[i] ^= moved << distance; \
        }
    EXCHANGE(1, 0x5555555555555555ull)
    EXCHANGE(2, 0x3333333333333333ull)
    EXCHANGE(4, 0x0f0f0f0f0f0f0f0full)
#undef EXCHANGE
}

INLINE void interleave(const words *x, words *y)
{
    UNROLL
    for (int i = 0; i < 8; i++) {
        y[2 * i] = BYTES_LOW(x[i], x[i + 8]);
        y[2 * i + 1] = BYTES_HIGH(x[i], x[i + 8]);
    }
}

/* Planes [128, count] as rows [64 count, 2]. */
void transpose_planes(const u64 *planes, size_t count, u64 *rows)
{
    words bytes[8][16];
    for (size_t at = 0; at < count; at += VECTOR / 8) {
        for (int group = 0; group < 16; group++) {
            words x[8];
            UNROLL
            for (int i = 0; i < 8; i++) x[i] = *(const words_at *)(planes + (8 * group + i) * count + at);
            transpose_bits(x);
            UNROLL
            for (int i = 0; i < 8; i++) bytes[i][group] = x[i];
        }
        for (int bit = 0; bit < 8; bit++) {
            words *x = bytes[bit], y[16];
            /* Four times, the bytes of both halves: each 16 by 16 bytes are transposed. */
            interleave(x, y);
            interleave(y, x);
            interleave(x, y);
            interleave(y, x);
            for (int byte = 0; byte < VECTOR; byte++)
                memcpy(rows + 2 * (64 * at + 8 * byte + bit), (const char *)&x[byte % 16] + byte / 16 * 16, 16);
        }
    }
}

#else

const i64 transfer_lanes = 0;

void fold(void) {}
void hash_rows(void) {}
void check_sums(void) {}
void grow_nodes(void) {}
void add_code(void) {}
void transpose_planes(void) {}

#endif
