/* What PyTorch's operators do in many passes over memory, done in one, forwards and backwards.
 *
 * Every kernel has a twin in plain PyTorch (the model itself, or the code beside its caller) and a test that both
 * agree; without a C compiler the twins do the work. Plain loops, so that the compiler vectorises them for the machine it
 * runs on: built once, at first use, in about a second.
 *
 * Shapes: B batch, T time, S keys, C hidden size, H query heads, K key/value heads, D head dimension, V vocabulary.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bfloat16; /* the upper half of a float */

static inline float from_bfloat16(bfloat16 half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* To the nearest, ties to even; not for NaN. */
static inline bfloat16 to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bfloat16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* e^x for |x| < 87, to about 2 units in the last place: 2^n times a polynomial over [-ln 2 / 2, ln 2 / 2]. */
static inline float fast_exp(float x) {
    float n = __builtin_rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.9875691500e-4f;                            /* coefficients of Cephes' expf */
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

/* Into the range of fast_exp; NaN stays NaN. */
static inline float clamp(float x) { return x > 86 ? 86 : x < -86 ? -86 : x; }

#define REAL bfloat16
#define NAME(name) name##_bfloat16
#define LOAD from_bfloat16
#define STORE to_bfloat16
#include "typed.h"
#undef REAL
#undef NAME
#undef LOAD
#undef STORE

#define REAL float
#define NAME(name) name##_float32
#define LOAD
#define STORE
#include "typed.h"
