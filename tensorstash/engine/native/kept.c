/* A small box whose chunks are all kept decoded: copied from there, while they are the stored ones. */
#include "direct.h"

#include <string.h>

typedef struct {
    PyObject *entry;
    Py_buffer chunk;
    int64_t version[3];
} Kept;

/* The element itself, as NumPy makes it. */
static PyObject *element_of(const Direct *self, const Box *box, PyObject *values) {
    PyObject *where = PyTuple_New(self->axes), *found = NULL;
    for (int k = 0; where && k < self->axes; k++) {
        PyObject *at = PyLong_FromLongLong(box->start[k] % self->edges[k]);
        if (!at || PyTuple_SetItem(where, k, at)) goto end;
    }
    if (where) found = PyObject_GetItem(values, where);
end:
    Py_XDECREF(where);
    return found;
}

static void place(const Direct *self, const Box *box, const int64_t *chunk, const Py_buffer *values,
                  uint8_t *to) {
    Dim dims[MOST_AXES];
    int64_t in = 0, out = 0;
    size_t item = (size_t)self->chain.itemsize;
    for (int k = 0; k < self->axes; k++) {
        int64_t from, where, n = cut_box(self, box, k, chunk[k], &from, &where);
        dims[k] = (Dim){n, values->strides[k], box->out[k], NULL, NULL};
        in += from * values->strides[k];
        out += where * box->out[k];
    }
    int count = arrange(dims, self->axes, &in, &out, &item);
    copy((const uint8_t *)values->buf + in, to + out, dims, count, item);
}

static int is_whole(const Direct *self, const Py_buffer *chunk) {
    if (chunk->ndim != self->axes || chunk->itemsize != self->chain.itemsize) return 0;
    for (int k = 0; k < self->axes; k++)
        if (chunk->shape[k] != self->edges[k]) return 0;
    return 1;
}

/* Where chunk `at` is stored: itself, or its shard. */
static void stored_at(const Direct *self, const int64_t *chunk, int64_t *at) {
    for (int k = 0; k < self->axes; k++) at[k] = chunk[k] / self->ratios[k];
}

/* By what a chunk is kept: the key of its object; of an inner chunk also its place in the shard. */
static PyObject *key_of(const Direct *self, const int64_t *chunk, PyObject *stored) {
    if (!self->sharded) {
        Py_INCREF(stored);
        return stored;
    }
    PyObject *place = PyTuple_New(self->axes), *found = NULL;
    for (int k = 0; place && k < self->axes; k++) {
        PyObject *at = PyLong_FromLongLong(chunk[k] % self->ratios[k]);
        if (!at || PyTuple_SetItem(place, k, at)) goto end;
    }
    if (place) found = PyTuple_Pack(2, stored, place);
end:
    Py_XDECREF(place);
    return found;
}

/* The chunk's entry, and its memory unless an `element` is wanted; 0: Python is to look. */
static int take_kept(Direct *self, PyObject *entries, const int64_t *chunk, int element, int stat, Kept *one) {
    char name[LONGEST];
    int64_t at[MOST_AXES];
    stored_at(self, chunk, at);
    int64_t size = name_chunk(self, self->prefix_at, self->prefix_size, at, name);
    PyObject *stored = size < 0 ? NULL : PyUnicode_FromStringAndSize(name, (Py_ssize_t)size);
    PyObject *key = stored ? key_of(self, chunk, stored) : NULL;
    int good = 0;
    if (key && (one->entry = entry_of(self, entries, key))) {
        PyObject *tag = PyTuple_GetItem(one->entry, 0), *values = PyTuple_GetItem(one->entry, 1);
        PyObject *dtype = PyObject_GetAttrString(values, "dtype");
        good = dtype && (dtype == self->dtype || PyObject_RichCompareBool(dtype, self->dtype, Py_EQ) > 0);
        Py_XDECREF(dtype);
        if (good && !self->immutable)
            good = stat ? tag_version(tag, one->version) : same_version(self, stored, tag) > 0;
        if (good && !element)
            good = !PyObject_GetBuffer(values, &one->chunk, PyBUF_STRIDES) && is_whole(self, &one->chunk);
    }
    Py_XDECREF(key);
    Py_XDECREF(stored);
    return good;
}

PyObject *read_kept(Direct *self, const Box *box, PyObject *tag) {
    Kept kept[MOST_TASKS];
    Py_buffer to = {0};
    PyObject *result = NULL, *entries = entries_of(self, self->cache);
    int64_t taken = 0, chunk[MOST_AXES], document[3];
    int single = !box->dims && self->scalars, stat = self->files_at != NULL, good = entries != NULL;
    int look = tag != Py_None && stat;
    if (good && look) good = tag_version(tag, document);
    while (good && taken < box->tasks) {
        Kept *one = &kept[taken];
        one->entry = NULL;
        one->chunk.obj = NULL;
        chunk_at(self, box, taken++, chunk);
        good = take_kept(self, entries, chunk, single, stat, one);
    }
    if (good && !single) good = (result = make_output(self, box, &to)) != NULL;
    if (good && (look || (stat && !self->immutable) || box->bytes >= ALONE)) {
        Py_BEGIN_ALLOW_THREADS
        char path[LONGEST];
        int64_t at[MOST_AXES], before[MOST_AXES], *version = NULL;
        for (int64_t task = 0; good && task < taken; task++) {
            chunk_at(self, box, task, chunk);
            stored_at(self, chunk, at);
            size_t size = sizeof *at * (size_t)self->axes;
            if (stat && !self->immutable &&
                (!version || memcmp(at, before, size) || memcmp(version, kept[task].version, sizeof kept->version)))
                good = name_chunk(self, self->files_at, self->files_size, at, path) >= 0 &&
                       is_at(path, kept[task].version); /* once for the chunks of a shard */
            version = kept[task].version;
            memcpy(before, at, size);
            if (good && !single) place(self, box, chunk, &kept[task].chunk, to.buf);
        }
        if (good && look) good = is_at(self->document_at, document);
        Py_END_ALLOW_THREADS
    } else if (good && !single) {
        for (int64_t task = 0; task < taken; task++) {
            chunk_at(self, box, task, chunk);
            place(self, box, chunk, &kept[task].chunk, to.buf);
        }
    }
    if (good && tag != Py_None && !stat) good = same_version(self, self->key, tag) > 0;
    if (good && single) good = (result = element_of(self, box, PyTuple_GetItem(kept[0].entry, 1))) != NULL;
    for (int64_t k = 0; k < taken; k++) {
        if (kept[k].entry && kept[k].chunk.obj) PyBuffer_Release(&kept[k].chunk);
        Py_XDECREF(kept[k].entry);
    }
    if (to.obj) PyBuffer_Release(&to);
    Py_XDECREF(entries);
    if (good) note_done(self, 0, 0, 0, taken);
    else Py_CLEAR(result);
    return result && !box->dims && !single ? scalar_of(result) : result;
}
