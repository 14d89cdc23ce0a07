/* ECA in one visit to each map, for float32 and bfloat16 on the CPU, with or without the end of a residual block.

   In separate operations the map comes from memory for the mean and again for the product, and the block's addition
   and activation read and write it twice more. Here an image is averaged and rescaled before the next one is touched,
   so the second visit finds it in the cache, and that visit adds the shortcut and applies the ReLU.

       mean_c = sum_p x[c, p] / P;   gate_c = sigmoid(sum_j w[j] mean[c + j - k / 2])
       y[c, p] = x[c, p] gate_c    or    y[c, p] = relu(x[c, p] gate_c + shortcut[c, p])

   In inference x may be the output of a convolution whose norm is not computed yet. The norm is an affine map of each
   channel, so its mean is that of x, mapped; and scale_c gate_c and shift_c gate_c take the place of gate_c.

   Backward, with g = dy, or dy where y is positive:

       u_c = gate_c (1 - gate_c) sum_p g[c, p] x[c, p];   dw[j] = sum_c u_c mean[c + j - k / 2]
       dx[c, p] = g[c, p] gate_c + sum_j w[j] u[c - j + k / 2] / P;   dshortcut = g

   A map has N images, C channels and P positions: channel after channel (NCP), or position after position (NPC,
   channels_last). Sums are of floats within fixed blocks and of doubles over the blocks.

   Threads are those of the OpenMP library that torch has loaded, found by name when this module is loaded: two OpenMP
   libraries in one process would compete for the processors. Called by fused.py. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <omp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__)
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORS
#endif

typedef ptrdiff_t Int;

/* Several numbers at any address. Without vector types the compiler would keep the order of a sum and add one by one.
   No wider than the registers: gcc keeps wider vectors on the stack and compares their numbers one by one, which made
   the end of a block 15 times as slow as its gate. */
#if defined(__x86_64__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float Vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
#define AT(x) (*(Vector *)(x))

static inline float sum_of(const Vector *vector) {
    float lanes[WIDTH];
    memcpy(lanes, vector, sizeof lanes);
    for (Int width = WIDTH / 2; width > 0; width /= 2)
        for (Int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

/* Numbers that are summed as floats before they are added to a double, by layout of the map. */
enum { PLANE_BLOCK = 1024, ROW_BLOCK = 32 };

/* Channels of an NPC map that are summed at a time, and if there are too few images for all threads. */
enum { STRIP = 2048, NARROW_STRIP = 128 };

/* Numbers of an NCP image that are averaged before the first of them is written, and the fewest channels. */
enum { NUMBERS_BLOCK = 16384, CHANNEL_BLOCK = 16 };

/* NaN stays NaN, as in torch. */
static inline float relu(float value) { return value < 0 ? 0 : value; }

#define relus(values)                                       \
    ({                                                      \
        Vector values_ = (values);                          \
        (Vector)((Integers)values_ & ~(Integers)(values_ < 0)); \
    })
#define where_positive(values, conditions)                          \
    ({                                                              \
        Vector conditions_ = (conditions);                          \
        (Vector)((Integers)(values) & ~(Integers)(conditions_ <= 0)); \
    })

/* ---- one number a channel ---- */

/* Along the channels: y[c] = sum_j w[j] padded[c + j]; a step of -1 takes the kernel in reverse order. */
VECTORS static void correlate(const float *restrict padded, const float *weight, Int size, Int step, float *restrict y,
                              Int width) {
    memset(y, 0, (size_t)width * sizeof *y);
    for (Int j = 0; j < size; j++) {
        float w = weight[step > 0 ? j : size - 1 - j];
        for (Int c = 0; c < width; c++) y[c] += w * padded[c + j];
    }
}

/* exp(x) = 2^n exp(r) with |r| < ln(2) / 2 (Cephes, expf): libm's would be called once a channel, which takes longer
   than all the rest of a small map. Off by at most 2 units in the last place; NaN stays NaN. */
VECTORS static void sigmoid(float *logits, Int width) {
    for (Int c = 0; c < width; c++) {
        float x = -logits[c];
        x = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
        float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
        float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
        float p = 1.9875691500e-4f;
        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * r * r + r + 1.0f;
        union {
            int32_t bits;
            float value;
        } power = {((int32_t)n + 127) << 23};
        logits[c] = 1.0f / (1.0f + p * power.value);
    }
}

VECTORS static void divide(const double *sums, double by, float *restrict quotients, Int width) {
    double factor = 1 / by;
    for (Int c = 0; c < width; c++) quotients[c] = (float)(sums[c] * factor);
}

VECTORS static void gradients_of_logits(const double *sums, const float *gates, float *restrict dlogits, Int width) {
    for (Int c = 0; c < width; c++) dlogits[c] = (float)(sums[c] * gates[c] * (1.0f - gates[c]));
}

VECTORS static void scale(float *values, float by, Int width) {
    for (Int c = 0; c < width; c++) values[c] /= by;
}

static double dot(const float *a, const float *b, Int width) {
    double sum = 0;
    for (Int c = 0; c < width; c++) sum += (double)a[c] * b[c];
    return sum;
}

/* ---- the work ---- */

typedef struct {
    Int num_images, num_channels, num_positions, kernel_size;
    bool is_channels_last, is_bfloat16;
    const void *x;
    const float *weight;
    /* Added to the rescaled map before the ReLU; NULL for a gate alone. */
    const void *shortcut;
    /* Forward with a shortcut: the norm before the gate, or NULL; `run` computes its scale and shift. */
    const float *norm_weight, *norm_bias, *norm_mean, *norm_variance;
    double norm_eps;
    float *norm_scale, *norm_shift;
    /* Backward: the gradient of the result and, with a shortcut, the result; NULL in forward. */
    const void *dy, *y;
    /* The result, or the gradients of the map and of the shortcut. */
    void *written, *dshortcut;
    /* What forward saves for backward, unless they are NULL. */
    float *mean, *gate;
    float *dweight;
} Job;

/* The end of a block in training, with its norm: norm_visits.h. */
typedef struct {
    Int num_images, num_channels, num_positions, kernel_size;
    bool is_channels_last;
    /* Whether the statistics are those of the batch, which forward computes; else they are constants. */
    bool has_batch_statistics;
    double eps;
    const void *x, *shortcut, *dy, *y;
    const float *norm_weight, *norm_bias, *weight;
    /* The result, or the gradients of x and of the shortcut. */
    void *written, *dshortcut;
    /* One number a channel. */
    double *mean, *variance;
    /* One number an image and channel: the mean of x less that of the channel, the mean of the norm, and the gate. */
    float *deviation, *normalized, *gate;
    /* Of the norm's weight and bias and of the kernel along the channels. */
    float *dnorm_weight, *dnorm_bias, *dweight;
    /* Scratch memory. In backward the mean as a float, subtracted from x, and what the difference is multiplied by. */
    float *center, *slopes;
    /* One number an image and channel. */
    float *factors, *offsets;
    double *sums, *products;
} BlockEnd;

typedef void (*Visit)(const BlockEnd *, Int image, Int begin, Int end);

/* What one thread does: whole images if there are enough for all threads, else its part of each image. */
typedef struct {
    bool has_whole_images;
    Int image_begin, image_end, begin, end;
} Share;

static Share share_of(const Job *job, int thread, int num_threads) {
    Int num_parts = job->is_channels_last ? job->num_positions : job->num_channels;
    if (job->num_images >= num_threads)
        return (Share){true, job->num_images * thread / num_threads, job->num_images * (thread + 1) / num_threads, 0,
                       num_parts};
    /* Whole blocks of positions, so that their sums do not depend on the number of threads. */
    Int step = job->is_channels_last ? ROW_BLOCK : 1, num_steps = (num_parts + step - 1) / step;
    Int begin = num_steps * thread / num_threads * step, end = num_steps * (thread + 1) / num_threads * step;
    return (Share){false, 0, job->num_images, begin, end < num_parts ? end : num_parts};
}

/* ---- the map ---- */

#define NUMBER float
#define LOAD(x) (*(x))
#define STORE(y, value) (*(y) = (value))
#define LOADS(x) AT(x)
#define STORES(y, value) (AT(y) = (value))
#define SUMMING(name) name##_float
#define NAMED(name) name##_float
#define RESIDUAL 0
#include "eca_visits.h"
#undef NAMED
#undef RESIDUAL
#define NAMED(name) name##_residual_float
#define RESIDUAL 1
#include "eca_visits.h"
#undef NAMED
#undef RESIDUAL
#undef NUMBER
#undef LOAD
#undef STORE
#undef LOADS
#undef STORES
#undef SUMMING

/* bfloat16: the upper half of a float; what is cut off is rounded to the nearest, to even between two (IEEE 754). */

static inline float widened(const uint16_t *half) {
    uint32_t bits = (uint32_t)*half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline void narrow(uint16_t *half, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    *half = (uint16_t)(value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0);
}

static inline void widen_all(Vector *values, const uint16_t *halves) {
    *(Bits *)values = __builtin_convertvector(*(const Halves *)halves, Bits) << 16;
}

static inline void narrow_all(uint16_t *halves, const Vector *values) {
    Bits bits = *(const Bits *)values, is_number = (Bits)(*values == *values);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    *(Halves *)halves = __builtin_convertvector((bits & is_number) | (0x7fc0 & ~is_number), Halves);
}

#define NUMBER uint16_t
#define LOAD(x) widened(x)
#define STORE(y, value) narrow(y, value)
#define LOADS(x)                  \
    ({                            \
        Vector values;            \
        widen_all(&values, x);    \
        values;                   \
    })
#define STORES(y, value)          \
    do {                          \
        Vector values_ = (value); \
        narrow_all(y, &values_);  \
    } while (0)
#define SUMMING(name) name##_bfloat16
#define NAMED(name) name##_bfloat16
#define RESIDUAL 0
#include "eca_visits.h"
#undef NAMED
#undef RESIDUAL
#define NAMED(name) name##_residual_bfloat16
#define RESIDUAL 1
#include "eca_visits.h"

/* ---- one image at a time ---- */

typedef void (*Accumulate)(const Job *, const Share *, Int, float *, double *);
typedef void (*WriteOut)(const Job *, const Share *, Int, const float *, const float *);

/* By is_bfloat16 and by whether there is a shortcut. */
static const Accumulate ACCUMULATE[2][2] = {{accumulate_float, accumulate_residual_float},
                                            {accumulate_bfloat16, accumulate_residual_bfloat16}};
static const WriteOut WRITE_OUT[2][2] = {{write_out_float, write_out_residual_float},
                                         {write_out_bfloat16, write_out_residual_bfloat16}};

/* Scratch memory of one call, in lines of one number a channel. */
typedef struct {
    double *sums;
    float *floats;
    double *dweights;
    Int line;
    int num_threads;
} Scratch;

enum { PADDED, PER_CHANNEL, OFFSETS, PARTIAL, NUM_FLOAT_LINES };

/* Two lines of sums a thread, used alternately: a thread may still read one while another has begun the next image. */
static double *sums_of(const Scratch *scratch, Int image, int thread) {
    return scratch->sums + scratch->line * (image % 2 * scratch->num_threads + thread);
}

static float *line_of(const Scratch *scratch, int which, int thread) {
    return scratch->floats + scratch->line * (which * scratch->num_threads + thread);
}

/* Forward, for some channels: from the sums to the means. The line of means has zeros at both ends. */
static void compute_means(const Job *job, const double *sums, float *padded, Int begin, Int end) {
    float *means = padded + job->kernel_size / 2;
    divide(sums + begin, (double)job->num_positions, means + begin, end - begin);
    if (!job->norm_scale) return;
    for (Int c = begin; c < end; c++) means[c] = means[c] * job->norm_scale[c] + job->norm_shift[c];
}

/* Forward, for some channels: from the means of their neighbors to the gates and, with a norm, from these to the
   factors and offsets of the map. Without a norm the offsets stay zeros. */
static void compute_gates(const Job *job, const float *padded, float *gates, float *offsets, Int begin, Int end) {
    correlate(padded + begin, job->weight, job->kernel_size, 1, gates + begin, end - begin);
    sigmoid(gates + begin, end - begin);
    if (!job->norm_scale) return;
    for (Int c = begin; c < end; c++) {
        offsets[c] = gates[c] * job->norm_shift[c];
        gates[c] *= job->norm_scale[c];
    }
}

/* Backward, for some channels: from the sums to the gradients of the logits, in a line with zeros at both ends. */
static void compute_dlogits(const Job *job, Int image, const double *sums, float *padded, Int begin, Int end) {
    gradients_of_logits(sums + begin, job->gate + image * job->num_channels + begin,
                        padded + job->kernel_size / 2 + begin, end - begin);
}

/* Backward, for some channels: what every position of a channel gets through the mean. */
static void compute_dmeans(const Job *job, const float *padded, float *dmeans, Int begin, Int end) {
    correlate(padded + begin, job->weight, job->kernel_size, -1, dmeans + begin, end - begin);
    scale(dmeans + begin, (float)job->num_positions, end - begin);
}

/* Backward: from the gradients of all logits of an image to that of the kernel. */
static void add_dweights(Int width, Int kernel_size, const float *mean, const float *dlogits, double *dweights) {
    for (Int j = 0; j < kernel_size; j++) {
        Int half = kernel_size / 2, shift = j - half, begin = shift < 0 ? -shift : 0, end = shift > 0 ? width - shift : width;
        if (end > begin) dweights[j] += dot(dlogits + begin, mean + begin + shift, end - begin);
    }
}

static void work(const Job *job, const Scratch *scratch, int thread, int num_threads) {
    Share share = share_of(job, thread, num_threads);
    Int width = job->num_channels, half = job->kernel_size / 2;
    bool is_residual = job->shortcut || job->dshortcut;
    Accumulate accumulate = ACCUMULATE[job->is_bfloat16][is_residual];
    WriteOut write_out = WRITE_OUT[job->is_bfloat16][is_residual];
    float *padded = line_of(scratch, PADDED, thread), *per_channel = line_of(scratch, PER_CHANNEL, thread);
    float *partial = line_of(scratch, PARTIAL, thread), *offsets = line_of(scratch, OFFSETS, thread);
    /* Threads that share an NCP image write disjoint channels of one line. */
    bool shares_line = !share.has_whole_images && !job->is_channels_last;
    double *total = scratch->sums + scratch->line * (2 * scratch->num_threads + thread);
    /* A gate needs the means of its neighbors only. So a thread with a whole NCP image averages some channels, then
       writes those whose neighbors are done, and finds them in its own cache even if the image does not fit there. */
    bool is_pipelined = share.has_whole_images && !job->is_channels_last;
    Int in_block = NUMBERS_BLOCK / job->num_positions;
    Int step = !is_pipelined ? width : in_block > CHANNEL_BLOCK ? in_block : CHANNEL_BLOCK;
    for (Int image = share.image_begin; image < share.image_end; image++) {
        double *sums = sums_of(scratch, image, shares_line ? 0 : thread);
        if (!share.has_whole_images) {
            accumulate(job, &share, image, partial, sums);
#pragma omp barrier
            if (job->is_channels_last) {
                memcpy(total, sums_of(scratch, image, 0), (size_t)width * sizeof *total);
                for (int other = 1; other < num_threads; other++) {
                    const double *others = sums_of(scratch, image, other);
                    for (Int c = 0; c < width; c++) total[c] += others[c];
                }
                sums = total;
            }
        }
        const float *gates = job->dy ? job->gate + image * width : per_channel;
        for (Int begin = 0, written = 0; begin < width; begin += step) {
            Int end = begin + step < width ? begin + step : width, ready = end < width ? end - half : width;
            Share visited = share;
            if (is_pipelined) {
                visited.begin = begin;
                visited.end = end;
            }
            if (share.has_whole_images) accumulate(job, &visited, image, partial, sums);
            if (job->dy)
                compute_dlogits(job, image, sums, padded, begin, end);
            else
                compute_means(job, sums, padded, begin, end);
            if (ready <= written) continue;
            if (job->dy)
                compute_dmeans(job, padded, per_channel, written, ready);
            else
                compute_gates(job, padded, per_channel, offsets, written, ready);
            if (is_pipelined) {
                visited.begin = written;
                visited.end = ready;
            }
            write_out(job, &visited, image, gates, job->dy ? per_channel : offsets);
            written = ready;
        }
        bool saves = share.has_whole_images || thread == 0;
        if (saves && job->dy)
            add_dweights(width, job->kernel_size, job->mean + image * width, padded + half,
                         scratch->dweights + job->kernel_size * thread);
        else if (saves && job->gate) {
            memcpy(job->mean + image * width, padded + half, (size_t)width * sizeof *padded);
            memcpy(job->gate + image * width, per_channel, (size_t)width * sizeof *per_channel);
        }
    }
}

static void compute_norm(Job *job, float *scale) {
    job->norm_scale = scale;
    job->norm_shift = scale + job->num_channels;
    for (Int c = 0; c < job->num_channels; c++) {
        scale[c] = job->norm_weight[c] / sqrtf(job->norm_variance[c] + (float)job->norm_eps);
        job->norm_shift[c] = job->norm_bias[c] - job->norm_mean[c] * scale[c];
    }
}

/* False: no memory. */
static bool run(Job *job, int num_threads) {
    Scratch scratch = {.num_threads = num_threads};
    scratch.line = (job->num_channels + job->kernel_size + WIDTH) / WIDTH * WIDTH;
    scratch.sums = malloc((size_t)(scratch.line * 3 * num_threads) * sizeof(double));
    scratch.floats = calloc((size_t)(scratch.line * NUM_FLOAT_LINES * num_threads), sizeof(float));
    scratch.dweights = calloc((size_t)(job->kernel_size * num_threads), sizeof(double));
    float *norm = job->norm_weight ? malloc((size_t)(2 * job->num_channels) * sizeof *norm) : NULL;
    bool has_memory = scratch.sums && scratch.floats && scratch.dweights && (norm || !job->norm_weight);
    if (has_memory) {
        if (norm) compute_norm(job, norm);
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
        work(job, &scratch, omp_get_thread_num(), omp_get_num_threads());
        for (Int j = 0; job->dy && j < job->kernel_size; j++) {
            double sum = 0;
            for (int thread = 0; thread < num_threads; thread++) sum += scratch.dweights[job->kernel_size * thread + j];
            job->dweight[j] = (float)sum;
        }
    }
    free(scratch.sums);
    free(scratch.floats);
    free(scratch.dweights);
    free(norm);
    return has_memory;
}

/* ---- all images at a time ---- */

/* Parts of an image are channels of an NCP map; of an NPC map they are channels in a sum and positions else. */
static void visit_all(const BlockEnd *end_of, Visit visit, bool is_sum, int num_threads) {
    bool has_positions = end_of->is_channels_last && !is_sum;
    Int num_parts = has_positions ? end_of->num_positions : end_of->num_channels, num_images = end_of->num_images;
    Int strip = num_images % num_threads && num_images < 4 * num_threads ? NARROW_STRIP : STRIP;
    Int step = has_positions ? ROW_BLOCK : end_of->is_channels_last ? strip : CHANNEL_BLOCK;
    Int num_steps = (num_parts + step - 1) / step;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1) schedule(static)
    for (Int task = 0; task < num_images * num_steps; task++) {
        Int begin = task % num_steps * step, end = begin + step < num_parts ? begin + step : num_parts;
        visit(end_of, task / num_steps, begin, end);
    }
}

/* The norm as an affine map of each channel. */
static void compute_scale(const BlockEnd *job, double *scale, double *inverse) {
    for (Int c = 0; c < job->num_channels; c++) {
        inverse[c] = 1 / sqrt(job->variance[c] + job->eps);
        scale[c] = inverse[c] * job->norm_weight[c];
    }
}

static void compute_statistics(const BlockEnd *job) {
    double num_values = (double)(job->num_images * job->num_positions);
    for (Int c = 0; c < job->num_channels; c++) {
        double sum = 0, square = 0;
        for (Int at = c; at < job->num_images * job->num_channels; at += job->num_channels) {
            sum += job->sums[at];
            square += job->products[at];
        }
        job->mean[c] = sum / num_values;
        double variance = square / num_values - job->mean[c] * job->mean[c];
        job->variance[c] = variance < 0 ? 0 : variance;
    }
}

/* Forward, between the visits: from the sums of x to the factors and offsets of the second visit. */
VECTORS static void finish(const BlockEnd *job, double *scale, double *inverse, float *padded) {
    Int width = job->num_channels;
    if (job->has_batch_statistics) compute_statistics(job);
    compute_scale(job, scale, inverse);
    for (Int image = 0; image < job->num_images; image++) {
        const double *sums = job->sums + image * width;
        float *deviation = job->deviation + image * width, *normalized = job->normalized + image * width;
        float *gate = job->gate + image * width;
        float *factors = job->factors + image * width, *offsets = job->offsets + image * width;
        for (Int c = 0; c < width; c++) {
            double from_mean = sums[c] / (double)job->num_positions - job->mean[c];
            deviation[c] = (float)from_mean;
            normalized[c] = (float)(from_mean * scale[c] + job->norm_bias[c]);
        }
        memcpy(padded + job->kernel_size / 2, normalized, (size_t)width * sizeof *normalized);
        correlate(padded, job->weight, job->kernel_size, 1, gate, width);
        sigmoid(gate, width);
        for (Int c = 0; c < width; c++) {
            factors[c] = (float)(gate[c] * scale[c]);
            offsets[c] = (float)(gate[c] * (job->norm_bias[c] - job->mean[c] * scale[c]));
        }
    }
}

/* Backward, between the visits: from the sums of g = dy where y is positive, and of g (x - mean), to all gradients of
   parameters and to the factors, slopes and offsets of the second visit. With dz = g gate + dmean / P for z, the norm:

       dx = scale (dz - sum(dz) / M - (x - mean) sum(dz (x - mean)) / (M (variance + eps))),   M = N P */
VECTORS static void finish_backward(const BlockEnd *job, double *scale, double *inverse, double *dscale, double *dbias,
                                    double *dweight, float *padded, float *dmean) {
    Int width = job->num_channels, half = job->kernel_size / 2;
    double num_values = (double)(job->num_images * job->num_positions);
    memset(dscale, 0, (size_t)width * sizeof *dscale);
    memset(dbias, 0, (size_t)width * sizeof *dbias);
    memset(dweight, 0, (size_t)job->kernel_size * sizeof *dweight);
    for (Int image = 0; image < job->num_images; image++) {
        const double *sums = job->sums + image * width, *products = job->products + image * width;
        const float *gate = job->gate + image * width, *normalized = job->normalized + image * width;
        const float *deviation = job->deviation + image * width;
        float *factors = job->factors + image * width, *offsets = job->offsets + image * width;
        float *dlogits = padded + half;
        for (Int c = 0; c < width; c++) {
            double dgate = products[c] * scale[c] + sums[c] * job->norm_bias[c];
            dlogits[c] = (float)(dgate * gate[c] * (1.0f - gate[c]));
        }
        add_dweights(width, job->kernel_size, normalized, dlogits, dweight);
        correlate(padded, job->weight, job->kernel_size, -1, dmean, width);
        for (Int c = 0; c < width; c++) {
            dbias[c] += sums[c] * gate[c] + dmean[c];
            dscale[c] += products[c] * gate[c] + (double)dmean[c] * deviation[c];
            factors[c] = (float)(gate[c] * scale[c]);
            offsets[c] = (float)(dmean[c] * scale[c] / (double)job->num_positions);
        }
    }
    for (Int c = 0; c < width; c++) {
        job->dnorm_weight[c] = (float)(dscale[c] * inverse[c]);
        job->dnorm_bias[c] = (float)dbias[c];
        job->slopes[c] = 0;
    }
    for (Int j = 0; j < job->kernel_size; j++) job->dweight[j] = (float)dweight[j];
    if (!job->has_batch_statistics) return;
    for (Int c = 0; c < width; c++) {
        job->slopes[c] = (float)(-scale[c] * inverse[c] * inverse[c] * dscale[c] / num_values);
        dbias[c] *= scale[c] / num_values;
    }
    for (Int image = 0; image < job->num_images; image++)
        for (Int c = 0; c < width; c++) job->offsets[image * width + c] -= (float)dbias[c];
}

static const Visit MOMENTS[2] = {visit_moments_residual_float, visit_moments_residual_bfloat16};
static const Visit RESULT[2] = {visit_result_residual_float, visit_result_residual_bfloat16};
static const Visit PRODUCTS[2] = {visit_products_residual_float, visit_products_residual_bfloat16};
static const Visit INPUT_GRADIENTS[2] = {visit_gradients_residual_float, visit_gradients_residual_bfloat16};

/* False: no memory. */
static bool run_block_end(BlockEnd *job, bool is_bfloat16, int num_threads) {
    Int width = job->num_channels, num_all = job->num_images * width, line = width + job->kernel_size;
    double *doubles = malloc((size_t)(2 * num_all + 4 * width + job->kernel_size) * sizeof *doubles);
    float *floats = calloc((size_t)(2 * num_all + 2 * line + 2 * width), sizeof *floats);
    bool has_memory = doubles && floats;
    if (has_memory) {
        double *scale = doubles + 2 * num_all, *inverse = scale + width, *dscale = inverse + width;
        float *padded = floats + 2 * num_all, *dmean = padded + line;
        job->sums = doubles;
        job->products = doubles + num_all;
        job->factors = floats;
        job->offsets = floats + num_all;
        job->center = dmean + line;
        job->slopes = job->center + width;
        if (job->dy) {
            compute_scale(job, scale, inverse);
            for (Int c = 0; c < width; c++) job->center[c] = (float)job->mean[c];
        }
        visit_all(job, (job->dy ? PRODUCTS : MOMENTS)[is_bfloat16], true, num_threads);
        if (job->dy)
            finish_backward(job, scale, inverse, dscale, dscale + width, dscale + 2 * width, padded, dmean);
        else
            finish(job, scale, inverse, padded);
        visit_all(job, (job->dy ? INPUT_GRADIENTS : RESULT)[is_bfloat16], false, num_threads);
    }
    free(doubles);
    free(floats);
    return has_memory;
}

/* ---- Python ---- */

typedef unsigned long long Address;
#define POINTER(address) ((void *)(uintptr_t)(address))

static PyObject *run_job(Job *job, int num_threads) {
    bool has_memory;
    Py_BEGIN_ALLOW_THREADS has_memory = run(job, num_threads);
    Py_END_ALLOW_THREADS if (!has_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* Addresses are 0 for what is not there. All numbers but those of maps are float32. */
static PyObject *forward(PyObject *self, PyObject *args) {
    (void)self;
    Address x, weight, shortcut, y, mean, gate, norm_weight = 0, norm_bias = 0, norm_mean = 0, norm_variance = 0;
    Job job = {0};
    int is_channels_last, is_bfloat16, num_threads;
    if (!PyArg_ParseTuple(args, "KKKKKKnnnniii|KKKKd", &x, &weight, &shortcut, &y, &mean, &gate, &job.num_images,
                          &job.num_channels, &job.num_positions, &job.kernel_size, &is_channels_last, &is_bfloat16,
                          &num_threads, &norm_weight, &norm_bias, &norm_mean, &norm_variance, &job.norm_eps))
        return NULL;
    job.norm_weight = POINTER(norm_weight);
    job.norm_bias = POINTER(norm_bias);
    job.norm_mean = POINTER(norm_mean);
    job.norm_variance = POINTER(norm_variance);
    job.is_channels_last = is_channels_last;
    job.is_bfloat16 = is_bfloat16;
    job.x = POINTER(x);
    job.weight = POINTER(weight);
    job.shortcut = POINTER(shortcut);
    job.written = POINTER(y);
    job.mean = POINTER(mean);
    job.gate = POINTER(gate);
    return run_job(&job, num_threads);
}

static PyObject *backward(PyObject *self, PyObject *args) {
    (void)self;
    Address dy, y, x, weight, mean, gate, dx, dshortcut, dweight;
    Job job = {0};
    int is_channels_last, is_bfloat16, num_threads;
    if (!PyArg_ParseTuple(args, "KKKKKKKKKnnnniii", &dy, &y, &x, &weight, &mean, &gate, &dx, &dshortcut, &dweight,
                          &job.num_images, &job.num_channels, &job.num_positions, &job.kernel_size, &is_channels_last,
                          &is_bfloat16, &num_threads))
        return NULL;
    job.is_channels_last = is_channels_last;
    job.is_bfloat16 = is_bfloat16;
    job.dy = POINTER(dy);
    job.y = POINTER(y);
    job.x = POINTER(x);
    job.weight = POINTER(weight);
    job.mean = POINTER(mean);
    job.gate = POINTER(gate);
    job.written = POINTER(dx);
    job.dshortcut = POINTER(dshortcut);
    job.dweight = POINTER(dweight);
    return run_job(&job, num_threads);
}

static PyObject *run_end(BlockEnd *job, bool is_bfloat16, int num_threads) {
    bool has_memory;
    Py_BEGIN_ALLOW_THREADS has_memory = run_block_end(job, is_bfloat16, num_threads);
    Py_END_ALLOW_THREADS if (!has_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* Statistics are float64: means, then variances. What is saved is deviations, normalized means and gates. */
static void set_end(BlockEnd *job, const Address *norm, Address statistics, Address saved) {
    Int num_all = job->num_images * job->num_channels;
    job->norm_weight = POINTER(norm[0]);
    job->norm_bias = POINTER(norm[1]);
    job->mean = POINTER(statistics);
    job->variance = job->mean + job->num_channels;
    job->deviation = POINTER(saved);
    job->normalized = job->deviation + num_all;
    job->gate = job->normalized + num_all;
}

static PyObject *finish_block(PyObject *self, PyObject *args) {
    (void)self;
    Address x, norm[2], weight, shortcut, statistics, y, saved;
    BlockEnd job = {0};
    int has_batch_statistics, is_channels_last, is_bfloat16, num_threads;
    if (!PyArg_ParseTuple(args, "KKKKKKKKpdnnnniii", &x, &norm[0], &norm[1], &weight, &shortcut, &statistics, &y, &saved,
                          &has_batch_statistics, &job.eps, &job.num_images, &job.num_channels, &job.num_positions,
                          &job.kernel_size, &is_channels_last, &is_bfloat16, &num_threads))
        return NULL;
    set_end(&job, norm, statistics, saved);
    job.has_batch_statistics = has_batch_statistics;
    job.is_channels_last = is_channels_last;
    job.x = POINTER(x);
    job.weight = POINTER(weight);
    job.shortcut = POINTER(shortcut);
    job.written = POINTER(y);
    return run_end(&job, is_bfloat16 != 0, num_threads);
}

static PyObject *finish_block_backward(PyObject *self, PyObject *args) {
    (void)self;
    Address dy, y, x, norm[2], weight, statistics, saved, dx, dnorm[2], dweight, dshortcut;
    BlockEnd job = {0};
    int has_batch_statistics, is_channels_last, is_bfloat16, num_threads;
    if (!PyArg_ParseTuple(args, "KKKKKKKKKKKKKpdnnnniii", &dy, &y, &x, &norm[0], &norm[1], &weight, &statistics, &saved,
                          &dx, &dnorm[0], &dnorm[1], &dweight, &dshortcut, &has_batch_statistics, &job.eps,
                          &job.num_images, &job.num_channels, &job.num_positions, &job.kernel_size, &is_channels_last,
                          &is_bfloat16, &num_threads))
        return NULL;
    set_end(&job, norm, statistics, saved);
    job.has_batch_statistics = has_batch_statistics;
    job.is_channels_last = is_channels_last;
    job.dy = POINTER(dy);
    job.y = POINTER(y);
    job.x = POINTER(x);
    job.weight = POINTER(weight);
    job.written = POINTER(dx);
    job.dnorm_weight = POINTER(dnorm[0]);
    job.dnorm_bias = POINTER(dnorm[1]);
    job.dweight = POINTER(dweight);
    job.dshortcut = POINTER(dshortcut);
    return run_end(&job, is_bfloat16 != 0, num_threads);
}

static PyMethodDef methods[] = {
    {"forward", forward, METH_VARARGS,
     "x, weight, shortcut, y, mean, gate, N, C, P, k, is_channels_last, is_bfloat16, num_threads, norm_weight=0, "
     "norm_bias=0, norm_mean=0, norm_variance=0, eps=0"},
    {"backward", backward, METH_VARARGS,
     "dy, y, x, weight, mean, gate, dx, dshortcut, dweight, N, C, P, k, is_channels_last, is_bfloat16, num_threads"},
    {"finish_block", finish_block, METH_VARARGS,
     "x, norm_weight, norm_bias, weight, shortcut, statistics, y, saved, has_batch_statistics, eps, N, C, P, k, "
     "is_channels_last, is_bfloat16, num_threads"},
    {"finish_block_backward", finish_block_backward, METH_VARARGS,
     "dy, y, x, norm_weight, norm_bias, weight, statistics, saved, dx, dnorm_weight, dnorm_bias, dweight, dshortcut, "
     "has_batch_statistics, eps, N, C, P, k, is_channels_last, is_bfloat16, num_threads"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "eca_kernel", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit_eca_kernel(void) { return PyModuleDef_Init(&module); }
