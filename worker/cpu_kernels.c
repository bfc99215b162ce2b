// What PyTorch and NumPy do slowly on a CPU: GroupNorm of channels_last tensors with the SiLU that may follow (PyTorch takes three times
// as long, and in bf16 lays a copy out), and the rest of a step (of a few images the calls take longer than the work).
// worker/cpu_kernels.py calls these, hatch_build.py compiles them.
//
// An image's numbers come about in the same order however many images and threads there are, so batches of all sizes agree to the bit.

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINED static inline __attribute__((always_inline))

enum { BLOCK = 64 }; // channels that are summed side by side, in registers

int omp_get_max_threads(void);

INLINED float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINED uint32_t as_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINED float load(const void *x, long i, int bf16) {
    return bf16 ? as_float((uint32_t)((const uint16_t *)x)[i] << 16) : ((const float *)x)[i];
}

INLINED void store(void *out, long i, float y, int bf16) {
    if (bf16) { // to the nearest, of two to the even one; what is not a number stays so
        uint32_t bits = as_bits(y), nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        ((uint16_t *)out)[i] = y != y ? 0x7fc0 : nearest;
    } else {
        ((float *)out)[i] = y;
    }
}

// y / (1 + e^-y). e^-y = 2^t = 2^n 2^f, n an integer and f in [-1/2, 1/2], of which a polynomial makes 2^f.
INLINED float silu(float y) {
    const float round = 12582912; // 1.5 * 2^23: a sum with it has no bits left for a fraction
    float t = y * -1.44269504f;   // log2(e)
    t = t < -126 ? -126 : t;
    t = t > 126 ? 126 : t;
    float sum = t + round, f = t - (sum - round);
    float power = ((((0.0013333558f * f + 0.0096181291f) * f + 0.0555041087f) * f + 0.2402265070f) * f + 0.6931471806f) * f + 1;
    return y / (1 + as_float(as_bits(power) + (as_bits(sum) << 23)));
}

// Of `width` channels from the one at `x`: sums over all positions, or of squared distances from `mean` where that is given.
INLINED void sum_block(const void *x, long first, long positions, long C, long width, const float *mean, float *sums, int bf16) {
    float s[BLOCK] = {0};
    for (long p = 0; p < positions; p++)
        for (long c = 0; c < width; c++) {
            float value = load(x, first + p * C + c, bf16), distance = mean ? value - mean[c] : value;
            s[c] += mean ? distance * distance : value;
        }
    memcpy(sums, s, width * sizeof *s);
}

INLINED void sum_all(const void *x, long first, long positions, long C, long channels, const float *mean, float *sums, int bf16) {
    long c = 0;
    for (; c + BLOCK <= channels; c += BLOCK) sum_block(x, first + c, positions, C, BLOCK, mean ? mean + c : 0, sums + c, bf16);
    if (c < channels) sum_block(x, first + c, positions, C, channels - c, mean ? mean + c : 0, sums + c, bf16);
}

// `channels` of one image, from element `first` on: whole groups of `D` channels.
INLINED void normalise(
    const void *x, const float *weight, const float *bias, void *out, long first, long positions, long C, long channels, long D, float eps,
    int with_silu, int bf16
) {
    float mean[channels], scale[channels];
    sum_all(x, first, positions, C, channels, 0, mean, bf16);
    for (long g = 0; g < channels; g += D) {
        double sum = 0;
        for (long c = g; c < g + D; c++) sum += mean[c];
        for (long c = g; c < g + D; c++) mean[c] = sum / (positions * D);
    }
    sum_all(x, first, positions, C, channels, mean, scale, bf16);
    for (long g = 0; g < channels; g += D) {
        double sum = 0;
        for (long c = g; c < g + D; c++) sum += scale[c];
        for (long c = g; c < g + D; c++) scale[c] = weight[c] / sqrt(sum / (positions * D) + eps);
    }
    for (long p = 0; p < positions; p++)
        for (long c = 0; c < channels; c++) {
            float y = (load(x, first + p * C + c, bf16) - mean[c]) * scale[c] + bias[c];
            store(out, first + p * C + c, with_silu ? silu(y) : y, bf16);
        }
}

#define NORMALISE(name, with_silu, bf16)                                                                                         \
    FOR_EACH_PROCESSOR static void name(                                                                                         \
        const void *x, const float *weight, const float *bias, void *out, long first, long positions, long C, long channels,     \
        long D, float eps                                                                                                        \
    ) {                                                                                                                          \
        normalise(x, weight, bias, out, first, positions, C, channels, D, eps, with_silu, bf16);                                 \
    }
NORMALISE(norm_fp32, 0, 0)
NORMALISE(norm_silu_fp32, 1, 0)
NORMALISE(norm_bf16, 0, 1)
NORMALISE(norm_silu_bf16, 1, 1)

// x and out: B images of `positions` rows of C channels, float32 or bf16. weight, bias: float32 (C,).
void group_norm(
    const void *x, const float *weight, const float *bias, void *out, long B, long positions, long C, long groups, float eps, int with_silu,
    int bf16
) {
    const int threads = omp_get_max_threads();
    long parts = 1; // of an image's channels, so that all threads have as much to do
    while (B * parts % threads && groups % (2 * parts) == 0 && C / (2 * parts) >= 16) parts *= 2;
    const long channels = C / parts;
#pragma omp parallel for schedule(static)
    for (long i = 0; i < B * parts; i++) {
        const long c = i % parts * channels, first = i / parts * positions * C + c;
        (bf16 ? with_silu ? norm_silu_bf16 : norm_bf16 : with_silu ? norm_silu_fp32 : norm_fp32)(
            x, weight + c, bias + c, out, first, positions, C, channels, C / groups, eps
        );
    }
}

// worker/rows.py's next_state, in place. columns: those of worker/pool.py, 12 by B. x and x_0_hat: a row of `size` for each slot; out: one for
// each of B; noise: `depth` for each slot.
FOR_EACH_PROCESSOR void advance(
    const double *columns, float *x, float *x_0_hat, const float *out, const float *noise, long B, long size, long depth
) {
    for (long i = 0; i < B; i++) {
        const long slot = columns[i], draw = columns[4 * B + i];
        float row[7]; // p, q, bound, a, b, d, s
        for (int k = 0; k < 7; k++) row[k] = columns[(5 + k) * B + i];
        const float p = row[0], q = row[1], bound = row[2], a = row[3], b = row[4], d = row[5], s = row[6];
        float *restrict own_x = x + slot * size, *restrict own_x_0_hat = x_0_hat + slot * size;
        const float *restrict own_out = out + i * size, *restrict own_noise = noise + (slot * depth + draw % depth) * size;
        for (long k = 0; k < size; k++) {
            float y = p * own_x[k] + q * own_out[k];
            y = y < -bound ? -bound : y;
            y = y > bound ? bound : y;
            y += own_out[k] - own_out[k]; // of what is not finite, NaN
            float after = a * y + b * own_x[k];
            after = d ? after + d * own_x_0_hat[k] : after;
            own_x[k] = s ? after + s * own_noise[k] : after;
            own_x_0_hat[k] = y;
        }
    }
}
