/* The index of a small box, and where in which chunks that lies. */
#include "direct.h"

#include <string.h>

/* Whether it is a box; if not, another way is to look at it, and an error may be set. */
int box_of(const Direct *self, PyObject *selection, Box *box) {
    int several = PyTuple_CheckExact(selection), axis = 0;
    Py_ssize_t given = several ? PyTuple_Size(selection) : 1;
    box->dims = box->ellipsis = 0;
    for (Py_ssize_t k = 0; k <= given; k++) {
        PyObject *item = k == given ? Py_Ellipsis : several ? PyTuple_GetItem(selection, k) : selection;
        if (item == Py_Ellipsis) {
            if (k < given && box->ellipsis++) return 0;
            Py_ssize_t rest = k == given ? 0 : given - 1 - k;
            for (; axis + rest < self->axes; axis++) {
                box->start[axis] = box->point[axis] = 0;
                box->n[axis] = self->shape[axis];
                if (!box->n[axis]) return 0;
            }
            continue;
        }
        if (axis == self->axes) return 0;
        int64_t size = self->shape[axis];
        if (PyLong_CheckExact(item) || PyObject_TypeCheck(item, (PyTypeObject *)self->integer)) {
            int over;
            int64_t at = PyLong_AsLongLongAndOverflow(item, &over);
            if (over || (at == -1 && PyErr_Occurred()) || at < -size || at >= size) return 0;
            box->start[axis] = at < 0 ? at + size : at;
            box->n[axis] = box->point[axis] = 1;
        } else if (PySlice_Check(item)) {
            Py_ssize_t start, stop, step;
            if (PySlice_Unpack(item, &start, &stop, &step)) return 0;
            box->n[axis] = PySlice_AdjustIndices((Py_ssize_t)size, &start, &stop, step);
            if (step != 1 || box->n[axis] < 1) return 0;
            box->start[axis] = start;
            box->point[axis] = 0;
        } else {
            return 0;
        }
        axis++;
    }
    box->tasks = 1;
    box->bytes = self->chain.itemsize;
    for (int k = self->axes - 1; k >= 0; k--) {
        int64_t edge = self->edges[k];
        box->first[k] = box->start[k] / edge;
        box->many[k] = (box->start[k] + box->n[k] - 1) / edge - box->first[k] + 1;
        if (box->many[k] > MOST_TASKS || (box->tasks *= box->many[k]) > MOST_TASKS) return 0;
        box->out[k] = box->point[k] ? 0 : box->bytes;
        if (!box->point[k]) box->dims++;
        if (__builtin_mul_overflow(box->bytes, box->n[k], &box->bytes)) return 0;
    }
    return !box->dims && box->ellipsis ? 0 : 1; /* that is an array of no dimensions, and no scalar */
}

/* Of chunk `at` of axis `k`: what is wanted of it, from where in it, and to where in the box. */
int64_t cut_box(const Direct *self, const Box *box, int k, int64_t at, int64_t *from, int64_t *to) {
    int64_t low = at * self->edges[k], high = low + self->edges[k];
    int64_t start = box->start[k] > low ? box->start[k] : low;
    int64_t stop = box->start[k] + box->n[k];
    *from = start - low;
    *to = start - box->start[k];
    return (stop < high ? stop : high) - start;
}

void chunk_at(const Direct *self, const Box *box, int64_t task, int64_t *chunk) {
    for (int k = self->axes - 1; k >= 0; k--) {
        chunk[k] = box->first[k] + task % box->many[k];
        task /= box->many[k];
    }
}

/* `base` with the numbers behind it; its length, or -1 where that is too long. */
int64_t name_chunk(const Direct *self, const char *base, int64_t size, const int64_t *numbers, char *to) {
    if (size + 24 * self->axes >= LONGEST) return -1;
    memcpy(to, base, (size_t)size);
    for (int k = 0; k < self->axes; k++) {
        char digits[24];
        int n = digits_of(numbers[k], digits);
        if (k) to[size++] = self->separator;
        memcpy(to + size, digits, (size_t)n);
        size += n;
    }
    to[size] = 0;
    return size;
}
