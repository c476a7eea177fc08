/* A step of the whole decoder for inference on a CPU: new tokens of many sequences in, logits out, keys and values kept.
 *
 * Every product is a panel product: 16 columns of the right-hand side lie together, so that one row of the left-hand
 * side needs one vector of sums per panel and the weights stream through once. The sum of an output goes over k in
 * order, one fused multiply-add after the other (integers: exactly), whatever the number of rows: a token's result does
 * not depend, to the bit, on what else is in the batch or how a prompt was cut into chunks.
 *
 * Shapes: N new tokens of all sequences, M rows, C hidden size, H query heads, K key/value heads, D head dimension,
 * V vocabulary, k the inner dimension of a product. A page holds keys and values of 16 positions.
 * Its twin is the model in plain PyTorch; tests hold both together.
 */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

/* W floats in a vector, and how many vectors of sums the registers hold beside the operands. */
#if defined(__AVX512F__)
enum { W = 16, SUMS = 24 };
#elif defined(__AVX__)
enum { W = 8, SUMS = 12 };
#else
enum { W = 4, SUMS = 24 };
#endif
enum { PANEL = 16, VECS = PANEL / W, ROWS = 6, MOST_PANELS = 4, PAGE = 16, GROUP = 32 };
enum { ROW_BLOCK = 96, K_BLOCK = 256, PANEL_BLOCK = 12 }; /* what stays in the caches while many rows are multiplied */
enum { AHEAD = 2048, WIDENS = 48 }; /* bytes; rows above which it pays to widen bf16 before */
/* Rows at once of integers that are unpacked on the way, and from how many rows on a panel is unpacked before instead. With
 * AVX-512 a few shifts cost less than reading twice or four times the bytes (docs/log.md). */
#if defined(__AVX512BW__)
enum { PACKED_ROWS = ROWS, UNPACKS = INT32_MAX };
#else
enum { PACKED_ROWS = 4, UNPACKS = PACKED_ROWS + 1 };
#endif
enum { FLOAT32, BFLOAT16, INT8, INT4 };

typedef float floats __attribute__((vector_size(W * 4), aligned(4)));
typedef int32_t ints __attribute__((vector_size(W * 4), aligned(4)));
typedef uint32_t bits32 __attribute__((vector_size(W * 4), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(W * 2), aligned(2)));
typedef int16_t pairs __attribute__((vector_size(W * 4), aligned(2))); /* W pairs of neighbours in k */
typedef uint16_t words __attribute__((vector_size(W * 4), aligned(2)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define ROLLED _Pragma("GCC unroll 1") /* where GCC would unroll so much that nothing fits the registers */

/* A product as `product` below has it, done by somebody else. */
typedef void (*Product)(int64_t which, const float *a, int64_t M, float *c, int64_t mode);

typedef struct {
    int64_t layers, C, H, K, D, hidden, V; /* hidden: width of the MLP; all multiples of 16 but V */
    int64_t format, cache_format, embedding_format;
    int64_t pages, threads;
    float eps, scale, cap, angle_scale; /* cap 0: no soft-cap */
    const void *const *weights;         /* per layer qkv, o, fc1, fc2; then the head; as panels */
    const void *embedding;              /* (V, C) */
    const float *frequencies;           /* (D / 2) of the rotary embedding */
    void *keys;                         /* (layers, pages, K, D, 16) */
    void *values;                       /* (layers, pages, K, 16, D) */
    Product product;                    /* for steps of at least `many` tokens, where it is faster; or NULL */
    int64_t many;
} Model;

typedef struct {
    int64_t N, sequences, kept, table_width;
    const int64_t *tokens;  /* (N) */
    const int64_t *starts;  /* (sequences + 1): where each one's tokens begin */
    const int64_t *lengths; /* (sequences): positions that are filled after this step */
    const int64_t *rows;    /* (kept): tokens whose logits are wanted */
    const int64_t *table;   /* (sequences, table_width): their pages */
    float *logits;          /* (kept, V rounded up to panels) */
} Batch;

/* ---- numbers ---- */

INLINE int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

INLINE float from_bfloat16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint16_t to_bfloat16(float value) { /* to the nearest, ties to even; not for NaN */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE floats load(const void *from, int64_t at, int format) {
    if (format == FLOAT32) return *(const floats *)((const float *)from + at);
    halves half = *(const halves *)((const uint16_t *)from + at);
#if defined(__AVX512F__) /* one instruction, for which GCC 12 takes four */
    return (floats)((bits32)_mm512_cvtepu16_epi32((__m256i)half) << 16);
#elif defined(__AVX2__)
    return (floats)((bits32)_mm256_cvtepu16_epi32((__m128i)half) << 16);
#else
    return (floats)(__builtin_convertvector(half, bits32) << 16);
#endif
}

INLINE void store(void *to, int64_t at, float value, int format) {
    if (format == FLOAT32)
        ((float *)to)[at] = value;
    else
        ((uint16_t *)to)[at] = to_bfloat16(value);
}

INLINE floats constant(float value) { return (floats){} + value; }
INLINE floats choose(ints condition, floats yes, floats no) { return (floats)((condition & (ints)yes) | (~condition & (ints)no)); }

/* e^x to about 2 units in the last place: 2^n times a polynomial (Cephes' expf); x is held within +-86. */
INLINE floats exponential(floats x) {
    x = choose(x > 86, constant(86), x);
    x = choose(x < -86, constant(-86), x);
    floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds to a whole number */
    floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    floats p = constant(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (floats)((__builtin_convertvector(n, ints) + 127) << 23);
}

INLINE float sum_of(floats x) {
    float sum = 0;
    UNROLL for (int i = 0; i < W; i++) sum += x[i];
    return sum;
}

static float inverse_rms(const float *x, int64_t n, float eps) {
    floats sums = {};
    float rest = 0;
    int64_t i = 0;
    for (; i + W <= n; i += W) sums += load(x, i, FLOAT32) * load(x, i, FLOAT32);
    for (; i < n; i++) rest += x[i] * x[i];
    return 1 / sqrtf((sum_of(sums) + rest) / n + eps);
}

/* ---- products of floats: c (R, P panels) = or += a (R, k) b (k, P panels) ---- */

enum { SET = 0, ADD = 1, SQUARE = 2 }; /* ADD: onto what is there; SQUARE: relu squared of the result */

INLINE void tile(int R, int P, int format, const float *a, int64_t lda, const void *const *b, int64_t ldb, int64_t k,
                 float *c, int64_t ldc, int mode) {
    floats sums[ROWS][MOST_PANELS * VECS];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < P * VECS; j++)
        sums[r][j] = mode & ADD ? load(c, r * ldc + j * W, FLOAT32) : constant(0);
    for (int64_t i = 0; i < k; i++) {
        floats w[MOST_PANELS * VECS];
        UNROLL for (int p = 0; p < P; p++) UNROLL for (int v = 0; v < VECS; v++)
            w[p * VECS + v] = load(b[p], i * ldb + v * W, format);
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < P * VECS; j++) sums[r][j] += a[r * lda + i] * w[j];
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < P * VECS; j++) {
        floats x = sums[r][j];
        if (mode & SQUARE) x = choose(x < 0, constant(0), x), x *= x; /* NaN stays */
        *(floats *)(c + r * ldc + j * W) = x;
    }
}

/* How many panels at once go with R rows: a divisor of PANEL_BLOCK. */
#define PANELS_OF(R) (SUMS >= 4 * (R) * VECS ? 4 : SUMS >= 3 * (R) * VECS ? 3 : SUMS >= 2 * (R) * VECS ? 2 : 1)

INLINE void few_rows(int R, int format, const float *a, int64_t lda, const void *const *b, int64_t panels, int64_t ldb,
                     int64_t k, float *c, int64_t ldc, int mode) {
    int64_t p = 0;
    for (; p + PANELS_OF(R) <= panels; p += PANELS_OF(R))
        tile(R, PANELS_OF(R), format, a, lda, b + p, ldb, k, c + p * PANEL, ldc, mode);
    for (; p < panels; p++) tile(R, 1, format, a, lda, b + p, ldb, k, c + p * PANEL, ldc, mode);
}

/* `tile` with R, from 1 to 6, as a number that the compiler knows. */
#define WITH_ROWS(tile, R, ...)                 \
    switch (R) {                                \
        case 1: tile(1, __VA_ARGS__); break;    \
        case 2: tile(2, __VA_ARGS__); break;    \
        case 3: tile(3, __VA_ARGS__); break;    \
        case 4: tile(4, __VA_ARGS__); break;    \
        case 5: tile(5, __VA_ARGS__); break;    \
        default: tile(6, __VA_ARGS__);          \
    }

#define ROWS_FUNCTION(name, format)                                                                             \
    static void name(int64_t R, const float *a, int64_t lda, const void *const *b, int64_t panels, int64_t ldb, \
                     int64_t k, float *c, int64_t ldc, int mode) {                                              \
        WITH_ROWS(few_rows, R, format, a, lda, b, panels, ldb, k, c, ldc, mode)                                 \
    }
ROWS_FUNCTION(rows_float32, FLOAT32)
ROWS_FUNCTION(rows_bfloat16, BFLOAT16)

static void rows_times(int format, int64_t R, const float *a, int64_t lda, const void *const *b, int64_t panels,
                       int64_t ldb, int64_t k, float *c, int64_t ldc, int mode) {
    (format == FLOAT32 ? rows_float32 : rows_bfloat16)(R, a, lda, b, panels, ldb, k, c, ldc, mode);
}

INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

/* c (M, ldc) = or += a (M, k) times the panels first .. last - 1 of a weight in floats. For many rows, blocks of panels
 * are widened to fp32 first, into `wide` (PANEL_BLOCK, K_BLOCK, 16). */
static void multiply_floats(int format, const float *a, int64_t M, const void *weight, int64_t k, float *c, int64_t ldc,
                            int mode, int64_t first, int64_t last, float *wide) {
    int64_t k_block = M > 2 * ROWS ? K_BLOCK : k, size = format == FLOAT32 ? 4 : 2;
    for (int64_t m0 = 0; m0 < M; m0 += ROW_BLOCK)
        for (int64_t k0 = 0; k0 < k; k0 += k_block) {
            int64_t k_here = min(k_block, k - k0), m1 = min(M, m0 + ROW_BLOCK);
            int mode_here = (k0 ? ADD : mode & ADD) | (k0 + k_here == k ? mode & SQUARE : 0);
            for (int64_t p = first; p < last; p += PANEL_BLOCK) {
                const void *b[PANEL_BLOCK];
                int64_t panels = min(PANEL_BLOCK, last - p);
                for (int64_t j = 0; j < panels; j++) b[j] = (const char *)weight + ((p + j) * k + k0) * PANEL * size;
                int widens = format != FLOAT32 && M > WIDENS;
                for (int64_t j = 0; widens && j < panels; j++) {
                    for (int64_t i = 0; i < k_here * PANEL; i += W)
                        *(floats *)(wide + j * K_BLOCK * PANEL + i) = load(b[j], i, BFLOAT16);
                    b[j] = wide + j * K_BLOCK * PANEL;
                }
                for (int64_t m = m0; m < m1; m += ROWS)
                    rows_times(widens ? FLOAT32 : format, min(ROWS, m1 - m), a + m * k + k0, k, b, panels, PANEL,
                               k_here, c + m * ldc + p * PANEL, ldc, mode_here);
            }
        }
}

/* ---- products of integers: weights of 8 or 4 bits with a scale for 32 numbers, the other side rounded to 16 bits ---- */

/* A panel of a weight is a sequence of groups: 16 scales in bf16, then words of two or four unsigned numbers, 128 or 8
 * too large: (8 or 4, 16, 2) words, whose lowest numbers are those of a pair of k for 16 columns, the next those of the
 * next pair, and so on. So they are unpacked without moving anything across a vector. */
typedef struct {
    const int16_t *numbers; /* (M, k) */
    const int32_t *sums;    /* (M, k / 32) of each group */
    const float *scales;    /* (M) */
} Rounded;

INLINE ints pair_products(pairs w, int32_t pair) { /* w[2 i] lo + w[2 i + 1] hi */
#if defined(__AVX512BW__)
    return (ints)_mm512_madd_epi16((__m512i)w, _mm512_set1_epi32(pair));
#elif defined(__AVX2__)
    return (ints)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32(pair));
#else
    bits32 both = (bits32)w;
    ints low = (ints)(both << 16) >> 16, high = (ints)both >> 16;
    return low * (int16_t)(pair & 0xffff) + high * (pair >> 16);
#endif
}

/* Number j of every word: pairs of neighbours in k. */
INLINE pairs unpacked(words word, int bits, int j) {
    words moved = word >> (uint16_t)(bits * j);
    return (pairs)(bits * (j + 1) < 16 ? moved & (uint16_t)((1 << bits) - 1) : moved);
}

INLINE int64_t group_bytes(int bits) { return 2 * PANEL + GROUP * PANEL * bits / 8; }

/* R rows times a panel. `wide`: the panel's numbers, `is_unpacked` to 16 bits before. */
INLINE void int_tile(int R, int bits, int is_unpacked, Rounded a, int64_t row, const uint8_t *panel, const int16_t *wide,
                     int64_t k, float *c, int64_t ldc, int mode) {
    floats sums[ROWS][VECS];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < VECS; v++) sums[r][v] = constant(0);
    int wide_bits = is_unpacked ? 16 : bits, numbers = 16 / wide_bits;
    const uint8_t *data = (const uint8_t *)wide;
    for (int64_t g = 0; g < k / GROUP; g++, panel += group_bytes(bits)) {
        ints totals[ROWS][VECS];
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < VECS; v++)
            totals[r][v] = (ints){} - (1 << (bits - 1)) * a.sums[(row + r) * (k / GROUP) + g];
        if (!is_unpacked) {
            data = panel + 2 * PANEL;
            /* The processor's own look-ahead ends with each page of memory. */
            UNROLL for (int line = 0; line < group_bytes(bits); line += 64) __builtin_prefetch(panel + AHEAD + line);
        }
        const int16_t *from = a.numbers + row * k + g * GROUP;
        ROLLED for (int i = 0; i < GROUP / 2 / numbers; i++, data += 4 * PANEL) {
            UNROLL for (int j = 0; j < numbers; j++, from += 2) {
                pairs w[VECS];
                UNROLL for (int v = 0; v < VECS; v++) w[v] = unpacked(*(const words *)(data + v * 4 * W), wide_bits, j);
                UNROLL for (int r = 0; r < R; r++) {
                    int32_t pair;
                    memcpy(&pair, from + r * k, 4);
                    UNROLL for (int v = 0; v < VECS; v++) totals[r][v] += pair_products(w[v], pair);
                }
            }
        }
        UNROLL for (int v = 0; v < VECS; v++) {
            floats scale = load(panel, v * W, BFLOAT16);
            UNROLL for (int r = 0; r < R; r++) sums[r][v] += scale * __builtin_convertvector(totals[r][v], floats);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < VECS; v++) {
        float *to = c + r * ldc + v * W;
        floats before = mode & ADD ? load(to, 0, FLOAT32) : constant(0);
        floats x = sums[r][v] * a.scales[row + r] + before;
        if (mode & SQUARE) x = choose(x < 0, constant(0), x), x *= x;
        *(floats *)to = x;
    }
}

#define INT_ROWS_FUNCTION(name, bits, is_unpacked)                                                            \
    static void name(int64_t R, Rounded a, int64_t row, const uint8_t *panel, const int16_t *wide, int64_t k, \
                     float *c, int64_t ldc, int mode) {                                                       \
        WITH_ROWS(int_tile, R, bits, is_unpacked, a, row, panel, wide, k, c, ldc, mode)                       \
    }
INT_ROWS_FUNCTION(rows_int8, 8, 0)
INT_ROWS_FUNCTION(rows_int4, 4, 0)
INT_ROWS_FUNCTION(rows_int8_unpacked, 8, 1)
INT_ROWS_FUNCTION(rows_int4_unpacked, 4, 1)

INLINE void unpack(int bits, const uint8_t *panel, int64_t k, int16_t *wide) {
    for (int64_t g = 0; g < k / GROUP; g++, panel += group_bytes(bits))
        for (int i = 0; i < GROUP * bits / 32; i++)
            UNROLL for (int j = 0; j < 16 / bits; j++, wide += 2 * PANEL) UNROLL for (int v = 0; v < VECS; v++)
                *(pairs *)(wide + v * 2 * W) =
                    unpacked(*(const words *)(panel + 2 * PANEL + i * 4 * PANEL + v * 4 * W), bits, j);
}

/* c (M, ldc) = or += a (M, k) times the panels first .. last - 1 of a weight. For many rows each panel is unpacked first,
 * into `wide` (k, 16). */
static void multiply_ints(int bits, Rounded a, int64_t M, const uint8_t *weight, int64_t k, float *c, int64_t ldc,
                          int mode, int64_t first, int64_t last, int16_t *wide) {
    int64_t few = M < UNPACKS, rows = few ? PACKED_ROWS : ROWS;
    for (int64_t p = first; p < last; p++) {
        const uint8_t *panel = weight + p * (k / GROUP) * group_bytes(bits);
        if (!few) bits == 8 ? unpack(8, panel, k, wide) : unpack(4, panel, k, wide);
        for (int64_t m = 0; m < M; m += rows)
            (few ? bits == 8 ? rows_int8 : rows_int4 : bits == 8 ? rows_int8_unpacked : rows_int4_unpacked)(
                min(rows, M - m), a, m, panel, wide, k, c + m * ldc + p * PANEL, ldc, mode);
    }
}

/* One row to 16 bits: x = scale * numbers, |numbers| <= 32767; a scale of NaN if x is not finite. */
static void round_row(const float *x, int64_t k, int16_t *numbers, int32_t *sums, float *scale) {
    int32_t top = 0; /* the largest |x| by its bits, among which infinity and NaN are above all numbers */
    for (int64_t i = 0; i < k; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        top = bits > top ? bits : top;
    }
    float most;
    memcpy(&most, &top, 4);
    int finite = top < 0x7f800000;
    *scale = finite ? most / 32767 : NAN;
    float inverse = finite && most > 0 ? 32767 / most : 0;
    for (int64_t g = 0; g < k / GROUP; g++) {
        int32_t sum = 0;
        for (int64_t i = g * GROUP; i < (g + 1) * GROUP; i++) {
            float scaled = finite ? x[i] * inverse : 0;
            int32_t n = (int32_t)((scaled + 12582912.0f) - 12582912.0f);
            numbers[i] = (int16_t)n;
            sum += n;
        }
        sums[g] = sum;
    }
}

/* ---- the step: every thread of the team runs these functions; each `omp for` ends with all threads waiting ---- */

typedef struct {
    const Model *model;
    const Batch *batch;
    int64_t *positions;                                /* (N) */
    float *x, *normed, *qkv, *mixed, *up, *cos, *sin;  /* (N, C), (N, C), (N, (H + 2 K) D), (N, H D), (N, hidden), (N, D / 2) */
    int16_t *numbers;                                  /* (N, widest inner dimension) */
    int32_t *sums;
    float *scales;
    int64_t *units; /* (sequences + 1): where each one's units of attention begin */
    float *scratch; /* (threads, scratch_size) */
    int64_t scratch_size;
} Step;

static float *my_scratch(const Step *s) { return s->scratch + omp_get_thread_num() * s->scratch_size; }

/* c (M, n) = or += a (M, k) times weight number `which`. */
static void product(const Step *s, const float *a, int64_t M, int64_t k, int64_t which, int64_t n, float *c, int64_t ldc,
                    int mode) {
    const Model *m = s->model;
    const void *weight = m->weights[which];
    int64_t panels = rounded_up(n, PANEL) / PANEL;
    if (m->format >= INT8) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < M; row++)
            round_row(a + row * k, k, s->numbers + row * k, s->sums + row * (k / GROUP), s->scales + row);
    }
    int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    int64_t first = panels * me / team, last = panels * (me + 1) / team;
    Rounded rounded = {s->numbers, s->sums, s->scales};
    if (m->format >= INT8)
        multiply_ints(m->format == INT8 ? 8 : 4, rounded, M, weight, k, c, ldc, mode, first, last,
                      (int16_t *)my_scratch(s));
    else
        multiply_floats(m->format, a, M, weight, k, c, ldc, mode, first, last, my_scratch(s));
#pragma omp barrier
}

static void norm_row(const float *x, float *normed, int64_t C, float eps) {
    float r = inverse_rms(x, C, eps);
    for (int64_t i = 0; i < C; i++) normed[i] = x[i] * r;
}

/* The norms of rows[0 .. M) of x; all rows in order without `rows`. */
static void norm(const Step *s, const int64_t *rows, int64_t M) {
    int64_t C = s->model->C;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < M; i++) norm_row(s->x + (rows ? rows[i] : i) * C, s->normed + i * C, C, s->model->eps);
}

/* The stream begins with the norm of the embedding; angles of the rotation by position. */
static void embed(const Step *s) {
    const Model *m = s->model;
    int64_t C = m->C, half = m->D / 2;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s->batch->N; i++) {
        for (int64_t c = 0; c < C; c++) {
            int64_t at = s->batch->tokens[i] * C + c;
            s->normed[i * C + c] = m->embedding_format == FLOAT32 ? ((const float *)m->embedding)[at]
                                                                  : from_bfloat16(((const uint16_t *)m->embedding)[at]);
        }
        norm_row(s->normed + i * C, s->x + i * C, C, m->eps);
        for (int64_t j = 0; j < half; j++) {
            float angle = s->positions[i] * m->frequencies[j];
            s->cos[i * half + j] = cosf(angle) * m->angle_scale;
            s->sin[i * half + j] = sinf(angle) * m->angle_scale;
        }
    }
}

/* Where a position's key or value lies in the cache of a layer: the page's first number. */
INLINE int64_t page_at(const Model *m, int64_t layer, int64_t page, int64_t kv_head, int64_t width) {
    return ((layer * m->pages + page) * m->K + kv_head) * PAGE * width;
}

/* x1, x2 = first and second half of a head, turned by minus theta and divided by their rms, in place. */
static void rotate_norm(float *head, const float *cos, const float *sin, int64_t D, float eps) {
    int64_t half = D / 2;
    for (int64_t i = 0; i < half; i++) {
        float x1 = head[i], x2 = head[i + half];
        head[i] = x1 * cos[i] + x2 * sin[i];
        head[i + half] = x2 * cos[i] - x1 * sin[i];
    }
    float r = inverse_rms(head, D, eps);
    for (int64_t i = 0; i < D; i++) head[i] *= r;
}

/* Queries are turned in place; keys and values go into their pages, keys transposed. */
static void rotate_and_keep(const Step *s, int64_t layer) {
    const Model *m = s->model;
    const Batch *b = s->batch;
    int64_t D = m->D, heads = m->H + 2 * m->K;
#pragma omp for collapse(2) schedule(static)
    for (int64_t i = 0; i < b->N; i++)
        for (int64_t head = 0; head < heads; head++) {
            float *x = s->qkv + (i * heads + head) * D;
            if (head < m->H + m->K) rotate_norm(x, s->cos + i * (D / 2), s->sin + i * (D / 2), D, m->eps);
            if (head < m->H) continue;
            int64_t sequence = 0;
            while (b->starts[sequence + 1] <= i) sequence++;
            int64_t page = b->table[sequence * b->table_width + s->positions[i] / PAGE], slot = s->positions[i] % PAGE;
            if (head < m->H + m->K) {
                int64_t at = page_at(m, layer, page, head - m->H, D) + slot;
                for (int64_t d = 0; d < D; d++) store(m->keys, at + d * PAGE, x[d], m->cache_format);
            } else {
                int64_t at = page_at(m, layer, page, head - m->H - m->K, D) + slot * D;
                for (int64_t d = 0; d < D; d++) store(m->values, at + d, x[d], m->cache_format);
            }
        }
}

/* Attention of up to ROWS rows (a row is a query head at a position) of one sequence that share a key/value head.
 * q and k have an rms of 1, so |scale score| <= scale D and no maximum need be subtracted. */
static void attend_rows(const Step *s, int64_t layer, int64_t sequence, int64_t kv_head, int64_t first_row, int64_t R,
                        float *scratch) {
    const Model *m = s->model;
    const Batch *b = s->batch;
    int64_t D = m->D, heads = m->H + 2 * m->K, share = m->H / m->K;
    int64_t start = b->starts[sequence], last = start + (first_row + R - 1) / share;
    int64_t pages = s->positions[last] / PAGE + 1, S = pages * PAGE, size = m->cache_format == FLOAT32 ? 4 : 2;
    const int64_t *table = b->table + sequence * b->table_width;
    float *q = scratch, *out = q + ROWS * D, *scores = out + ROWS * D;

    for (int64_t r = 0; r < R; r++) {
        const float *from = s->qkv + ((start + (first_row + r) / share) * heads + kv_head * share + (first_row + r) % share) * D;
        for (int64_t d = 0; d < D; d++) q[r * D + d] = from[d] * m->scale;
    }
    for (int64_t page = 0; page < pages; page += PANEL_BLOCK) {
        const void *k[PANEL_BLOCK];
        int64_t panels = min(PANEL_BLOCK, pages - page);
        for (int64_t j = 0; j < panels; j++)
            k[j] = (const char *)m->keys + page_at(m, layer, table[page + j], kv_head, D) * size;
        rows_times(m->cache_format, R, q, D, k, panels, PAGE, D, scores + page * PAGE, S, SET);
    }
    float weights[ROWS];
    for (int64_t r = 0; r < R; r++) {
        int64_t filled = s->positions[start + (first_row + r) / share] + 1, t = 0;
        float *x = scores + r * S;
        floats sums = {};
        for (; t + W <= filled; t += W) {
            floats e = exponential(load(x, t, FLOAT32));
            *(floats *)(x + t) = e;
            sums += e;
        }
        if (t < filled) {
            floats e = exponential(load(x, t, FLOAT32));
            for (int64_t i = 0; i < W; i++) e[i] = t + i < filled ? e[i] : 0;
            *(floats *)(x + t) = e;
            sums += e;
            t += W;
        }
        memset(x + t, 0, (S - t) * sizeof(float));
        weights[r] = 1 / sum_of(sums);
    }
    for (int64_t page = 0; page < pages; page++) { /* what lies after the last position may be anything, NaN too */
        int64_t filled = min(PAGE, s->positions[last] + 1 - page * PAGE);
        const char *v = (const char *)m->values + page_at(m, layer, table[page], kv_head, D) * size;
        for (int64_t p = 0; p < D / PANEL; p += PANEL_BLOCK) {
            const void *panels[PANEL_BLOCK];
            for (int64_t j = 0; j < PANEL_BLOCK; j++) panels[j] = v + (p + j) * PANEL * size;
            rows_times(m->cache_format, R, scores + page * PAGE, S, panels, min(PANEL_BLOCK, D / PANEL - p), D,
                       filled, out + p * PANEL, D, page ? ADD : SET);
        }
    }
    for (int64_t r = 0; r < R; r++) {
        int64_t token = start + (first_row + r) / share, head = kv_head * share + (first_row + r) % share;
        for (int64_t d = 0; d < D; d++) s->mixed[(token * m->H + head) * D + d] = out[r * D + d] * weights[r];
    }
}

static void attend(const Step *s, int64_t layer) {
    const Model *m = s->model;
    const Batch *b = s->batch;
    int64_t share = m->H / m->K;
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = s->units[b->sequences] - 1; unit >= 0; unit--) { /* the longest first */
        int64_t sequence = 0;
        while (s->units[sequence + 1] <= unit) sequence++;
        int64_t rows = (b->starts[sequence + 1] - b->starts[sequence]) * share, here = unit - s->units[sequence];
        int64_t first = here / m->K * ROWS;
        attend_rows(s, layer, sequence, here % m->K, first, min(ROWS, rows - first), my_scratch(s));
    }
}

static void cap_logits(const Step *s, int64_t ld) {
    float cap = s->model->cap;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s->batch->kept * ld; i += W) {
        floats x = load(s->batch->logits, i, FLOAT32);
        *(floats *)(s->batch->logits + i) = cap - 2 * cap / (exponential(x * (2 / cap)) + 1); /* cap tanh(x / cap) */
    }
}

/* The whole step by one team of threads. */
static void run(const Step *s) {
    const Model *m = s->model;
    int64_t N = s->batch->N, qkv = (m->H + 2 * m->K) * m->D, V = rounded_up(m->V, PANEL);
    embed(s);
    for (int64_t layer = 0; layer < m->layers; layer++) {
        norm(s, NULL, N);
        product(s, s->normed, N, m->C, 4 * layer, qkv, s->qkv, qkv, SET);
        rotate_and_keep(s, layer);
        attend(s, layer);
        product(s, s->mixed, N, m->H * m->D, 4 * layer + 1, m->C, s->x, m->C, ADD);
        norm(s, NULL, N);
        product(s, s->normed, N, m->C, 4 * layer + 2, m->hidden, s->up, m->hidden, SQUARE);
        product(s, s->up, N, m->hidden, 4 * layer + 3, m->C, s->x, m->C, ADD);
    }
    norm(s, s->batch->rows, s->batch->kept);
    product(s, s->normed, s->batch->kept, m->C, 4 * m->layers, m->V, s->batch->logits, V, SET);
    if (m->cap > 0) cap_logits(s, V);
}

/* As run, but products are somebody else's, with threads of their own: a team for what lies between two of them. */
static void run_between_products(const Step *s) {
    const Model *m = s->model;
    int64_t N = s->batch->N;
#define TEAM _Pragma("omp parallel num_threads(m->threads)")
    TEAM embed(s);
    for (int64_t layer = 0; layer < m->layers; layer++) {
        TEAM norm(s, NULL, N);
        m->product(4 * layer, s->normed, N, s->qkv, SET);
        TEAM {
            rotate_and_keep(s, layer);
            attend(s, layer);
        }
        m->product(4 * layer + 1, s->mixed, N, s->x, ADD);
        TEAM norm(s, NULL, N);
        m->product(4 * layer + 2, s->normed, N, s->up, SQUARE);
        m->product(4 * layer + 3, s->up, N, s->x, ADD);
    }
    TEAM {
        int64_t V = rounded_up(m->V, PANEL);
        norm(s, s->batch->rows, s->batch->kept);
        product(s, s->normed, s->batch->kept, m->C, 4 * m->layers, m->V, s->batch->logits, V, SET);
        if (m->cap > 0) cap_logits(s, V);
    }
}

/* Run a step. Returns 0, or -1 where there is no memory for its intermediate results: then nothing is changed. */
int decoder_step(const Model *m, const Batch *b) {
    int64_t N = b->N, C = m->C, D = m->D, widest = m->hidden > C ? m->hidden : C, longest = 0;
    for (int64_t i = 0; i < b->sequences; i++) longest = b->lengths[i] > longest ? b->lengths[i] : longest;
    int64_t attention = ROWS * (2 * D + rounded_up(longest, PAGE)), scratch = attention, wide;
    if (m->format >= INT8) /* a thread's, for what it unpacks or widens */
        wide = N >= UNPACKS ? widest * PANEL / 2 : 0;
    else
        wide = N > WIDENS ? PANEL_BLOCK * K_BLOCK * PANEL : 0;
    if (scratch < wide) scratch = wide;
    int64_t floats_per_token = 2 * C + (m->H + 2 * m->K) * D + m->H * D + m->hidden + D + 1;
    char *memory = malloc(N * (floats_per_token * sizeof(float) + sizeof(int64_t) + widest * sizeof(int16_t) +
                               (widest / GROUP + 1) * sizeof(int32_t)) +
                          (b->sequences + 1) * sizeof(int64_t) + m->threads * scratch * sizeof(float));
    if (!memory) return -1;
    Step s = {.model = m, .batch = b};
    s.positions = (int64_t *)memory;
    s.units = s.positions + N;
    s.x = (float *)(s.units + b->sequences + 1);
    s.normed = s.x + N * C;
    s.qkv = s.normed + N * C;
    s.mixed = s.qkv + N * (m->H + 2 * m->K) * D;
    s.up = s.mixed + N * m->H * D;
    s.cos = s.up + N * m->hidden;
    s.sin = s.cos + N * (D / 2);
    s.scales = s.sin + N * (D / 2);
    s.scratch = s.scales + N;
    s.scratch_size = scratch;
    s.sums = (int32_t *)(s.scratch + m->threads * scratch);
    s.numbers = (int16_t *)(s.sums + N * (widest / GROUP + 1));
    s.units[0] = 0;
    for (int64_t i = 0; i < b->sequences; i++) {
        int64_t tokens = b->starts[i + 1] - b->starts[i];
        for (int64_t t = 0; t < tokens; t++) s.positions[b->starts[i] + t] = b->lengths[i] - tokens + t;
        s.units[i + 1] = s.units[i] + m->K * (rounded_up(tokens * (m->H / m->K), ROWS) / ROWS);
    }
    if (m->product && N >= m->many) {
        run_between_products(&s);
    } else {
#pragma omp parallel num_threads(m->threads)
        run(&s);
    }
    free(memory);
    return 0;
}
