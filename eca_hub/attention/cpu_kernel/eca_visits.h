/* The visits to a map, for one kind of numbers. eca_kernel.c includes this once a kind, having defined

       NUMBER          the kind, as it lies in memory
       NAMED(name)     the name of a function for this kind
       LOAD, STORE     one number from memory as a float, and back
       LOADS, STORES   WIDTH of them as a Vector, and back

   All sums are of floats. */

/* ---- some channels of one image, each with its P positions side by side ---- */

VECTORS static void NAMED(sum_planes)(const NUMBER *x, Int num_planes, Int size, float *sums) {
    for (; num_planes > 0; num_planes--, x += size, sums++) {
        /* Four, so that no addition waits for the one before. */
        Vector s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        float rest = 0;
        Int at = 0;
        for (; at + 4 * WIDTH <= size; at += 4 * WIDTH) {
            s0 += LOADS(x + at);
            s1 += LOADS(x + at + WIDTH);
            s2 += LOADS(x + at + 2 * WIDTH);
            s3 += LOADS(x + at + 3 * WIDTH);
        }
        for (; at + WIDTH <= size; at += WIDTH) s0 += LOADS(x + at);
        for (; at < size; at++) rest += LOAD(x + at);
        s0 = (s0 + s1) + (s2 + s3);
        *sums = sum_of(&s0) + rest;
    }
}

VECTORS static void NAMED(dot_planes)(const NUMBER *a, const NUMBER *b, Int num_planes, Int size, float *sums) {
    for (; num_planes > 0; num_planes--, a += size, b += size, sums++) {
        Vector s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        float rest = 0;
        Int at = 0;
        for (; at + 4 * WIDTH <= size; at += 4 * WIDTH) {
            s0 += LOADS(a + at) * LOADS(b + at);
            s1 += LOADS(a + at + WIDTH) * LOADS(b + at + WIDTH);
            s2 += LOADS(a + at + 2 * WIDTH) * LOADS(b + at + 2 * WIDTH);
            s3 += LOADS(a + at + 3 * WIDTH) * LOADS(b + at + 3 * WIDTH);
        }
        for (; at + WIDTH <= size; at += WIDTH) s0 += LOADS(a + at) * LOADS(b + at);
        for (; at < size; at++) rest += LOAD(a + at) * LOAD(b + at);
        s0 = (s0 + s1) + (s2 + s3);
        *sums = sum_of(&s0) + rest;
    }
}

/* y = x factor + summand; without summands -0 is added, which changes nothing, not even the sign of a 0. */
VECTORS static void NAMED(write_planes)(const NUMBER *x, const float *factors, const float *summands, NUMBER *y,
                                        Int num_planes, Int size) {
    for (Int plane = 0; plane < num_planes; plane++, x += size, y += size) {
        float factor = factors[plane], summand = summands ? summands[plane] : -0.0f;
        Int at = 0;
        for (; at + WIDTH <= size; at += WIDTH) STORES(y + at, LOADS(x + at) * factor + summand);
        for (; at < size; at++) STORE(y + at, LOAD(x + at) * factor + summand);
    }
}

/* ---- some positions of one image, C channels side by side; so many are summed up before they join the total, for
        fewer roundings and fewer visits to it ---- */

VECTORS static void NAMED(sum_rows)(const NUMBER *x, Int num_rows, Int width, float *sums) {
    for (; num_rows >= 8; num_rows -= 8, x += 8 * width) {
        Int c = 0;
        for (; c + WIDTH <= width; c += WIDTH) {
            const NUMBER *row = x + c;
            AT(sums + c) += ((LOADS(row) + LOADS(row + width)) + (LOADS(row + 2 * width) + LOADS(row + 3 * width))) +
                            ((LOADS(row + 4 * width) + LOADS(row + 5 * width)) +
                             (LOADS(row + 6 * width) + LOADS(row + 7 * width)));
        }
        for (; c < width; c++)
            for (Int row = 0; row < 8; row++) sums[c] += LOAD(x + row * width + c);
    }
    for (; num_rows > 0; num_rows--, x += width)
        for (Int c = 0; c < width; c++) sums[c] += LOAD(x + c);
}

VECTORS static void NAMED(dot_rows)(const NUMBER *a, const NUMBER *b, Int num_rows, Int width, float *sums) {
    for (; num_rows >= 4; num_rows -= 4, a += 4 * width, b += 4 * width) {
        Int c = 0;
        for (; c + WIDTH <= width; c += WIDTH) {
            const NUMBER *p = a + c, *q = b + c;
            AT(sums + c) += (LOADS(p) * LOADS(q) + LOADS(p + width) * LOADS(q + width)) +
                            (LOADS(p + 2 * width) * LOADS(q + 2 * width) + LOADS(p + 3 * width) * LOADS(q + 3 * width));
        }
        for (; c < width; c++)
            for (Int row = 0; row < 4; row++) sums[c] += LOAD(a + row * width + c) * LOAD(b + row * width + c);
    }
    for (; num_rows > 0; num_rows--, a += width, b += width)
        for (Int c = 0; c < width; c++) sums[c] += LOAD(a + c) * LOAD(b + c);
}

VECTORS static void NAMED(write_rows)(const NUMBER *x, const float *factors, const float *summands, NUMBER *y,
                                      Int num_rows, Int width) {
    const Vector nothing = -(Vector){0};
    for (; num_rows > 0; num_rows--, x += width, y += width) {
        Int c = 0;
        for (; c + WIDTH <= width; c += WIDTH)
            STORES(y + c, LOADS(x + c) * AT(factors + c) + (summands ? AT(summands + c) : nothing));
        for (; c < width; c++) STORE(y + c, LOAD(x + c) * factors[c] + (summands ? summands[c] : -0.0f));
    }
}

/* ---- one image ---- */

/* The sums over the positions of this share of an image: of the map, or of its product with the slope. */
static void NAMED(add_up)(const Job *job, const Share *share, Int image, float *sums) {
    Int width = job->num_channels, size = job->num_positions, num_parts = share->end - share->begin;
    Int from = image * width * size + share->begin * (job->is_channels_last ? width : size);
    const NUMBER *x = (const NUMBER *)job->x + from, *dy = job->dy ? (const NUMBER *)job->dy + from : NULL;
    if (job->is_channels_last) {
        memset(sums, 0, (size_t)width * sizeof *sums);
        if (dy)
            NAMED(dot_rows)(dy, x, num_parts, width, sums);
        else
            NAMED(sum_rows)(x, num_parts, width, sums);
    } else if (dy)
        NAMED(dot_planes)(dy, x, num_parts, size, sums + share->begin);
    else
        NAMED(sum_planes)(x, num_parts, size, sums + share->begin);
}

/* The second visit: y = x gate, or dx = dy gate + through. */
static void NAMED(write_out)(const Job *job, const Share *share, Int image, const float *gates, const float *through) {
    Int width = job->num_channels, size = job->num_positions, num_parts = share->end - share->begin;
    Int from = image * width * size + share->begin * (job->is_channels_last ? width : size);
    const NUMBER *read = (const NUMBER *)(job->dy ? job->dy : job->x) + from;
    NUMBER *written = (NUMBER *)job->written + from;
    if (job->is_channels_last)
        NAMED(write_rows)(read, gates, through, written, num_parts, width);
    else
        NAMED(write_planes)(read, gates + share->begin, through ? through + share->begin : NULL, written, num_parts, size);
}

#undef NUMBER
#undef NAMED
#undef LOAD
#undef STORE
#undef LOADS
#undef STORES
