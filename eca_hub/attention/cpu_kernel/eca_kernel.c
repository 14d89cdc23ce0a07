/* ECA in one visit to each map: what the processor runs where nobody traces the map, of float32 or bfloat16.

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

typedef ptrdiff_t Int;

/* Sixteen numbers side by side, wherever they lie: compilers would keep the order of a sum, and add one by one. */
#define WIDTH 16
typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
#define AT(x) (*(Vector *)(x))

static inline float sum_of(const Vector *vector) {
    float lanes[WIDTH];
    memcpy(lanes, vector, sizeof lanes);
    for (Int width = WIDTH / 2; width > 0; width /= 2)
        for (Int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
    return lanes[0];
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

/* ---- the work ---- */

typedef struct {
    Int num_images, num_channels, num_positions, kernel_size;
    bool is_channels_last, is_bfloat16;
    const void *x;
    const float *weight;
    /* The slope of the result; NULL on the way forward. */
    const void *dy;
    /* The result, or the slope of the map. */
    void *written;
    /* What the way forward leaves for the way back, unless they are NULL. */
    float *mean, *gate;
    float *dweight;
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

/* ---- the map ---- */

#define NUMBER float
#define NAMED(name) name
#define LOAD(x) (*(x))
#define STORE(y, value) (*(y) = (value))
#define LOADS(x) AT(x)
#define STORES(y, value) (AT(y) = (value))
#include "eca_visits.h"

/* bfloat16: the upper half of a float; what is cut off is rounded to the nearest, to even between two (IEEE 754). */
typedef uint32_t Bits __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));

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
#define NAMED(name) name##_bfloat16
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
#include "eca_visits.h"

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

static void work(const Job *job, const Scratch *scratch, int thread, int num_threads) {
    Share share = share_of(job, thread, num_threads);
    bool keeps_sums_apart = share.is_alone || job->is_channels_last;
    Int width = job->num_channels;
    void (*add_up_)(const Job *, const Share *, Int, float *) = job->is_bfloat16 ? add_up_bfloat16 : add_up;
    void (*write_out_)(const Job *, const Share *, Int, const float *, const float *) =
        job->is_bfloat16 ? write_out_bfloat16 : write_out;
    float *padded = line_of(scratch, PADDED, thread), *per_channel = line_of(scratch, PER_CHANNEL, thread);
    float *total = padded + job->kernel_size / 2;
    for (Int image = share.image_begin; image < share.image_end; image++) {
        /* Two lines in turns: who is still reading one has not met the others at the next barrier. */
        int which = image % 2 ? SUMS_ODD : SUMS_EVEN;
        float *sums = line_of(scratch, which, keeps_sums_apart ? thread : 0);
        add_up_(job, &share, image, sums);
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
            write_out_(job, &share, image, job->gate + image * width, per_channel);
        } else {
            find_gates(job, padded, per_channel);
            if (speaks_for_all && job->gate) {
                memcpy(job->mean + image * width, total, (size_t)width * sizeof *total);
                memcpy(job->gate + image * width, per_channel, (size_t)width * sizeof *per_channel);
            }
            write_out_(job, &share, image, per_channel, NULL);
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

static PyObject *done(const Job *job, int num_threads) {
    bool has_memory;
    Py_BEGIN_ALLOW_THREADS has_memory = run(job, num_threads);
    Py_END_ALLOW_THREADS if (!has_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* All numbers but those of the map are float32. */
static PyObject *rescale(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long x, weight, y, mean, gate;
    Job job = {0};
    int is_channels_last, is_bfloat16, num_threads;
    if (!PyArg_ParseTuple(args, "KKKKKnnnniii", &x, &weight, &y, &mean, &gate, &job.num_images, &job.num_channels,
                          &job.num_positions, &job.kernel_size, &is_channels_last, &is_bfloat16, &num_threads))
        return NULL;
    job.is_channels_last = is_channels_last;
    job.is_bfloat16 = is_bfloat16;
    job.x = (const void *)(uintptr_t)x;
    job.weight = (const float *)(uintptr_t)weight;
    job.written = (void *)(uintptr_t)y;
    job.mean = (float *)(uintptr_t)mean;
    job.gate = (float *)(uintptr_t)gate;
    return done(&job, num_threads);
}

static PyObject *slopes(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long dy, x, weight, mean, gate, dx, dweight;
    Job job = {0};
    int is_channels_last, is_bfloat16, num_threads;
    if (!PyArg_ParseTuple(args, "KKKKKKKnnnniii", &dy, &x, &weight, &mean, &gate, &dx, &dweight, &job.num_images,
                          &job.num_channels, &job.num_positions, &job.kernel_size, &is_channels_last, &is_bfloat16,
                          &num_threads))
        return NULL;
    job.is_channels_last = is_channels_last;
    job.is_bfloat16 = is_bfloat16;
    job.dy = (const void *)(uintptr_t)dy;
    job.x = (const void *)(uintptr_t)x;
    job.weight = (const float *)(uintptr_t)weight;
    job.mean = (float *)(uintptr_t)mean;
    job.gate = (float *)(uintptr_t)gate;
    job.written = (void *)(uintptr_t)dx;
    job.dweight = (float *)(uintptr_t)dweight;
    return done(&job, num_threads);
}

static PyMethodDef methods[] = {
    {"rescale", rescale, METH_VARARGS, "x, weight, y, mean, gate, N, C, P, k, is_channels_last, is_bfloat16, num_threads"},
    {"slopes", slopes, METH_VARARGS,
     "dy, x, weight, mean, gate, dx, dweight, N, C, P, k, is_channels_last, is_bfloat16, num_threads"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "eca_kernel", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit_eca_kernel(void) { return PyModuleDef_Init(&module); }
