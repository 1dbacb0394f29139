/* What Python hands over, taken and checked: no task can reach beyond its buffers. */
#include "batch.h"

#include <stdlib.h>

int view(Views *views, PyObject *object, int flags, Py_buffer **found) {
    if (views->count == views->most) {
        PyErr_SetString(PyExc_ValueError, "more buffers than there is room for");
        return 0;
    }
    Py_buffer *one = &views->at[views->count];
    if (PyObject_GetBuffer(object, one, flags)) return 0;
    views->count++;
    *found = one;
    return 1;
}

int wrong(const char *what) {
    PyErr_SetString(PyExc_ValueError, what);
    return 0;
}

const int64_t *numbers(Views *views, PyObject *object, int64_t count, int64_t *found) {
    Py_buffer *buffer;
    if (!view(views, object, PyBUF_C_CONTIGUOUS, &buffer)) return NULL;
    if (buffer->itemsize != 8 || (uintptr_t)buffer->buf % 8 ||
        (count >= 0 && buffer->len != count * 8)) {
        wrong("an array of 64-bit integers of another size was expected");
        return NULL;
    }
    if (found) *found = (int64_t)(buffer->len / 8);
    return buffer->len ? buffer->buf : (const int64_t *)"\0\0\0\0\0\0\0";
}

int integers(PyObject *tuple, int64_t *to, int64_t count) {
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != count) return wrong("a tuple of another size");
    for (int64_t k = 0; k < count; k++) {
        to[k] = PyLong_AsLongLong(PyTuple_GetItem(tuple, (Py_ssize_t)k));
        if (to[k] == -1 && PyErr_Occurred()) return 0;
    }
    return 1;
}

/* The least and the most of `n` offsets from `base`; whether they can be told. */
static int reach(int64_t base, int64_t step, const int64_t *list, int64_t n, int64_t *low,
                 int64_t *high) {
    int64_t far = 0, from = 0;
    if (list) {
        from = far = list[0];
        for (int64_t k = 1; k < n; k++) {
            if (list[k] < from) from = list[k];
            if (list[k] > far) far = list[k];
        }
    } else if (__builtin_mul_overflow(step, n - 1, &far)) {
        return 0;
    }
    if (far < from) {
        int64_t other = far;
        far = from;
        from = other;
    }
    return !__builtin_add_overflow(base, from, low) && !__builtin_add_overflow(base, far, high);
}

/* Every offset that a task can have lies in the chunk, and in the output. */
int check_rows(const Tables *tables, const Chain *chain, int64_t low_out, int64_t high_out) {
    int64_t in_low = 0, in_high = chain->itemsize, out_low = 0,
            out_high = chain->itemsize;
    for (int g = 0; g < tables->count; g++) {
        const Group *group = &tables->groups[g];
        int64_t a = 0, b = 0, c = 0, d = 0;
        for (int64_t k = 0; k < group->rows; k++) {
            const int64_t *row = group->what + k * ROW;
            int64_t n = row[0], low, high, from, to;
            if (n < 1 || row[5] < -1 || row[6] < -1) return wrong("a row of no elements");
            if ((row[5] >= 0 && (row[5] > group->listed || n > group->listed - row[5])) ||
                (row[6] >= 0 && (row[6] > group->listed || n > group->listed - row[6])))
                return wrong("a row reaches beyond its list");
            const int64_t *in = row[5] < 0 ? NULL : group->lists + row[5];
            const int64_t *out = row[6] < 0 ? NULL : group->lists + group->listed + row[6];
            if (!reach(row[1], row[2], in, n, &low, &high) ||
                !reach(row[3], row[4], out, n, &from, &to))
                return wrong("a row reaches too far");
            if (!k || low < a) a = low;
            if (!k || high > b) b = high;
            if (!k || from < c) c = from;
            if (!k || to > d) d = to;
        }
        for (int64_t k = 0; k < group->rows * group->coords; k++)
            if (group->at[k] < 0) return wrong("a chunk before the first");
        if (__builtin_add_overflow(in_low, a, &in_low) ||
            __builtin_add_overflow(in_high, b, &in_high) ||
            __builtin_add_overflow(out_low, c, &out_low) ||
            __builtin_add_overflow(out_high, d, &out_high))
            return wrong("rows reach too far");
    }
    if (in_low < 0 || in_high > chain->nbytes) return wrong("rows reach beyond a chunk");
    if (out_low < low_out || out_high > high_out) return wrong("rows reach beyond the output");
    return 1;
}

/* The rows of an axis whose elements are `n` from `start` on, `by` apart, in chunks of `edge`:
   (axis, start, n, by, edge, step, out), the last two between neighbours in the chunk and in the
   output, in bytes. As `Span.rows` of tables.py. */
static int take_span(Group *group, PyObject *given, int axes) {
    int64_t one[7], last, far;
    if (!integers(given, one, 7)) return 0;
    int64_t start = one[1], n = one[2], by = one[3], edge = one[4], step = one[5], out = one[6];
    if (one[0] < 0 || one[0] >= axes) return wrong("no such axis");
    if (start < 0 || n < 1 || !by || by == INT64_MIN || edge < 1 || __builtin_mul_overflow(n - 1, by, &last) ||
        __builtin_add_overflow(start, last, &last) || last < 0 || last > INT64_MAX - edge ||
        start > INT64_MAX - edge)
        return wrong("no elements of an axis");
    if (__builtin_mul_overflow(edge, step, &far) || __builtin_mul_overflow(n, out, &far) ||
        __builtin_mul_overflow(by, step, &far))
        return wrong("a row reaches too far");
    int64_t chunks = start / edge - last / edge;
    if (chunks < 0) chunks = -chunks;
    int64_t most = n <= chunks ? n : chunks + 1;
    if (most > MOST_ROWS) return wrong("too many rows");
    group->made = malloc(sizeof(int64_t) * (size_t)(most * (1 + ROW)));
    if (!group->made) {
        PyErr_NoMemory();
        return 0;
    }
    int64_t *at = group->made, *row = at + most;
    group->coords = 1;
    group->axes[0] = one[0];
    group->at = at;
    group->what = row;
    for (int64_t k = 0; k < n; group->rows++, row += ROW) {
        int64_t place = start + k * by, chunk = place / edge, inside = place % edge;
        int64_t some = by > 0 ? (edge - 1 - inside) / by : inside / -by;
        if (some++ >= n - k) some = n - k;
        at[group->rows] = chunk;
        row[0] = some;
        row[1] = inside * step;
        row[2] = by * step;
        row[3] = k * out;
        row[4] = out;
        row[5] = row[6] = -1;
        k += some;
    }
    return 1;
}

int take_groups(Tables *tables, Views *views, PyObject *groups, int axes) {
    Py_ssize_t count = PyTuple_Check(groups) ? PyTuple_Size(groups) : -1;
    if (count < 0 || count >= MOST_DIMS) return wrong("a tuple of fewer than 64 groups");
    tables->count = (int)count;
    for (int k = 0; k < tables->count; k++) {
        PyObject *own, *at, *what, *lists;
        PyObject *given = PyTuple_GetItem(groups, k);
        Group *group = &tables->groups[k];
        if (PyTuple_Check(given) && PyTuple_Size(given) == 7) {
            if (!take_span(group, given, axes)) return 0;
            continue;
        }
        if (!PyArg_ParseTuple(given, "OOOO", &own, &at, &what, &lists)) return 0;
        Py_ssize_t coords = PyTuple_Check(own) ? PyTuple_Size(own) : -1;
        if (coords < 0 || coords > MOST_DIMS) return wrong("a tuple of axes");
        group->coords = coords;
        if (!integers(own, group->axes, coords)) return 0;
        for (Py_ssize_t i = 0; i < coords; i++)
            if (group->axes[i] < 0 || group->axes[i] >= axes) return wrong("no such axis");
        group->what = numbers(views, what, -1, &group->rows);
        if (!group->what) return 0;
        if (group->rows % ROW) return wrong("rows of seven numbers");
        group->rows /= ROW;
        group->at = numbers(views, at, group->rows * coords, NULL);
        if (!group->at) return 0;
        if (lists != Py_None) {
            group->lists = numbers(views, lists, -1, &group->listed);
            if (!group->lists) return 0;
            if (group->listed % 2) return wrong("two lists of one size");
            group->listed /= 2;
        }
    }
    return 1;
}

/* The memory that an array with strides takes, from its first element; 0: it has none. */
int extent(const Py_buffer *array, int64_t *low, int64_t *high) {
    *low = 0;
    *high = array->itemsize;
    for (int k = 0; k < array->ndim; k++) {
        int64_t far = (array->shape[k] - 1) * array->strides[k];
        if (array->shape[k] < 1) return 0;
        if (far < 0) *low += far;
        else *high += far;
    }
    return 1;
}

int make_views(Views *views, int64_t most) {
    views->at = calloc((size_t)most, sizeof *views->at);
    views->most = most;
    if (!views->at) PyErr_NoMemory();
    return views->at != NULL;
}

void release_views(Views *views) {
    for (int64_t k = 0; k < views->count; k++) PyBuffer_Release(&views->at[k]);
    free(views->at);
}

/* The rows that were worked out here. */
void release_tables(Tables *tables) {
    for (int k = 0; k < tables->count; k++) free(tables->groups[k].made);
}
