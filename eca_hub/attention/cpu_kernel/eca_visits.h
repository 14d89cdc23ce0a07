/* The loops over a map, for one number type. eca_kernel.c includes this once for each of float and bfloat16, with and
   without the end of a residual block, having defined

       NUMBER          the type in memory
       NAMED(name)     the name of a function for this inclusion
       RESIDUAL        1: the result is relu(x gate + shortcut); 0: it is x gate
       LOAD, STORE     one number from memory as a float, and back
       LOADS, STORES   WIDTH of them as a Vector, and back

   Sums are of floats within a block and of doubles over the blocks. Blocks begin at fixed positions, so a sum depends
   neither on the number of threads nor on the other images. */

#if RESIDUAL
/* Gradient of the activation: dy where y is positive. NaN passes, as in torch. */
#define GRADIENT(dy, y) (LOAD(y) <= 0 ? 0 : LOAD(dy))
#define GRADIENTS(dy, y) where_positive(LOADS(dy), LOADS(y))
#else
#define GRADIENT(dy, y) LOAD(dy)
#define GRADIENTS(dy, y) LOADS(dy)
#endif

/* ---- NCP: some channels of one image, each with its P positions side by side ---- */

#if !RESIDUAL
VECTORS static void NAMED(sum_planes)(const NUMBER *x, Int num_planes, Int size, double *sums) {
    for (; num_planes > 0; num_planes--, x += size, sums++) {
        double sum = 0;
        for (Int begin = 0; begin < size; begin += PLANE_BLOCK) {
            Int end = begin + PLANE_BLOCK < size ? begin + PLANE_BLOCK : size, at = begin;
            /* Four, so that no addition waits for the one before. */
            Vector s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
            float rest = 0;
            for (; at + 4 * WIDTH <= end; at += 4 * WIDTH) {
                s0 += LOADS(x + at);
                s1 += LOADS(x + at + WIDTH);
                s2 += LOADS(x + at + 2 * WIDTH);
                s3 += LOADS(x + at + 3 * WIDTH);
            }
            for (; at + WIDTH <= end; at += WIDTH) s0 += LOADS(x + at);
            for (; at < end; at++) rest += LOAD(x + at);
            s0 = (s0 + s1) + (s2 + s3);
            sum += sum_of(&s0) + rest;
        }
        *sums = sum;
    }
}
#endif

/* Of the gradient and x. */
VECTORS static void NAMED(dot_planes)(const NUMBER *dy, const NUMBER *y, const NUMBER *x, Int num_planes, Int size,
                                      double *sums) {
    (void)y;
    for (; num_planes > 0; num_planes--, dy += size, y += RESIDUAL * size, x += size, sums++) {
        double sum = 0;
        for (Int begin = 0; begin < size; begin += PLANE_BLOCK) {
            Int end = begin + PLANE_BLOCK < size ? begin + PLANE_BLOCK : size, at = begin;
            Vector s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
            float rest = 0;
            for (; at + 4 * WIDTH <= end; at += 4 * WIDTH) {
                s0 += GRADIENTS(dy + at, y + at) * LOADS(x + at);
                s1 += GRADIENTS(dy + at + WIDTH, y + at + WIDTH) * LOADS(x + at + WIDTH);
                s2 += GRADIENTS(dy + at + 2 * WIDTH, y + at + 2 * WIDTH) * LOADS(x + at + 2 * WIDTH);
                s3 += GRADIENTS(dy + at + 3 * WIDTH, y + at + 3 * WIDTH) * LOADS(x + at + 3 * WIDTH);
            }
            for (; at + WIDTH <= end; at += WIDTH) s0 += GRADIENTS(dy + at, y + at) * LOADS(x + at);
            for (; at < end; at++) rest += GRADIENT(dy + at, y + at) * LOAD(x + at);
            s0 = (s0 + s1) + (s2 + s3);
            sum += sum_of(&s0) + rest;
        }
        *sums = sum;
    }
}

VECTORS static void NAMED(forward_planes)(const NUMBER *x, const float *gates, const float *offsets,
                                          const NUMBER *shortcut, NUMBER *y, Int num_planes, Int size) {
    (void)shortcut;
    (void)offsets;
    for (Int plane = 0; plane < num_planes; plane++, x += size, shortcut += RESIDUAL * size, y += size) {
        float gate = gates[plane];
        Int at = 0;
#if RESIDUAL
        float offset = offsets[plane];
        for (; at + WIDTH <= size; at += WIDTH)
            STORES(y + at, relus(LOADS(x + at) * gate + offset + LOADS(shortcut + at)));
        for (; at < size; at++) STORE(y + at, relu(LOAD(x + at) * gate + offset + LOAD(shortcut + at)));
#else
        for (; at + WIDTH <= size; at += WIDTH) STORES(y + at, LOADS(x + at) * gate);
        for (; at < size; at++) STORE(y + at, LOAD(x + at) * gate);
#endif
    }
}

VECTORS static void NAMED(backward_planes)(const NUMBER *dy, const NUMBER *y, const float *gates, const float *dmeans,
                                           NUMBER *dx, NUMBER *dshortcut, Int num_planes, Int size) {
    (void)y;
    (void)dshortcut;
    for (Int plane = 0; plane < num_planes; plane++, dy += size, dx += size) {
        float gate = gates[plane], dmean = dmeans[plane];
        Int at = 0;
        for (; at + WIDTH <= size; at += WIDTH) {
            Vector gradient = GRADIENTS(dy + at, y + at);
            STORES(dx + at, gradient * gate + dmean);
#if RESIDUAL
            STORES(dshortcut + at, gradient);
#endif
        }
        for (; at < size; at++) {
            float gradient = GRADIENT(dy + at, y + at);
            STORE(dx + at, gradient * gate + dmean);
#if RESIDUAL
            STORE(dshortcut + at, gradient);
#endif
        }
        y += RESIDUAL * size;
        dshortcut += RESIDUAL * size;
    }
}

/* ---- NPC: some positions of one image, C channels side by side ---- */

#if !RESIDUAL
VECTORS static void NAMED(sum_rows)(const NUMBER *x, Int num_rows, Int width, float *partial, double *sums) {
    while (num_rows > 0) {
        Int in_block = num_rows < ROW_BLOCK ? num_rows : ROW_BLOCK;
        num_rows -= in_block;
        memset(partial, 0, (size_t)width * sizeof *partial);
        for (; in_block >= 8; in_block -= 8, x += 8 * width) {
            Int c = 0;
            for (; c + WIDTH <= width; c += WIDTH) {
                const NUMBER *row = x + c;
                AT(partial + c) +=
                    ((LOADS(row) + LOADS(row + width)) + (LOADS(row + 2 * width) + LOADS(row + 3 * width))) +
                    ((LOADS(row + 4 * width) + LOADS(row + 5 * width)) +
                     (LOADS(row + 6 * width) + LOADS(row + 7 * width)));
            }
            for (; c < width; c++)
                for (Int row = 0; row < 8; row++) partial[c] += LOAD(x + row * width + c);
        }
        for (; in_block > 0; in_block--, x += width)
            for (Int c = 0; c < width; c++) partial[c] += LOAD(x + c);
        for (Int c = 0; c < width; c++) sums[c] += partial[c];
    }
}
#endif

VECTORS static void NAMED(dot_rows)(const NUMBER *dy, const NUMBER *y, const NUMBER *x, Int num_rows, Int width,
                                    float *partial, double *sums) {
    (void)y;
    while (num_rows > 0) {
        Int in_block = num_rows < ROW_BLOCK ? num_rows : ROW_BLOCK;
        num_rows -= in_block;
        memset(partial, 0, (size_t)width * sizeof *partial);
        for (; in_block >= 4; in_block -= 4, dy += 4 * width, y += RESIDUAL * 4 * width, x += 4 * width) {
            Int c = 0;
            for (; c + WIDTH <= width; c += WIDTH) {
                const NUMBER *d = dy + c, *r = y + c, *p = x + c;
                AT(partial + c) +=
                    (GRADIENTS(d, r) * LOADS(p) + GRADIENTS(d + width, r + width) * LOADS(p + width)) +
                    (GRADIENTS(d + 2 * width, r + 2 * width) * LOADS(p + 2 * width) +
                     GRADIENTS(d + 3 * width, r + 3 * width) * LOADS(p + 3 * width));
                (void)r;
            }
            for (; c < width; c++)
                for (Int row = 0; row < 4; row++)
                    partial[c] += GRADIENT(dy + row * width + c, y + row * width + c) * LOAD(x + row * width + c);
        }
        for (; in_block > 0; in_block--, dy += width, y += RESIDUAL * width, x += width)
            for (Int c = 0; c < width; c++) partial[c] += GRADIENT(dy + c, y + c) * LOAD(x + c);
        for (Int c = 0; c < width; c++) sums[c] += partial[c];
    }
}

VECTORS static void NAMED(forward_rows)(const NUMBER *x, const float *gates, const float *offsets,
                                        const NUMBER *shortcut, NUMBER *y, Int num_rows, Int width) {
    (void)shortcut;
    (void)offsets;
    for (; num_rows > 0; num_rows--, x += width, shortcut += RESIDUAL * width, y += width) {
        Int c = 0;
#if RESIDUAL
        for (; c + WIDTH <= width; c += WIDTH)
            STORES(y + c, relus(LOADS(x + c) * AT(gates + c) + AT(offsets + c) + LOADS(shortcut + c)));
        for (; c < width; c++) STORE(y + c, relu(LOAD(x + c) * gates[c] + offsets[c] + LOAD(shortcut + c)));
#else
        for (; c + WIDTH <= width; c += WIDTH) STORES(y + c, LOADS(x + c) * AT(gates + c));
        for (; c < width; c++) STORE(y + c, LOAD(x + c) * gates[c]);
#endif
    }
}

VECTORS static void NAMED(backward_rows)(const NUMBER *dy, const NUMBER *y, const float *gates, const float *dmeans,
                                         NUMBER *dx, NUMBER *dshortcut, Int num_rows, Int width) {
    (void)y;
    (void)dshortcut;
    for (; num_rows > 0; num_rows--, dy += width, dx += width) {
        Int c = 0;
        for (; c + WIDTH <= width; c += WIDTH) {
            Vector gradient = GRADIENTS(dy + c, y + c);
            STORES(dx + c, gradient * AT(gates + c) + AT(dmeans + c));
#if RESIDUAL
            STORES(dshortcut + c, gradient);
#endif
        }
        for (; c < width; c++) {
            float gradient = GRADIENT(dy + c, y + c);
            STORE(dx + c, gradient * gates[c] + dmeans[c]);
#if RESIDUAL
            STORE(dshortcut + c, gradient);
#endif
        }
        y += RESIDUAL * width;
        dshortcut += RESIDUAL * width;
    }
}

/* ---- one image ---- */

/* The first visit: sums over the positions of this share of an image, of the map or of its product with the gradient. */
static void NAMED(accumulate)(const Job *job, const Share *share, Int image, float *partial, double *sums) {
    Int width = job->num_channels, size = job->num_positions, num_parts = share->end - share->begin;
    Int from = image * width * size + share->begin * (job->is_channels_last ? width : size);
    const NUMBER *x = (const NUMBER *)job->x + from, *dy = job->dy ? (const NUMBER *)job->dy + from : NULL;
    const NUMBER *y = RESIDUAL && dy ? (const NUMBER *)job->y + from : NULL;
    if (job->is_channels_last) {
        memset(sums, 0, (size_t)width * sizeof *sums);
        if (dy)
            NAMED(dot_rows)(dy, y, x, num_parts, width, partial, sums);
        else
            SUMMING(sum_rows)(x, num_parts, width, partial, sums);
    } else if (dy)
        NAMED(dot_planes)(dy, y, x, num_parts, size, sums + share->begin);
    else
        SUMMING(sum_planes)(x, num_parts, size, sums + share->begin);
}

/* The second visit. The offsets are those of a norm in forward, and the gradients of the means in backward. */
static void NAMED(write_out)(const Job *job, const Share *share, Int image, const float *gates, const float *offsets) {
    Int width = job->num_channels, size = job->num_positions, num_parts = share->end - share->begin;
    Int from = image * width * size + share->begin * (job->is_channels_last ? width : size);
    const NUMBER *x = (const NUMBER *)job->x + from;
    NUMBER *written = (NUMBER *)job->written + from;
    if (!job->dy) {
        const NUMBER *shortcut = RESIDUAL ? (const NUMBER *)job->shortcut + from : NULL;
        if (job->is_channels_last)
            NAMED(forward_rows)(x, gates, offsets, shortcut, written, num_parts, width);
        else
            NAMED(forward_planes)
    (x, gates + share->begin, offsets + share->begin, shortcut, written, num_parts, size);
        return;
    }
    const NUMBER *dy = (const NUMBER *)job->dy + from, *y = RESIDUAL ? (const NUMBER *)job->y + from : NULL;
    NUMBER *dshortcut = RESIDUAL ? (NUMBER *)job->dshortcut + from : NULL;
    if (job->is_channels_last)
        NAMED(backward_rows)(dy, y, gates, offsets, written, dshortcut, num_parts, width);
    else
        NAMED(backward_planes)
    (dy, y, gates + share->begin, offsets + share->begin, written, dshortcut, num_parts, size);
}

#if RESIDUAL
#include "norm_visits.h"
#endif

#undef GRADIENT
#undef GRADIENTS
