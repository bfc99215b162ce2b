// Functions for what PyTorch does slowly on a CPU:
//
// - GroupNorm of channels_last tensors, with the activation that may follow. PyTorch takes three
//   times as long, and in bf16 makes a copy in another layout. Its activations compute the last
//   values of a part in another way than the others, and a batch decides what is last.
// - What a step does around the network. For a few images, PyTorch's calls take longer than the
//   work.
//
// hatch_build.py compiles this file, and worker/backends/cpu/kernels.py calls the functions.
//
// An image's numbers are computed in the same order for any number of images and threads. So
// batches of all sizes agree to the bit.

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#define FOR_EACH_PROCESSOR \
    __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define TWO_PI 6.283185307179586
#define INLINED static inline __attribute__((always_inline))

// Channels that are summed side by side, in registers, and lanes of noise that are drawn at once.
enum { BLOCK = 64 };
// Positions that are summed in float32. Many more would cost digits.
enum { LONGEST = 1024 };

// The hash of this file, which tells whether a library was compiled from it.
const char source[] = SOURCE;

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
    if (bf16) {
        // Round to the nearest, and halfway to the even one. NaN stays NaN.
        uint32_t bits = as_bits(y), nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        ((uint16_t *)out)[i] = y != y ? 0x7fc0 : nearest;
    } else {
        ((float *)out)[i] = y;
    }
}

// 2^t = 2^n 2^f for an integer n and f in [-1/2, 1/2]. A polynomial computes 2^f.
INLINED float power_of_2(float t) {
    // 1.5 * 2^23. A sum with it has no bits left for a fraction.
    const float round = 12582912;
    t = t < -126 ? -126 : t;
    t = t > 126 ? 126 : t;
    float sum = t + round, f = t - (sum - round);
    float power = 0.0013333558f * f + 0.0096181291f;
    power = power * f + 0.0555041087f;
    power = power * f + 0.2402265070f;
    power = power * f + 0.6931471806f;
    power = power * f + 1;
    return as_float(as_bits(power) + (as_bits(sum) << 23));
}

// y / (1 + e^-y), with log2(e)
INLINED float silu(float y) { return y / (1 + power_of_2(y * -1.44269504f)); }

// y tanh(log(1 + e^y)), which is y n / (n + 2) for n = e^y (e^y + 2). From 20 on it is y.
INLINED float mish(float y) {
    const float e = power_of_2(y * 1.44269504f), n = e * (e + 2);
    return y > 20 ? y : y * (n / (n + 2));
}

// y times the normal distribution function
INLINED float gelu(float y) { return 0.5f * y * (1 + erff(y * 0.70710678f)); }

// as worker/backends/cpu/kernels.py counts them
enum { NONE, SILU, MISH, GELU, RELU };

INLINED float activate(float y, int activation) {
    switch (activation) {
        case SILU: return silu(y);
        case MISH: return mish(y);
        case GELU: return gelu(y);
        // NaN stays NaN
        case RELU: return y < 0 ? 0 : y;
        default: return y;
    }
}

// Sums `width` channels, from element `first` on, over all positions. If `mean` is given, sums the
// squared distances from it.
INLINED void sum_block(
    const void *x, long first, long positions, long C, long width, const float *mean, double *sums,
    int bf16
) {
    for (long c = 0; c < width; c++) sums[c] = 0;
    for (long start = 0; start < positions; start += LONGEST) {
        float s[BLOCK] = {0};
        for (long p = start; p < positions && p < start + LONGEST; p++)
            for (long c = 0; c < width; c++) {
                float value = load(x, first + p * C + c, bf16);
                float distance = mean ? value - mean[c] : value;
                s[c] += mean ? distance * distance : value;
            }
        for (long c = 0; c < width; c++) sums[c] += s[c];
    }
}

// Does what sum_block does, for any number of channels.
INLINED void sum_all(
    const void *x, long first, long positions, long C, long channels, const float *mean,
    double *sums, int bf16
) {
    long c = 0;
    for (; c + BLOCK <= channels; c += BLOCK)
        sum_block(x, first + c, positions, C, BLOCK, mean ? mean + c : 0, sums + c, bf16);
    if (c < channels)
        sum_block(x, first + c, positions, C, channels - c, mean ? mean + c : 0, sums + c, bf16);
}

// Normalises `channels` channels of one image, from element `first` on: whole groups of D channels.
INLINED void normalise(
    const void *x, const float *weight, const float *bias, void *out, long first, long positions,
    long C, long channels, long D, float eps, int activation, int bf16
) {
    float mean[channels], scale[channels];
    double sums[channels];
    sum_all(x, first, positions, C, channels, 0, sums, bf16);
    for (long g = 0; g < channels; g += D) {
        double sum = 0;
        for (long c = g; c < g + D; c++) sum += sums[c];
        for (long c = g; c < g + D; c++) mean[c] = sum / (positions * D);
    }
    sum_all(x, first, positions, C, channels, mean, sums, bf16);
    for (long g = 0; g < channels; g += D) {
        double sum = 0;
        for (long c = g; c < g + D; c++) sum += sums[c];
        for (long c = g; c < g + D; c++) scale[c] = weight[c] / sqrt(sum / (positions * D) + eps);
    }
    for (long p = 0; p < positions; p++)
        for (long c = 0; c < channels; c++) {
            float y = (load(x, first + p * C + c, bf16) - mean[c]) * scale[c] + bias[c];
            store(out, first + p * C + c, activate(y, activation), bf16);
        }
}

#define NORMALISE(name, activation, bf16)                                                          \
    FOR_EACH_PROCESSOR static void name(                                                           \
        const void *x, const float *weight, const float *bias, void *out, long first,              \
        long positions, long C, long channels, long D, float eps                                   \
    ) {                                                                                            \
        normalise(                                                                                 \
            x, weight, bias, out, first, positions, C, channels, D, eps, activation, bf16          \
        );                                                                                         \
    }
NORMALISE(norm_fp32, NONE, 0)
NORMALISE(norm_silu_fp32, SILU, 0)
NORMALISE(norm_mish_fp32, MISH, 0)
NORMALISE(norm_gelu_fp32, GELU, 0)
NORMALISE(norm_relu_fp32, RELU, 0)
NORMALISE(norm_bf16, NONE, 1)
NORMALISE(norm_silu_bf16, SILU, 1)
NORMALISE(norm_mish_bf16, MISH, 1)
NORMALISE(norm_gelu_bf16, GELU, 1)
NORMALISE(norm_relu_bf16, RELU, 1)

typedef void (*Norm)(
    const void *, const float *, const float *, void *, long, long, long, long, long, float
);

// GroupNorm, then an activation. x and out hold B images of `positions` rows of C channels, float32
// or bf16. weight and bias are float32: (C,) for all images, or (B, C) if each has its own.
void group_norm(
    const void *x, const float *weight, const float *bias, void *out, long B, long positions,
    long C, long groups, float eps, int each, int activation, int bf16
) {
    static const Norm norms[2][5] = {
        {norm_fp32, norm_silu_fp32, norm_mish_fp32, norm_gelu_fp32, norm_relu_fp32},
        {norm_bf16, norm_silu_bf16, norm_mish_bf16, norm_gelu_bf16, norm_relu_bf16},
    };
    const Norm norm = norms[bf16][activation];
    const int threads = omp_get_max_threads();
    // Parts of an image's channels, so that all threads have as much to do.
    long parts = 1;
    while (B * parts % threads && groups % (2 * parts) == 0 && C / (2 * parts) >= 16) parts *= 2;
    const long channels = C / parts;
#pragma omp parallel for schedule(static)
    for (long i = 0; i < B * parts; i++) {
        const long c = i % parts * channels, first = i / parts * positions * C + c;
        const long w = each ? i / parts * C + c : c;
        norm(x, weight + w, bias + w, out, first, positions, C, channels, C / groups, eps);
    }
}

// Copies x and t of the chains in `columns`, which is WIDTH by B (worker/engine/pool.py). x is the
// pool's, with a row of `size` for each slot.
void gather(const double *columns, const float *x, float *own_x, int64_t *t, long B, long size) {
    for (long i = 0; i < B; i++) {
        memcpy(own_x + i * size, x + (long)columns[i] * size, size * sizeof *x);
        t[i] = columns[B + i];
    }
}

// Draws four words for each of `count` lanes by Philox4x32-10, as models/diffusion/noise.py does.
INLINED void philox(
    uint64_t seed, uint32_t index, uint32_t draw, uint32_t lane, long count,
    uint32_t words[4][BLOCK]
) {
    for (long j = 0; j < count; j++) {
        uint32_t a = lane + j, b = draw, c = index, d = 0, key[2] = {seed, seed >> 32};
        for (int round = 0; round < 10; round++) {
            const uint64_t first = 0xD2511F53ull * a, second = 0xCD9E8D57ull * c;
            a = (second >> 32) ^ b ^ key[0], c = (first >> 32) ^ d ^ key[1], b = second, d = first;
            key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
        }
        words[0][j] = a, words[1][j] = b, words[2][j] = c, words[3][j] = d;
    }
}

// Makes standard normal values: the cosine and the sine of words 0 and 1, then those of 2 and 3.
INLINED void box_muller(uint32_t words[4][BLOCK], long count, float z[4][BLOCK]) {
    for (int k = 0; k < 4; k += 2)
        for (long j = 0; j < count; j++) {
            const double radius = sqrt(-2 * log((words[k][j] + 0.5) * 0x1p-32));
            const double angle = (words[k + 1][j] + 0.5) * (TWO_PI * 0x1p-32);
            z[k][j] = radius * cos(angle), z[k + 1][j] = radius * sin(angle);
        }
}

// Draws the values of up to BLOCK lanes of an image. A lane has four, a quarter of an image apart.
INLINED void draw_block(
    uint64_t seed, uint32_t index, uint32_t draw, uint32_t lane, long count, float z[4][BLOCK]
) {
    uint32_t words[4][BLOCK];
    philox(seed, index, draw, lane, count, words);
    box_muller(words, count, z);
}

// Puts x_T, which is draw 0, into the slots of new chains, and zeros where x_0_hat will be. `chains`
// is 3 by B: slots, seeds and indices. x and x_0_hat have a row of `size` for each slot.
void start(const int64_t *chains, float *x, float *x_0_hat, long B, long size) {
    const long lanes = (size + 3) / 4;
#pragma omp parallel for collapse(2) schedule(static)
    for (long i = 0; i < B; i++)
        for (long lane = 0; lane < lanes; lane += BLOCK) {
            const long count = lanes - lane < BLOCK ? lanes - lane : BLOCK;
            float z[4][BLOCK];
            draw_block(chains[B + i], chains[2 * B + i], 0, lane, count, z);
            for (int quarter = 0; quarter < 4; quarter++) {
                const long first = quarter * lanes + lane;
                const long left = size - first < count ? size - first : count;
                float *restrict own_x = x + chains[i] * size + first;
                float *restrict own_x_0_hat = x_0_hat + chains[i] * size + first;
                for (long k = 0; k < left; k++) own_x[k] = z[quarter][k], own_x_0_hat[k] = 0;
            }
        }
}

// Advances up to BLOCK lanes of chain i.
static void advance_block(
    const double *columns, float *x, float *x_0_hat, const float *out, long B, long size, long i,
    long lane, long lanes
) {
    float row[7]; // p, q, bound, a, b, d, s
    for (int k = 0; k < 7; k++) row[k] = columns[(5 + k) * B + i];
    const float p = row[0], q = row[1], bound = row[2];
    const float a = row[3], b = row[4], d = row[5], s = row[6];
    const long count = lanes - lane < BLOCK ? lanes - lane : BLOCK;
    const long slot = columns[i];
    float z[4][BLOCK];
    if (s) draw_block(columns[2 * B + i], columns[3 * B + i], columns[4 * B + i], lane, count, z);
    for (int quarter = 0; quarter < 4; quarter++) {
        const long first = quarter * lanes + lane;
        const long left = size - first < count ? size - first : count;
        float *restrict own_x = x + slot * size + first;
        float *restrict own_x_0_hat = x_0_hat + slot * size + first;
        const float *restrict own_out = out + i * size + first;
        const float *restrict noise = z[quarter];
        for (long k = 0; k < left; k++) {
            float y = p * own_x[k] + q * own_out[k];
            y = y < -bound ? -bound : y;
            y = y > bound ? bound : y;
            // adds NaN where the network's output is not finite, and 0 elsewhere
            y += own_out[k] - own_out[k];
            float after = a * y + b * own_x[k];
            after = d ? after + d * own_x_0_hat[k] : after;
            own_x[k] = s ? after + s * noise[k] : after;
            own_x_0_hat[k] = y;
        }
    }
}

// Does what advance of worker/engine/step.py does, in place. x and x_0_hat have a row of `size` for
// each slot, out one for each of the B chains.
void advance(const double *columns, float *x, float *x_0_hat, const float *out, long B, long size) {
    const long lanes = (size + 3) / 4;
#pragma omp parallel for collapse(2) schedule(static)
    for (long i = 0; i < B; i++)
        for (long lane = 0; lane < lanes; lane += BLOCK)
            advance_block(columns, x, x_0_hat, out, B, size, i, lane, lanes);
}
