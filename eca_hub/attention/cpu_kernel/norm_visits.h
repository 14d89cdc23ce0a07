/* The end of a residual block in training, from the output of the last convolution on: norm, gate, shortcut, ReLU.

   The norm needs the sums of all images before the first number can be written, so each function visits the map of a
   whole batch once; what lies between the visits is one number an image and channel and is computed in block_end.py.
   eca_visits.h includes this once for each of float and bfloat16.

   A part of an image is `begin` to `end`: channels of an NCP map; of an NPC map channels in a sum, and positions else.
   Sums are of floats within fixed blocks and of doubles over the blocks, so they do not depend on the threads. */

/* Of x and of its square. The squares of a block are summed around the mean of the block: a variance that is small
   beside its mean loses no digits. */
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
        Int count = num_rows - begin < ROW_BLOCK ? num_rows - begin : ROW_BLOCK, c = 0;
        for (; c + WIDTH <= width; c += WIDTH) {
            Vector sum = {0}, square = {0};
            for (Int row = 0; row < count; row++) sum += LOADS(x + row * stride + c);
            Vector mean = sum / (float)count;
            for (Int row = 0; row < count; row++) {
                Vector deviation = LOADS(x + row * stride + c) - mean;
                square += deviation * deviation;
            }
            AT(block_sums + c) = sum;
            AT(means + c) = mean;
            AT(deviations + c) = square;
        }
        for (; c < width; c++) {
            float sum = 0, square = 0;
            for (Int row = 0; row < count; row++) sum += LOAD(x + row * stride + c);
            float mean = sum / (float)count;
            for (Int row = 0; row < count; row++) {
                float deviation = LOAD(x + row * stride + c) - mean;
                square += deviation * deviation;
            }
            block_sums[c] = sum;
            means[c] = mean;
            deviations[c] = square;
        }
        for (c = 0; c < width; c++) {
            sums[c] += block_sums[c];
            squares[c] += deviations[c] + (double)block_sums[c] * means[c];
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
        Int count = num_rows - begin < ROW_BLOCK ? num_rows - begin : ROW_BLOCK, c = 0;
        for (; c + WIDTH <= width; c += WIDTH) {
            Vector sum = {0}, product = {0};
            for (Int row = begin; row < begin + count; row++) {
                Int at = row * stride + c;
                Vector gradient = GRADIENTS(dy + at, y + at);
                sum += gradient;
                product += gradient * (LOADS(x + at) - AT(center + c));
            }
            AT(block_sums + c) = sum;
            AT(block_products + c) = product;
        }
        for (; c < width; c++) {
            block_sums[c] = block_products[c] = 0;
            for (Int row = begin; row < begin + count; row++) {
                Int at = row * stride + c;
                float gradient = GRADIENT(dy + at, y + at);
                block_sums[c] += gradient;
                block_products[c] += gradient * (LOAD(x + at) - center[c]);
            }
        }
        for (c = 0; c < width; c++) {
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

static void NAMED(visit_moments)(const Visit *visit, Int image, Int begin, Int end) {
    Int width = visit->num_channels, size = visit->num_positions;
    const NUMBER *x = (const NUMBER *)visit->x + image * width * size + begin * (visit->is_channels_last ? 1 : size);
    double *sums = visit->sums + image * width + begin, *squares = visit->products + image * width + begin;
    if (visit->is_channels_last)
        NAMED(moments_of_rows)(x, size, width, end - begin, sums, squares);
    else
        NAMED(moments_of_planes)(x, end - begin, size, sums, squares);
}

static void NAMED(visit_products)(const Visit *visit, Int image, Int begin, Int end) {
    Int width = visit->num_channels, size = visit->num_positions;
    Int from = image * width * size + begin * (visit->is_channels_last ? 1 : size);
    const NUMBER *dy = (const NUMBER *)visit->dy + from, *y = (const NUMBER *)visit->y + from;
    const NUMBER *x = (const NUMBER *)visit->x + from;
    double *sums = visit->sums + image * width + begin, *products = visit->products + image * width + begin;
    if (visit->is_channels_last)
        NAMED(products_of_rows)(dy, y, x, visit->center + begin, size, width, end - begin, sums, products);
    else
        NAMED(products_of_planes)(dy, y, x, visit->center + begin, end - begin, size, sums, products);
}

static void NAMED(visit_result)(const Visit *visit, Int image, Int begin, Int end) {
    Int width = visit->num_channels, size = visit->num_positions;
    Int from = image * width * size + begin * (visit->is_channels_last ? width : size);
    const NUMBER *x = (const NUMBER *)visit->x + from, *shortcut = (const NUMBER *)visit->shortcut + from;
    NUMBER *y = (NUMBER *)visit->written + from;
    const float *factors = visit->factors + image * width, *offsets = visit->offsets + image * width;
    if (visit->is_channels_last)
        NAMED(forward_rows)(x, factors, offsets, shortcut, y, end - begin, width);
    else
        NAMED(forward_planes)(x, factors + begin, offsets + begin, shortcut, y, end - begin, size);
}

static void NAMED(visit_gradients)(const Visit *visit, Int image, Int begin, Int end) {
    Int width = visit->num_channels, size = visit->num_positions;
    Int from = image * width * size + begin * (visit->is_channels_last ? width : size);
    const NUMBER *dy = (const NUMBER *)visit->dy + from, *y = (const NUMBER *)visit->y + from;
    const NUMBER *x = (const NUMBER *)visit->x + from;
    NUMBER *dx = (NUMBER *)visit->written + from, *dshortcut = (NUMBER *)visit->dshortcut + from;
    /* The first channel of the part among those of all images, and in its image. */
    Int first = visit->is_channels_last ? 0 : begin, channel = image * width + first;
    const float *center = visit->center + first, *factors = visit->factors + channel;
    const float *slopes = visit->slopes + first, *offsets = visit->offsets + channel;
    if (visit->is_channels_last)
        NAMED(gradients_of_rows)(dy, y, x, center, factors, slopes, offsets, dx, dshortcut, end - begin, width);
    else
        NAMED(gradients_of_planes)(dy, y, x, center, factors, slopes, offsets, dx, dshortcut, end - begin, size);
}
