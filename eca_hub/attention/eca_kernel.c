/* ECA in one visit to each map: what the processor runs where the map is float32 and nobody traces it.

   In separate operations the map comes from memory for the mean and once more for the product. Here an image is
   averaged and rescaled before the next one is touched, so the second visit finds it in the cache. The way back makes
   two visits as well, where separate operations write the product of slope and map and read it again.

       mean_c = sum_p x[c, p] / P;   gate_c = sigmoid(sum_j w[j] mean[c + j - k / 2]);   y[c, p] = x[c, p] gate_c

       u_c = gate_c (1 - gate_c) sum_p dy[c, p] x[c, p];   dw[j] = sum_c u_c mean[c + j - k / 2]
       dx[c, p] = dy[c, p] gate_c + sum_j w[j] u[c - j + k / 2] / P

   A map has N images, C channels and P positions: channel after channel (NCP), or position after position (NPC,
   channels_last). Sums have a fixed order for a given number of threads, whatever the width of the vectors.

   Threads are those of the OpenMP that torch has loaded, found by name when this file is: two libraries of threads in
   one process would wait for each other's processors. See fused_eca.py for who calls this, and when. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
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

/* So many positions are added up before they join the sum of the channel: fewer roundings, fewer visits to the sum. */
#define ROWS 8

typedef ptrdiff_t Int;

/* Sixteen numbers side by side: compilers would otherwise keep the order of a sum, and add one by one. */
typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
#define WIDTH 16
#define AT(x) (*(const Vector *)(x))

/* ---- some channels of one image, each with its P positions side by side ---- */

static inline float sum_of(const Vector *vector) {
    float lanes[WIDTH];
    memcpy(lanes, vector, sizeof lanes);
    for (Int width = WIDTH / 2; width > 0; width /= 2)
        for (Int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

VECTORS static void sum_planes(const float *x, Int num_planes, Int size, float *sums) {
    for (; num_planes > 0; num_planes--, x += size, sums++) {
        /* Four, so that no addition waits for the one before. */
        Vector s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        float rest = 0;
        Int at = 0;
        for (; at + 4 * WIDTH <= size; at += 4 * WIDTH) {
            s0 += AT(x + at);
            s1 += AT(x + at + WIDTH);
            s2 += AT(x + at + 2 * WIDTH);
            s3 += AT(x + at + 3 * WIDTH);
        }
        for (; at + WIDTH <= size; at += WIDTH) s0 += AT(x + at);
        for (; at < size; at++) rest += x[at];
        s0 = (s0 + s1) + (s2 + s3);
        *sums = sum_of(&s0) + rest;
    }
}

VECTORS static void dot_planes(const float *a, const float *b, Int num_planes, Int size, float *sums) {
    for (; num_planes > 0; num_planes--, a += size, b += size, sums++) {
        Vector s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        float rest = 0;
        Int at = 0;
        for (; at + 4 * WIDTH <= size; at += 4 * WIDTH) {
            s0 += AT(a + at) * AT(b + at);
            s1 += AT(a + at + WIDTH) * AT(b + at + WIDTH);
            s2 += AT(a + at + 2 * WIDTH) * AT(b + at + 2 * WIDTH);
            s3 += AT(a + at + 3 * WIDTH) * AT(b + at + 3 * WIDTH);
        }
        for (; at + WIDTH <= size; at += WIDTH) s0 += AT(a + at) * AT(b + at);
        for (; at < size; at++) rest += a[at] * b[at];
        s0 = (s0 + s1) + (s2 + s3);
        *sums = sum_of(&s0) + rest;
    }
}

VECTORS static void scale_planes(const float *x, const float *gates, float *y, Int num_planes, Int size) {
    for (; num_planes > 0; num_planes--, x += size, y += size, gates++) {
        float gate = *gates;
        for (Int at = 0; at < size; at++) y[at] = x[at] * gate;
    }
}

VECTORS static void slope_planes(const float *dy, const float *gates, const float *through, float *restrict dx,
                                 Int num_planes, Int size) {
    for (; num_planes > 0; num_planes--, dy += size, dx += size, gates++, through++) {
        float gate = *gates, add = *through;
        for (Int at = 0; at < size; at++) dx[at] = dy[at] * gate + add;
    }
}

/* ---- some positions of one image, C channels side by side ---- */

VECTORS static void sum_rows(const float *x, Int num_rows, Int width, float *restrict sums) {
    for (; num_rows >= ROWS; num_rows -= ROWS, x += ROWS * width)
        for (Int c = 0; c < width; c++)
            sums[c] += ((x[c] + x[c + width]) + (x[c + 2 * width] + x[c + 3 * width])) +
                       ((x[c + 4 * width] + x[c + 5 * width]) + (x[c + 6 * width] + x[c + 7 * width]));
    for (; num_rows > 0; num_rows--, x += width)
        for (Int c = 0; c < width; c++) sums[c] += x[c];
}

VECTORS static void dot_rows(const float *a, const float *b, Int num_rows, Int width, float *restrict sums) {
    for (; num_rows >= 4; num_rows -= 4, a += 4 * width, b += 4 * width)
        for (Int c = 0; c < width; c++)
            sums[c] += (a[c] * b[c] + a[c + width] * b[c + width]) +
                       (a[c + 2 * width] * b[c + 2 * width] + a[c + 3 * width] * b[c + 3 * width]);
    for (; num_rows > 0; num_rows--, a += width, b += width)
        for (Int c = 0; c < width; c++) sums[c] += a[c] * b[c];
}

VECTORS static void scale_rows(const float *x, const float *restrict gates, float *y, Int num_rows, Int width) {
    for (; num_rows > 0; num_rows--, x += width, y += width)
        for (Int c = 0; c < width; c++) y[c] = x[c] * gates[c];
}

VECTORS static void slope_rows(const float *dy, const float *restrict gates, const float *restrict through,
                               float *restrict dx, Int num_rows, Int width) {
    for (; num_rows > 0; num_rows--, dy += width, dx += width)
        for (Int c = 0; c < width; c++) dx[c] = dy[c] * gates[c] + through[c];
}

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

VECTORS static void divide(float *values, float by, Int width) {
    for (Int c = 0; c < width; c++) values[c] /= by;
}

VECTORS static void slopes_of_logits(const float *gates, float *restrict sums, Int width) {
    for (Int c = 0; c < width; c++) sums[c] *= gates[c] * (1.0f - gates[c]);
}

/* ---- the map ---- */

typedef struct {
    Int num_images, num_channels, num_positions, kernel_size;
    bool is_channels_last;
    const float *x, *weight;
    /* Forward: the map to write, and what the way back will want to know; the latter may be NULL. */
    float *y, *mean, *gate;
    /* Backward, where mean and gate are read; dy is NULL on the way forward. */
    const float *dy;
    float *dx, *dweight;
} Job;

/* Where a thread works: alone on whole images where there are enough for all, else on its part of each image. */
typedef struct {
    bool is_alone;
    Int image_begin, image_end, begin, end;
} Share;

static Share share_of(const Job *job, int thread, int num_threads) {
    Int num_parts = job->is_channels_last ? job->num_positions : job->num_channels;
    if (job->num_images >= num_threads)
        return (Share){true, job->num_images * thread / num_threads, job->num_images * (thread + 1) / num_threads, 0,
                       num_parts};
    return (Share){false, 0, job->num_images, num_parts * thread / num_threads, num_parts * (thread + 1) / num_threads};
}

/* What one call needs to remember, in lines of one number a channel: */
typedef struct {
    float *memory;
    double *dweights;
    Int line;
    int num_threads;
} Scratch;

enum { SUMS_EVEN, SUMS_ODD, PADDED, PER_CHANNEL, NUM_LINES };

static float *line_of(const Scratch *scratch, int which, int thread) {
    return scratch->memory + scratch->line * (which * scratch->num_threads + thread);
}

/* The sums over the positions of this share of an image: of the map, or of its product with the slope. */
static void add_up(const Job *job, const Share *share, Int image, float *sums) {
    Int width = job->num_channels, size = job->num_positions;
    const float *x = job->x + image * width * size, *dy = job->dy ? job->dy + image * width * size : NULL;
    if (job->is_channels_last) {
        Int from = share->begin * width, num_rows = share->end - share->begin;
        memset(sums, 0, (size_t)width * sizeof *sums);
        if (dy)
            dot_rows(dy + from, x + from, num_rows, width, sums);
        else
            sum_rows(x + from, num_rows, width, sums);
    } else {
        Int from = share->begin * size, num_planes = share->end - share->begin;
        if (dy)
            dot_planes(dy + from, x + from, num_planes, size, sums + share->begin);
        else
            sum_planes(x + from, num_planes, size, sums + share->begin);
    }
}

/* Forward: from the sums to the gates. The line has zeros at both ends. */
static void find_gates(const Job *job, float *padded, float *gates) {
    divide(padded + job->kernel_size / 2, (float)job->num_positions, job->num_channels);
    correlate(padded, job->weight, job->kernel_size, 1, gates, job->num_channels);
    sigmoid(gates, job->num_channels);
}

/* Backward: from the sums to the slope of the logits, and to what reaches every position of a channel through them. */
static void find_slopes(const Job *job, Int image, float *padded, float *through, double *dweights) {
    Int width = job->num_channels, half = job->kernel_size / 2;
    const float *mean = job->mean + image * width;
    float *slopes = padded + half;
    slopes_of_logits(job->gate + image * width, slopes, width);
    correlate(padded, job->weight, job->kernel_size, -1, through, width);
    divide(through, (float)job->num_positions, width);
    for (Int j = 0; dweights && j < job->kernel_size; j++) {
        Int shift = j - half, begin = shift < 0 ? -shift : 0, end = shift > 0 ? width - shift : width;
        float sum = 0;
        if (end > begin) dot_planes(slopes + begin, mean + begin + shift, 1, end - begin, &sum);
        dweights[j] += sum;
    }
}

/* The second visit: y = x gate, or dx = dy gate + through. */
static void write_out(const Job *job, const Share *share, Int image, const float *gates, const float *through) {
    Int width = job->num_channels, size = job->num_positions, at = image * width * size;
    if (job->is_channels_last) {
        Int from = at + share->begin * width, num_rows = share->end - share->begin;
        if (through)
            slope_rows(job->dy + from, gates, through, job->dx + from, num_rows, width);
        else
            scale_rows(job->x + from, gates, job->y + from, num_rows, width);
    } else {
        Int c = share->begin, from = at + c * size, num_planes = share->end - c;
        if (through)
            slope_planes(job->dy + from, gates + c, through + c, job->dx + from, num_planes, size);
        else
            scale_planes(job->x + from, gates + c, job->y + from, num_planes, size);
    }
}

static void work(const Job *job, const Scratch *scratch, int thread, int num_threads) {
    Share share = share_of(job, thread, num_threads);
    bool keeps_sums_apart = share.is_alone || job->is_channels_last;
    Int width = job->num_channels;
    float *padded = line_of(scratch, PADDED, thread), *per_channel = line_of(scratch, PER_CHANNEL, thread);
    float *total = padded + job->kernel_size / 2;
    for (Int image = share.image_begin; image < share.image_end; image++) {
        /* Two lines in turns: who is still reading one has not met the others at the next barrier. */
        int which = image % 2 ? SUMS_ODD : SUMS_EVEN;
        float *sums = line_of(scratch, which, keeps_sums_apart ? thread : 0);
        add_up(job, &share, image, sums);
        if (!share.is_alone) {
#pragma omp barrier
        }
        memcpy(total, line_of(scratch, which, share.is_alone ? thread : 0), (size_t)width * sizeof *total);
        for (int other = 1; !share.is_alone && job->is_channels_last && other < num_threads; other++)
            sum_rows(line_of(scratch, which, other), 1, width, total);
        bool speaks_for_all = share.is_alone || thread == 0;
        if (job->dy) {
            double *dweights = speaks_for_all ? scratch->dweights + job->kernel_size * thread : NULL;
            find_slopes(job, image, padded, per_channel, dweights);
            write_out(job, &share, image, job->gate + image * width, per_channel);
        } else {
            find_gates(job, padded, per_channel);
            if (speaks_for_all && job->gate) {
                memcpy(job->mean + image * width, total, (size_t)width * sizeof *total);
                memcpy(job->gate + image * width, per_channel, (size_t)width * sizeof *per_channel);
            }
            write_out(job, &share, image, per_channel, NULL);
        }
    }
}

/* False: no memory. */
static bool run(const Job *job, int num_threads) {
    Scratch scratch = {.num_threads = num_threads};
    scratch.line = (job->num_channels + job->kernel_size + WIDTH) / WIDTH * WIDTH;
    scratch.memory = calloc((size_t)(scratch.line * NUM_LINES * num_threads), sizeof(float));
    scratch.dweights = calloc((size_t)(job->kernel_size * num_threads), sizeof(double));
    bool has_memory = scratch.memory && scratch.dweights;
    if (has_memory) {
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
        work(job, &scratch, omp_get_thread_num(), omp_get_num_threads());
        for (Int j = 0; job->dy && j < job->kernel_size; j++) {
            double sum = 0;
            for (int thread = 0; thread < num_threads; thread++) sum += scratch.dweights[job->kernel_size * thread + j];
            job->dweight[j] = (float)sum;
        }
    }
    free(scratch.memory);
    free(scratch.dweights);
    return has_memory;
}

/* ---- Python ---- */

static PyObject *done(bool has_memory) {
    if (!has_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *rescale(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long x, weight, y, mean, gate;
    Job job = {0};
    int is_channels_last, num_threads;
    if (!PyArg_ParseTuple(args, "KKKKKnnnnii", &x, &weight, &y, &mean, &gate, &job.num_images, &job.num_channels,
                          &job.num_positions, &job.kernel_size, &is_channels_last, &num_threads))
        return NULL;
    job.is_channels_last = is_channels_last;
    job.x = (const float *)(uintptr_t)x;
    job.weight = (const float *)(uintptr_t)weight;
    job.y = (float *)(uintptr_t)y;
    job.mean = (float *)(uintptr_t)mean;
    job.gate = (float *)(uintptr_t)gate;
    bool has_memory;
    Py_BEGIN_ALLOW_THREADS has_memory = run(&job, num_threads);
    Py_END_ALLOW_THREADS return done(has_memory);
}

static PyObject *slopes(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long dy, x, weight, mean, gate, dx, dweight;
    Job job = {0};
    int is_channels_last, num_threads;
    if (!PyArg_ParseTuple(args, "KKKKKKKnnnnii", &dy, &x, &weight, &mean, &gate, &dx, &dweight, &job.num_images,
                          &job.num_channels, &job.num_positions, &job.kernel_size, &is_channels_last, &num_threads))
        return NULL;
    job.is_channels_last = is_channels_last;
    job.dy = (const float *)(uintptr_t)dy;
    job.x = (const float *)(uintptr_t)x;
    job.weight = (const float *)(uintptr_t)weight;
    job.mean = (float *)(uintptr_t)mean;
    job.gate = (float *)(uintptr_t)gate;
    job.dx = (float *)(uintptr_t)dx;
    job.dweight = (float *)(uintptr_t)dweight;
    bool has_memory;
    Py_BEGIN_ALLOW_THREADS has_memory = run(&job, num_threads);
    Py_END_ALLOW_THREADS return done(has_memory);
}

static PyMethodDef methods[] = {
    {"rescale", rescale, METH_VARARGS, "rescale(x, weight, y, mean, gate, N, C, P, k, is_channels_last, num_threads)"},
    {"slopes", slopes, METH_VARARGS,
     "slopes(dy, x, weight, mean, gate, dx, dweight, N, C, P, k, is_channels_last, num_threads)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "eca_kernel", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit_eca_kernel(void) { return PyModuleDef_Init(&module); }
