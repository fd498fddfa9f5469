/* What AES and products without carries do in transfer.c, of LANES blocks of 128 bits in a vector: 1 or 4. Included
 * once for each. */

#if LANES == 4
#define NAME(name) name##_4
#define TARGET __attribute__((target("aes,pclmul,vaes,vpclmulqdq")))
#define BLOCKS __m512i
#define LOAD(from) _mm512_loadu_si512((const void *)(from))
#define STORE(to, v) _mm512_storeu_si512((void *)(to), v)
#define EVERY(block) _mm512_broadcast_i32x4(block)
#define XOR(a, b) _mm512_xor_si512(a, b)
#define AND(a, b) _mm512_and_si512(a, b)
#define ADD(a, b) _mm512_add_epi64(a, b)
#define SHUFFLE(a, b) _mm512_shuffle_epi8(a, b)
#define NUMBERED(low, high) _mm512_add_epi64(EVERY(_mm_set_epi64x((i64)(high), (i64)(low))), \
                                             _mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0))
#define ROUND(x, key) _mm512_aesenc_epi128(x, key)
#define LAST_ROUND(x, key) _mm512_aesenclast_epi128(x, key)
#define CARRYLESS(a, b, which) _mm512_clmulepi64_epi128(a, b, which)
#else
#define NAME(name) name##_1
#define TARGET __attribute__((target("aes,pclmul")))
#define BLOCKS __m128i
#define LOAD(from) _mm_loadu_si128((const __m128i *)(from))
#define STORE(to, v) _mm_storeu_si128((__m128i *)(to), v)
#define EVERY(block) (block)
#define XOR(a, b) _mm_xor_si128(a, b)
#define AND(a, b) _mm_and_si128(a, b)
#define ADD(a, b) _mm_add_epi64(a, b)
#define SHUFFLE(a, b) _mm_shuffle_epi8(a, b)
#define NUMBERED(low, high) _mm_set_epi64x((i64)(high), (i64)(low))
#define ROUND(x, key) _mm_aesenc_si128(x, key)
#define LAST_ROUND(x, key) _mm_aesenclast_si128(x, key)
#define CARRYLESS(a, b, which) _mm_clmulepi64_si128(a, b, which)
#endif

/* AES of eight vectors, in place. */
TARGET INLINE void NAME(encrypt)(const __m128i *keys, BLOCKS *x)
{
    BLOCKS key = EVERY(keys[0]);
    UNROLL
    for (int i = 0; i < 8; i++) x[i] = XOR(x[i], key);
    UNROLL
    for (int round = 1; round < ROUNDS; round++) {
        key = EVERY(keys[round]);
        UNROLL
        for (int i = 0; i < 8; i++) x[i] = ROUND(x[i], key);
    }
    key = EVERY(keys[ROUNDS]);
    UNROLL
    for (int i = 0; i < 8; i++) x[i] = LAST_ROUND(x[i], key);
}

/* PIECE bytes of key stream. */
TARGET INLINE void NAME(stream)(const __m128i *keys, struct counter counter, u64 *out)
{
    const BLOCKS reversed = EVERY(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (int at = 0; at < PIECE / 16; at += 8 * LANES) {
        BLOCKS x[8];
        if (counter.low + PIECE / 16 < counter.low) { /* a carry among these */
            u64 blocks[2 * 8 * LANES];
            for (int i = 0; i < 8 * LANES; i++) {
                struct counter next = advanced(counter, (u64)(at + i));
                blocks[2 * i] = next.low;
                blocks[2 * i + 1] = next.high;
            }
            for (int i = 0; i < 8; i++) x[i] = LOAD(blocks + 2 * i * LANES);
        } else {
            x[0] = NUMBERED(counter.low + (u64)at, counter.high);
            UNROLL
            for (int i = 1; i < 8; i++) x[i] = ADD(x[0], EVERY(_mm_set_epi64x(0, i * LANES)));
        }
        UNROLL
        for (int i = 0; i < 8; i++) x[i] = SHUFFLE(x[i], reversed);
        NAME(encrypt)(keys, x);
        UNROLL
        for (int i = 0; i < 8; i++) STORE(out + 2 * at + 2 * i * LANES, x[i]);
    }
}

TARGET static void NAME(fold)(const __m128i (*keys)[ROUNDS + 1], const struct counter *counters, u64 start, int depth,
                              int unknown, size_t count, u64 *planes, u64 *total)
{
    enum { WIDE = PIECE / VECTOR };
    words sums[MOST_DEPTH][WIDE], left[MOST_DEPTH + 1][WIDE], node[WIDE];
    for (size_t at = 0; at < count; at += PIECE / 8) {
        memset(sums, 0, sizeof sums);
        memset(left[0], 0, sizeof left[0]);
        for (int leaf = unknown; leaf < 1 << depth; leaf++) {
            NAME(stream)(keys[leaf], advanced(counters[leaf], start + at / 2), (u64 *)node);
            int level = 0;
            for (; leaf >> level & 1; level++) { /* a right child: its parent is known now, too */
                for (int i = 0; i < WIDE; i++) {
                    sums[level][i] ^= node[i];
                    node[i] ^= left[level][i];
                }
            }
            memcpy(left[level], node, sizeof node);
        }
        size_t size = count - at < PIECE / 8 ? 8 * (count - at) : PIECE;
        for (int level = 0; level < depth; level++) memcpy(planes + level * count + at, sums[level], size);
        memcpy(total + at, left[depth], size);
    }
}

TARGET static void NAME(hash_rows)(const u64 *rows, size_t count, const u64 *offset, u64 first, const __m128i *keys,
                                   int width, u64 *out)
{
    const BLOCKS add = EVERY(_mm_loadu_si128((const __m128i *)offset));
    u64 hashed[2 * 8 * LANES];
    for (size_t at = 0; at < count; at += 8 * LANES) {
        BLOCKS once[8], twice[8];
        UNROLL
        for (int i = 0; i < 8; i++) once[i] = XOR(LOAD(rows + 2 * at + 2 * i * LANES), add);
        NAME(encrypt)(keys, once);
        BLOCKS tweak = NUMBERED(first + at, 0);
        UNROLL
        for (int i = 0; i < 8; i++) twice[i] = XOR(once[i], ADD(tweak, EVERY(_mm_set_epi64x(0, i * LANES))));
        NAME(encrypt)(keys, twice);
        UNROLL
        for (int i = 0; i < 8; i++) STORE(hashed + 2 * i * LANES, XOR(twice[i], once[i]));
        if (width) {
            int high = 64 - 8 * width;
            for (int i = 0; i < 8 * LANES; i++) out[at + i] = (u64)((i64)(hashed[2 * i] << high) >> high);
        } else {
            u64 bits = 0;
            for (int i = 0; i < 8 * LANES; i++) bits |= (hashed[2 * i] & 1) << i;
            if (at % 64 == 0) out[at / 64] = 0;
            out[at / 64] |= bits << at % 64;
        }
    }
}

/* The hash of a node is pi(s) xor s, s its halves (low, high) turned to (high, low xor high). */
TARGET static void NAME(grow_nodes)(const u64 *nodes, size_t trees, size_t width, const __m128i *keys, u64 *children,
                                    u64 *sums)
{
    const BLOCKS high = EVERY(_mm_set_epi64x(-1, 0));
    const BLOCKS halves = EVERY(_mm_set_epi8(7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8));
    u64 last[2 * 8 * LANES] = {0}, hashed[2 * 8 * LANES];
    __m128i sum[2] = {_mm_setzero_si128(), _mm_setzero_si128()}, *left = (__m128i *)children;
    size_t count = trees * width, place = 0;
    for (size_t at = 0; at < count; at += 8 * LANES) {
        size_t size = count - at < 8 * LANES ? count - at : 8 * LANES;
        const u64 *from = nodes + 2 * at;
        if (size < 8 * LANES) from = memcpy(last, from, 16 * size);
        BLOCKS turned[8], x[8];
        UNROLL
        for (int i = 0; i < 8; i++) {
            BLOCKS node = LOAD(from + 2 * i * LANES);
            x[i] = turned[i] = XOR(SHUFFLE(node, halves), AND(node, high));
        }
        NAME(encrypt)(keys, x);
        UNROLL
        for (int i = 0; i < 8; i++) STORE(hashed + 2 * i * LANES, XOR(x[i], turned[i]));
        for (size_t i = 0; i < size; i++) {
            __m128i hash = _mm_loadu_si128((const __m128i *)(hashed + 2 * i));
            __m128i other = _mm_xor_si128(hash, _mm_loadu_si128((const __m128i *)(from + 2 * i)));
            _mm_storeu_si128(left, hash);
            _mm_storeu_si128(left + width, other);
            sum[0] = _mm_xor_si128(sum[0], hash);
            sum[1] = _mm_xor_si128(sum[1], other);
            left++;
            if (++place == width) { /* the next tree */
                memcpy(sums, sum, sizeof sum);
                memset(sum, 0, sizeof sum);
                sums += 4;
                left += width;
                place = 0;
            }
        }
    }
}

/* CODE_BLOCKS of AES are the places of CODE_ROWS rows. */
TARGET static void NAME(add_code)(u64 *rows, size_t count, const u64 *secret, const __m128i *keys)
{
    uint16_t places[8 * CODE_BLOCKS];
    for (size_t at = 0; at < count; at += CODE_ROWS) {
        for (int block = 0; block < CODE_BLOCKS; block += 8 * LANES) {
            BLOCKS x[8], first = NUMBERED(at / CODE_ROWS * CODE_BLOCKS + (u64)block, 0);
            UNROLL
            for (int i = 0; i < 8; i++) x[i] = ADD(first, EVERY(_mm_set_epi64x(0, i * LANES)));
            NAME(encrypt)(keys, x);
            UNROLL
            for (int i = 0; i < 8; i++) STORE(places + 8 * (block + i * LANES), x[i]);
        }
        for (int row = 0; row < CODE_ROWS; row++) {
            __m128i *to = (__m128i *)(rows + 2 * (at + (size_t)row)), sum = _mm_loadu_si128(to);
            UNROLL
            for (int i = 0; i < CODE_TERMS; i++)
                sum = _mm_xor_si128(sum, _mm_loadu_si128((const __m128i *)(secret + 2 * places[CODE_TERMS * row + i])));
            _mm_storeu_si128(to, sum);
        }
    }
}

/* The sum over blocks of plane times coefficient, of degree below 256: four words. */
TARGET static void NAME(sum_products)(const u64 *plane, const u64 *factors, size_t blocks, u64 *out)
{
    BLOCKS low = EVERY(_mm_setzero_si128()), middle = low, high = low;
    size_t at = 0;
    for (; at + LANES <= blocks; at += LANES) {
        BLOCKS a = LOAD(plane + 2 * at), b = LOAD(factors + 2 * at);
        low = XOR(low, CARRYLESS(a, b, 0x00));
        middle = XOR(middle, XOR(CARRYLESS(a, b, 0x01), CARRYLESS(a, b, 0x10)));
        high = XOR(high, CARRYLESS(a, b, 0x11));
    }
    u64 sums[3][2 * LANES];
    STORE(sums[0], low);
    STORE(sums[1], middle);
    STORE(sums[2], high);
    memset(out, 0, 32);
    for (int lane = 0; lane < LANES; lane++)
        for (int part = 0; part < 3; part++) {
            out[part] ^= sums[part][2 * lane];
            out[part + 1] ^= sums[part][2 * lane + 1];
        }
}

#undef NAME
#undef TARGET
#undef BLOCKS
#undef LOAD
#undef STORE
#undef EVERY
#undef XOR
#undef AND
#undef ADD
#undef SHUFFLE
#undef NUMBERED
#undef ROUND
#undef LAST_ROUND
#undef CARRYLESS
#undef LANES
