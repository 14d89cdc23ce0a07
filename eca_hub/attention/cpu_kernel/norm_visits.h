/* The end of a residual block in training, from the output of the last convolution on: norm, gate, shortcut, ReLU.

   The norm needs the sums of all images before the first number can be written, so forward and backward visit the map of
   a whole batch twice; what lies between the visits is one number an image and channel: finish and finish_backward.
   eca_visits.h includes this once for each of float and bfloat16.

   A part of an image is `begin` to `end`: channels of an NCP map; of an NPC map channels in a sum, and positions else.
   Sums are of floats within fixed blocks and of doubles over the blocks, so they do not depend on the threads. */

/* Of x and of its square. The squares of a block are summed around the mean of the block, and the square of its sum is
   added in double: the rounding of the mean alone would exceed a variance that is small beside it. */
VECTORS static void NAMED(moments_of_planes)(const NUMBER *x, Int num_planes, Int size, double *sums, double *squares) {
    for (; num_planes > 0; num_planes--, x += size) {
        double sum = 0, square = 0;
        for (Int begin = 0; begin < size; begin += PLANE_BLOCK) {
            Int end = begin + PLANE_BLOCK < size ? begin + PLANE_BLOCK : size, at = begin;
            Vector s0 = {0}, s1 = {0}, d0 = {0}, d1 = {0};
            float rest = 0;
            for (; at + 2 * WIDTH <= end; at += 2 * WIDTH) {
                s0 += LOADS(x + at);
                s1 += LOADS(x + at + WIDTH);
            }
            for (; at < end; at++) rest += LOAD(x + at);
            s0 += s1;
            float block_sum = sum_of(&s0) + rest, mean = block_sum / (float)(end - begin);
            rest = 0;
            for (at = begin; at + 2 * WIDTH <= end; at += 2 * WIDTH) {
                Vector a = LOADS(x + at) - mean, b = LOADS(x + at + WIDTH) - mean;
                d0 += a * a;
                d1 += b * b;
            }
            for (; at < end; at++) rest += (LOAD(x + at) - mean) * (LOAD(x + at) - mean);
            d0 += d1;
            sum += block_sum;
            square += (double)(sum_of(&d0) + rest) + (double)block_sum * block_sum / (double)(end - begin);
        }
        *sums++ = sum;
        *squares++ = square;
    }
}

/* Some channels, at most STRIP, of all rows of an image. */
VECTORS static void NAMED(moments_of_rows)(const NUMBER *x, Int num_rows, Int stride, Int width, double *sums,
                                           double *squares) {
    float block_sums[STRIP], means[STRIP], deviations[STRIP];
    for (Int c = 0; c < width; c++) sums[c] = squares[c] = 0;
    for (Int begin = 0; begin < num_rows; begin += ROW_BLOCK, x += ROW_BLOCK * stride) {
        Int count = num_rows - begin < ROW_BLOCK ? num_rows - begin : ROW_BLOCK, row = 0;
        memset(block_sums, 0, (size_t)width * sizeof *block_sums);
        memset(deviations, 0, (size_t)width * sizeof *deviations);
        for (; row < count; row += 4) {
            const NUMBER *first = x + row * stride;
            Int rows = count - row < 4 ? count - row : 4, c = 0;
            for (; rows == 4 && c + WIDTH <= width; c += WIDTH) {
                const NUMBER *at = first + c;
                AT(block_sums + c) += (LOADS(at) + LOADS(at + stride)) + (LOADS(at + 2 * stride) + LOADS(at + 3 * stride));
            }
            for (; c < width; c++)
                for (Int other = 0; other < rows; other++) block_sums[c] += LOAD(first + other * stride + c);
        }
        for (Int c = 0; c < width; c++) means[c] = block_sums[c] / (float)count;
        for (row = 0; row < count; row += 2) {
            const NUMBER *first = x + row * stride;
            Int rows = count - row < 2 ? count - row : 2, c = 0;
            for (; rows == 2 && c + WIDTH <= width; c += WIDTH) {
                Vector d = LOADS(first + c) - AT(means + c), e = LOADS(first + stride + c) - AT(means + c);
                AT(deviations + c) += d * d + e * e;
            }
            for (; c < width; c++)
                for (Int other = 0; other < rows; other++) {
                    float deviation = LOAD(first + other * stride + c) - means[c];
                    deviations[c] += deviation * deviation;
                }
        }
        for (Int c = 0; c < width; c++) {
            sums[c] += block_sums[c];
            squares[c] += deviations[c] + (double)block_sums[c] * block_sums[c] / (double)count;
        }
    }
}

/* Of the gradient and of its product with x - center. */
VECTORS static void NAMED(products_of_planes)(const NUMBER *dy, const NUMBER *y, const NUMBER *x, const float *center,
                                              Int num_planes, Int size, double *sums, double *products) {
    for (; num_planes > 0; num_planes--, dy += size, y += size, x += size, center++) {
        double sum = 0, product = 0;
        for (Int begin = 0; begin < size; begin += PLANE_BLOCK) {
            Int end = begin + PLANE_BLOCK < size ? begin + PLANE_BLOCK : size, at = begin;
            Vector s0 = {0}, s1 = {0}, p0 = {0}, p1 = {0};
            float rest = 0, rest_product = 0;
            for (; at + 2 * WIDTH <= end; at += 2 * WIDTH) {
                Vector a = GRADIENTS(dy + at, y + at), b = GRADIENTS(dy + at + WIDTH, y + at + WIDTH);
                s0 += a;
                s1 += b;
                p0 += a * (LOADS(x + at) - *center);
                p1 += b * (LOADS(x + at + WIDTH) - *center);
            }
            for (; at < end; at++) {
                float gradient = GRADIENT(dy + at, y + at);
                rest += gradient;
                rest_product += gradient * (LOAD(x + at) - *center);
            }
            s0 += s1;
            p0 += p1;
            sum += sum_of(&s0) + rest;
            product += sum_of(&p0) + rest_product;
        }
        *sums++ = sum;
        *products++ = product;
    }
}

VECTORS static void NAMED(products_of_rows)(const NUMBER *dy, const NUMBER *y, const NUMBER *x, const float *center,
                                            Int num_rows, Int stride, Int width, double *sums, double *products) {
    float block_sums[STRIP], block_products[STRIP];
    for (Int c = 0; c < width; c++) sums[c] = products[c] = 0;
    for (Int begin = 0; begin < num_rows; begin += ROW_BLOCK) {
        Int end = num_rows - begin < ROW_BLOCK ? num_rows : begin + ROW_BLOCK;
        memset(block_sums, 0, (size_t)width * sizeof *block_sums);
        memset(block_products, 0, (size_t)width * sizeof *block_products);
        for (Int row = begin; row < end; row += 2) {
            Int first = row * stride, rows = end - row < 2 ? end - row : 2, c = 0;
            for (; rows == 2 && c + WIDTH <= width; c += WIDTH) {
                Int at = first + c, next = at + stride;
                Vector a = GRADIENTS(dy + at, y + at), b = GRADIENTS(dy + next, y + next), mean = AT(center + c);
                AT(block_sums + c) += a + b;
                AT(block_products + c) += a * (LOADS(x + at) - mean) + b * (LOADS(x + next) - mean);
            }
            for (; c < width; c++)
                for (Int at = first + c; at < first + c + rows * stride; at += stride) {
                    float gradient = GRADIENT(dy + at, y + at);
                    block_sums[c] += gradient;
                    block_products[c] += gradient * (LOAD(x + at) - center[c]);
                }
        }
        for (Int c = 0; c < width; c++) {
            sums[c] += block_sums[c];
            products[c] += block_products[c];
        }
    }
}

/* dx = gradient factor + (x - center) slope + offset, and dshortcut = gradient. */
VECTORS static void NAMED(gradients_of_planes)(const NUMBER *dy, const NUMBER *y, const NUMBER *x, const float *center,
                                               const float *factors, const float *slopes, const float *offsets,
                                               NUMBER *dx, NUMBER *dshortcut, Int num_planes, Int size) {
    for (Int plane = 0; plane < num_planes; plane++, dy += size, y += size, x += size, dx += size, dshortcut += size) {
        float mean = center[plane], factor = factors[plane], slope = slopes[plane], offset = offsets[plane];
        Int at = 0;
        for (; at + WIDTH <= size; at += WIDTH) {
            Vector gradient = GRADIENTS(dy + at, y + at);
            STORES(dx + at, gradient * factor + ((LOADS(x + at) - mean) * slope + offset));
            STORES(dshortcut + at, gradient);
        }
        for (; at < size; at++) {
            float gradient = GRADIENT(dy + at, y + at);
            STORE(dx + at, gradient * factor + ((LOAD(x + at) - mean) * slope + offset));
            STORE(dshortcut + at, gradient);
        }
    }
}

VECTORS static void NAMED(gradients_of_rows)(const NUMBER *dy, const NUMBER *y, const NUMBER *x, const float *center,
                                             const float *factors, const float *slopes, const float *offsets,
                                             NUMBER *dx, NUMBER *dshortcut, Int num_rows, Int width) {
    for (; num_rows > 0; num_rows--, dy += width, y += width, x += width, dx += width, dshortcut += width) {
        Int c = 0;
        for (; c + WIDTH <= width; c += WIDTH) {
            Vector gradient = GRADIENTS(dy + c, y + c), deviation = LOADS(x + c) - AT(center + c);
            STORES(dx + c, gradient * AT(factors + c) + (deviation * AT(slopes + c) + AT(offsets + c)));
            STORES(dshortcut + c, gradient);
        }
        for (; c < width; c++) {
            float gradient = GRADIENT(dy + c, y + c), deviation = LOAD(x + c) - center[c];
            STORE(dx + c, gradient * factors[c] + (deviation * slopes[c] + offsets[c]));
            STORE(dshortcut + c, gradient);
        }
    }
}

/* ---- one part of an image ---- */

static void NAMED(visit_moments)(const BlockEnd *job, Int image, Int begin, Int end) {
    Int width = job->num_channels, size = job->num_positions;
    const NUMBER *x = (const NUMBER *)job->x + image * width * size + begin * (job->is_channels_last ? 1 : size);
    double *sums = job->sums + image * width + begin, *squares = job->products + image * width + begin;
    if (job->is_channels_last)
        NAMED(moments_of_rows)(x, size, width, end - begin, sums, squares);
    else
        NAMED(moments_of_planes)(x, end - begin, size, sums, squares);
}

static void NAMED(visit_products)(const BlockEnd *job, Int image, Int begin, Int end) {
    Int width = job->num_channels, size = job->num_positions;
    Int from = image * width * size + begin * (job->is_channels_last ? 1 : size);
    const NUMBER *dy = (const NUMBER *)job->dy + from, *y = (const NUMBER *)job->y + from;
    const NUMBER *x = (const NUMBER *)job->x + from;
    double *sums = job->sums + image * width + begin, *products = job->products + image * width + begin;
    if (job->is_channels_last)
        NAMED(products_of_rows)(dy, y, x, job->center + begin, size, width, end - begin, sums, products);
    else
        NAMED(products_of_planes)(dy, y, x, job->center + begin, end - begin, size, sums, products);
}

static void NAMED(visit_result)(const BlockEnd *job, Int image, Int begin, Int end) {
    Int width = job->num_channels, size = job->num_positions;
    Int from = image * width * size + begin * (job->is_channels_last ? width : size);
    const NUMBER *x = (const NUMBER *)job->x + from, *shortcut = (const NUMBER *)job->shortcut + from;
    NUMBER *y = (NUMBER *)job->written + from;
    const float *factors = job->factors + image * width, *offsets = job->offsets + image * width;
    if (job->is_channels_last)
        NAMED(forward_rows)(x, factors, offsets, shortcut, y, end - begin, width);
    else
        NAMED(forward_planes)(x, factors + begin, offsets + begin, shortcut, y, end - begin, size);
}

static void NAMED(visit_gradients)(const BlockEnd *job, Int image, Int begin, Int end) {
    Int width = job->num_channels, size = job->num_positions;
    Int from = image * width * size + begin * (job->is_channels_last ? width : size);
    const NUMBER *dy = (const NUMBER *)job->dy + from, *y = (const NUMBER *)job->y + from;
    const NUMBER *x = (const NUMBER *)job->x + from;
    NUMBER *dx = (NUMBER *)job->written + from, *dshortcut = (NUMBER *)job->dshortcut + from;
    /* The first channel of the part among those of all images, and in its image. */
    Int first = job->is_channels_last ? 0 : begin, channel = image * width + first;
    const float *center = job->center + first, *factors = job->factors + channel;
    const float *slopes = job->slopes + first, *offsets = job->offsets + channel;
    if (job->is_channels_last)
        NAMED(gradients_of_rows)(dy, y, x, center, factors, slopes, offsets, dx, dshortcut, end - begin, width);
    else
        NAMED(gradients_of_planes)(dy, y, x, center, factors, slopes, offsets, dx, dshortcut, end - begin, size);
}
