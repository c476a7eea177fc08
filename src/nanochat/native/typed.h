/* The kernels, for one REAL type: bfloat16 or float. Sums are always fp32. */

/* Soft-capped cross-entropy of rows of logits (rows, V), and its gradient, which takes the place of the logits.
 *
 * With z = cap tanh(x / cap) and p = softmax(z): loss = log sum exp z - z_target, and
 * d loss / d x = scale (p - onehot(target)) (1 - tanh^2(x / cap)). |z| <= cap, so no maximum need be subtracted.
 * A row of 2 V floats per thread stays in the cache between its two passes. Returns -1 where there is no memory for it.
 */
int NAME(softcap_cross_entropy)(REAL *restrict logits, const int64_t *restrict targets, float *restrict losses,
                                int64_t rows, int64_t V, float cap, float scale) {
    int failed = 0;
#pragma omp parallel
    {
        float *exps = malloc(2 * V * sizeof(float)), *slopes = exps + V;
        if (!exps) failed = -1;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            if (!exps) continue;
            REAL *x = logits + row * V;
            int64_t target = targets[row];
            float target_z = cap * (1 - 2 / (fast_exp(clamp((2 / cap) * LOAD(x[target]))) + 1));
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t v = 0; v < V; v++) {
                float part = 1 / (fast_exp(clamp((2 / cap) * LOAD(x[v]))) + 1); /* tanh(x / cap) = 1 - 2 part */
                float e = fast_exp(cap - 2 * cap * part);
                sum += e;
                exps[v] = e;
                slopes[v] = 4 * part * (1 - part);
            }
            losses[row] = logf(sum) - target_z;
            float weight = scale / sum;
#pragma omp simd
            for (int64_t v = 0; v < V; v++) x[v] = STORE(weight * exps[v] * slopes[v]);
            x[target] = STORE((weight * exps[target] - scale) * slopes[target]);
        }
        free(exps);
    }
    return failed;
}

static inline float NAME(inverse_rms)(const float *x, int64_t n, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return 1 / sqrtf(sum / n + eps);
}

/* total = x + added (fp32, REAL), normed = total / rms(total), all (rows, C). Without `added`, `total` is not written. */
void NAME(add_norm)(const float *restrict x, const REAL *restrict added, float *restrict total, REAL *restrict normed,
                    int64_t rows, int64_t C, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * C;
        REAL *to = normed + row * C;
        if (added) {
            float *sum = total + row * C;
            for (int64_t c = 0; c < C; c++) sum[c] = from[c] + LOAD(added[row * C + c]);
            from = sum;
        }
        float r = NAME(inverse_rms)(from, C, eps);
        for (int64_t c = 0; c < C; c++) to[c] = STORE(from[c] * r);
    }
}

/* grad (rows, C) += the gradient of x in normed = x / rms(x), given that of normed: r (d - y mean(d y)), y = x r. */
void NAME(norm_backward)(const float *restrict x, const REAL *restrict grad_normed, float *restrict grad, int64_t rows,
                         int64_t C, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * C;
        const REAL *d = grad_normed + row * C;
        float r = NAME(inverse_rms)(from, C, eps), dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t c = 0; c < C; c++) dot += LOAD(d[c]) * from[c];
        float along = dot * r * r * r / C;
        for (int64_t c = 0; c < C; c++) grad[row * C + c] += r * LOAD(d[c]) - along * from[c];
    }
}

/* Split projections (B, T, (H + 2 K) D) into q (B, H, T, D) and k, v (B, K, T, D); turn q and k by minus theta, then
 * divide them by their rms. cos and sin are (angle_rows, T, D) with equal halves, angle_rows B or 1. The inverse rms are
 * kept in inverse (B, T, H + K) for the way back.
 */
void NAME(rotate_norm)(const REAL *restrict qkv, const float *restrict cos, const float *restrict sin, REAL *restrict q,
                       REAL *restrict k, REAL *restrict v, float *restrict inverse, int64_t B, int64_t T, int64_t H,
                       int64_t K, int64_t D, int64_t angle_rows, float eps) {
    int64_t half = D / 2;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < T; t++) {
            const float *c = cos + ((angle_rows == 1 ? 0 : b) * T + t) * D, *s = sin + (c - cos);
            for (int64_t head = 0; head < H + 2 * K; head++) {
                const REAL *from = qkv + ((b * T + t) * (H + 2 * K) + head) * D;
                if (head >= H + K) {
                    memcpy(v + ((b * K + head - H - K) * T + t) * D, from, D * sizeof(REAL));
                    continue;
                }
                REAL *to = head < H ? q + ((b * H + head) * T + t) * D : k + ((b * K + head - H) * T + t) * D;
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < half; i++) {
                    float x1 = LOAD(from[i]), x2 = LOAD(from[i + half]);
                    float y1 = x1 * c[i] + x2 * s[i], y2 = x2 * c[i] - x1 * s[i];
                    sum += y1 * y1 + y2 * y2;
                }
                float r = 1 / sqrtf(sum / D + eps);
                inverse[(b * T + t) * (H + K) + head] = r;
                for (int64_t i = 0; i < half; i++) {
                    float x1 = LOAD(from[i]), x2 = LOAD(from[i + half]);
                    to[i] = STORE(r * (x1 * c[i] + x2 * s[i]));
                    to[i + half] = STORE(r * (x2 * c[i] - x1 * s[i]));
                }
            }
        }
}

/* The way back of rotate_norm: the gradient of qkv from those of q, k and v. */
void NAME(rotate_norm_backward)(const REAL *restrict grad_q, const REAL *restrict grad_k, const REAL *restrict grad_v,
                                const REAL *restrict q, const REAL *restrict k, const float *restrict inverse,
                                const float *restrict cos, const float *restrict sin, REAL *restrict grad_qkv, int64_t B,
                                int64_t T, int64_t H, int64_t K, int64_t D, int64_t angle_rows) {
    int64_t half = D / 2;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < T; t++) {
            const float *c = cos + ((angle_rows == 1 ? 0 : b) * T + t) * D, *s = sin + (c - cos);
            for (int64_t head = 0; head < H + 2 * K; head++) {
                REAL *to = grad_qkv + ((b * T + t) * (H + 2 * K) + head) * D;
                if (head >= H + K) {
                    memcpy(to, grad_v + ((b * K + head - H - K) * T + t) * D, D * sizeof(REAL));
                    continue;
                }
                int64_t at = head < H ? ((b * H + head) * T + t) * D : ((b * K + head - H) * T + t) * D;
                const REAL *y = (head < H ? q : k) + at, *d = (head < H ? grad_q : grad_k) + at;
                float r = inverse[(b * T + t) * (H + K) + head], dot = 0;
#pragma omp simd reduction(+ : dot)
                for (int64_t i = 0; i < D; i++) dot += LOAD(d[i]) * LOAD(y[i]);
                dot /= D;
                for (int64_t i = 0; i < half; i++) {
                    float d1 = r * (LOAD(d[i]) - dot * LOAD(y[i]));
                    float d2 = r * (LOAD(d[i + half]) - dot * LOAD(y[i + half]));
                    to[i] = STORE(d1 * c[i] - d2 * s[i]);
                    to[i + half] = STORE(d2 * c[i] + d1 * s[i]);
                }
            }
        }
}

/* Scores (B H, R, S) of queries first .. first + R - 1 with keys 0 .. S - 1 become probabilities: query t attends to keys
 * starts[t] .. t, starts (start_rows, T) being where its document begins. q and k have an rms of 1, so
 * |scale score| <= sqrt(D) and no maximum need be subtracted.
 */
void NAME(causal_softmax)(REAL *restrict scores, const int32_t *restrict starts, int64_t groups, int64_t H, int64_t R,
                          int64_t S, int64_t first, int64_t T, int64_t start_rows, float scale) {
#pragma omp parallel for collapse(2) schedule(dynamic, 64)
    for (int64_t group = 0; group < groups; group++)
        for (int64_t row = 0; row < R; row++) {
            REAL *x = scores + (group * R + row) * S;
            int64_t t = first + row, from = starts[(start_rows == 1 ? 0 : group / H) * T + t];
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t s = from; s <= t; s++) sum += fast_exp(scale * LOAD(x[s]));
            float weight = 1 / sum;
            memset(x, 0, from * sizeof(REAL));
            for (int64_t s = from; s <= t; s++) x[s] = STORE(weight * fast_exp(scale * LOAD(x[s])));
            memset(x + t + 1, 0, (S - t - 1) * sizeof(REAL));
        }
}

/* As causal_softmax, and the gradient of the probabilities (B H, R, S) becomes that of the unscaled scores. */
void NAME(causal_softmax_backward)(REAL *restrict scores, REAL *restrict grad, const int32_t *restrict starts,
                                   int64_t groups, int64_t H, int64_t R, int64_t S, int64_t first, int64_t T,
                                   int64_t start_rows, float scale) {
#pragma omp parallel for collapse(2) schedule(dynamic, 64)
    for (int64_t group = 0; group < groups; group++)
        for (int64_t row = 0; row < R; row++) {
            REAL *x = scores + (group * R + row) * S, *d = grad + (group * R + row) * S;
            int64_t t = first + row, from = starts[(start_rows == 1 ? 0 : group / H) * T + t];
            float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
            for (int64_t s = from; s <= t; s++) {
                float e = fast_exp(scale * LOAD(x[s]));
                sum += e;
                dot += e * LOAD(d[s]);
            }
            float weight = 1 / sum;
            dot *= weight;
            memset(x, 0, from * sizeof(REAL));
            memset(d, 0, from * sizeof(REAL));
            for (int64_t s = from; s <= t; s++) {
                float p = weight * fast_exp(scale * LOAD(x[s]));
                d[s] = STORE(scale * p * (LOAD(d[s]) - dot));
                x[s] = STORE(p);
            }
            memset(x + t + 1, 0, (S - t - 1) * sizeof(REAL));
            memset(d + t + 1, 0, (S - t - 1) * sizeof(REAL));
        }
}

/* squared = relu(x)^2, over n numbers. */
void NAME(relu_squared)(const REAL *restrict x, REAL *restrict squared, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float positive = LOAD(x[i]) < 0 ? 0 : LOAD(x[i]); /* NaN stays */
        squared[i] = STORE(positive * positive);
    }
}

/* The gradient of relu(x)^2 becomes that of x, over n numbers. */
void NAME(relu_squared_backward)(const REAL *restrict x, REAL *restrict grad, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) grad[i] = STORE(LOAD(grad[i]) * 2 * (LOAD(x[i]) < 0 ? 0 : LOAD(x[i])));
}

/* sum += x, over n numbers. */
void NAME(add_to)(const REAL *restrict x, float *restrict sum, int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) sum[i] += LOAD(x[i]);
}
