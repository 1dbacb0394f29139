/* Boxes of elements from one place to another, by any strides or lists of offsets. */
#include "kernel.h"

#include <string.h>

static int64_t size_of(int64_t n) { return n < 0 ? -n : n; }

/* How far apart neighbours of a dimension lie in the output: what lies closest is copied
   innermost. */
static int64_t apart(const Dim *dim) {
    if (dim->out_list) return size_of(dim->out_list[1] - dim->out_list[0]);
    return size_of(dim->out_step);
}

static int joins(const Dim *outer, const Dim *inner) {
    return !outer->in_list && !outer->out_list && !inner->in_list && !inner->out_list &&
           outer->in_step == inner->n * inner->in_step &&
           outer->out_step == inner->n * inner->out_step;
}

/* The dimensions that are left where those of one element are dropped, the others sorted, and
   neighbours joined. `item` becomes the bytes that lie together in both places. */
int arrange(Dim *dims, int count, int64_t *in, int64_t *out, size_t *item) {
    int kept = 0;
    for (int k = 0; k < count; k++) {
        Dim dim = dims[k];
        if (dim.n == 1) {
            if (dim.in_list) *in += dim.in_list[0];
            if (dim.out_list) *out += dim.out_list[0];
            continue;
        }
        int at = kept++;
        int64_t far = apart(&dim);
        while (at > 0 && apart(&dims[at - 1]) < far) {
            dims[at] = dims[at - 1];
            at--;
        }
        dims[at] = dim;
    }
    int joined = 0;
    for (int k = 0; k < kept; k++) {
        if (joined && joins(&dims[joined - 1], &dims[k])) {
            dims[k].n *= dims[joined - 1].n;
            dims[joined - 1] = dims[k];
        } else {
            dims[joined++] = dims[k];
        }
    }
    if (joined) {
        const Dim *last = &dims[joined - 1];
        int64_t size = (int64_t)*item;
        if (!last->in_list && !last->out_list && last->in_step == size && last->out_step == size) {
            *item *= (size_t)last->n;
            joined--;
        }
    }
    return joined;
}

/* One dimension of elements of a size that the compiler knows. */
#define LISTED(SIZE)                                                                         \
    for (int64_t i = 0; i < n; i++) {                                                        \
        memcpy(out + (out_list ? out_list[i] : i * out_step),                                \
               in + (in_list ? in_list[i] : i * in_step), SIZE);                             \
    }                                                                                        \
    break

#define STRIDES(SIZE)                                                                        \
    for (int64_t i = 0; i < n; i++, in += in_step, out += out_step) memcpy(out, in, SIZE);   \
    break

#define DENSE(SIZE)                                                                          \
    for (int64_t i = 0; i < n; i++, in += in_step) memcpy(out + i * (SIZE), in, SIZE);       \
    break

static void row(const uint8_t *in, uint8_t *out, const Dim *dim, size_t item) {
    int64_t n = dim->n, in_step = dim->in_step, out_step = dim->out_step;
    const int64_t *in_list = dim->in_list, *out_list = dim->out_list;
    if (in_list || out_list) {
        switch (item) {
        case 1: LISTED(1);
        case 2: LISTED(2);
        case 4: LISTED(4);
        case 8: LISTED(8);
        default: LISTED(item);
        }
    } else if (out_step == (int64_t)item) {
        if (in_step == 0 && item == 1) {
            memset(out, *in, (size_t)n);
            return;
        }
        switch (item) {
        case 1: DENSE(1);
        case 2: DENSE(2);
        case 4: DENSE(4);
        case 8: DENSE(8);
        case 16: DENSE(16);
        case 32: DENSE(32);
        case 64: DENSE(64);
        default: STRIDES(item);
        }
    } else {
        switch (item) {
        case 1: STRIDES(1);
        case 2: STRIDES(2);
        case 4: STRIDES(4);
        case 8: STRIDES(8);
        case 16: STRIDES(16);
        case 32: STRIDES(32);
        case 64: STRIDES(64);
        default: STRIDES(item);
        }
    }
}

/* The box that `arrange` left; `in` and `out` are its first element. */
void copy(const uint8_t *in, uint8_t *out, const Dim *dims, int count, size_t item) {
    if (count == 0) {
        memcpy(out, in, item);
    } else if (count == 1) {
        row(in, out, dims, item);
    } else {
        for (int64_t i = 0; i < dims->n; i++) {
            copy(in + (dims->in_list ? dims->in_list[i] : i * dims->in_step),
                 out + (dims->out_list ? dims->out_list[i] : i * dims->out_step), dims + 1,
                 count - 1, item);
        }
    }
}
