/* What the ways to read a small box share: which process this is and what it did, versions, entries of
   caches, and where a box goes. */
#include "direct.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

/* -- processes -------------------------------------------------------------------------- */

static _Atomic long long process; /* this one; a forked child is another */
static _Atomic long long tallied[KINDS + 2]; /* tasks by kind, then raw ones, then all */

static void forked(void) {
    atomic_store(&process, (long long)getpid());
    forget_threads();
}

void watch_forks(void) {
    static int watched;
    atomic_store(&process, (long long)getpid());
    if (!watched) watched = !pthread_atfork(NULL, NULL, forked);
}

void note_done(const Direct *self, int64_t chunks, int64_t bytes, int64_t nanoseconds, int64_t hits) {
    int64_t *counts = self->counts.buf;
    int64_t now = atomic_load(&process);
    if (counts[0] != now) { /* those of the parent */
        memset(counts, 0, COUNTS * sizeof *counts);
        counts[0] = now;
    }
    if (chunks) {
        __atomic_fetch_add(counts + 1, chunks, __ATOMIC_RELAXED);
        __atomic_fetch_add(counts + 2, bytes, __ATOMIC_RELAXED);
        __atomic_fetch_add(counts + 3, nanoseconds, __ATOMIC_RELAXED);
        int64_t kinds = 0;
        for (int k = 0; k < self->chain.count; k++) kinds |= 1ll << self->chain.steps[k].kind;
        if (!kinds) kinds = 1ll << KINDS;
        for (int k = 0; k <= KINDS; k++)
            if (kinds >> k & 1) atomic_fetch_add(&tallied[k], chunks);
        atomic_fetch_add(&tallied[KINDS + 1], chunks);
    }
    if (hits) __atomic_fetch_add(counts + 4, hits, __ATOMIC_RELAXED);
}

PyObject *tally(PyObject *module, PyObject *nothing) {
    (void)module;
    (void)nothing;
    PyObject *found = PyTuple_New(KINDS + 2);
    for (int k = 0; found && k < KINDS + 2; k++) {
        PyObject *one = PyLong_FromLongLong(atomic_load(&tallied[k]));
        if (!one || PyTuple_SetItem(found, k, one)) {
            Py_DECREF(found);
            return NULL;
        }
    }
    return found;
}

/* -- versions --------------------------------------------------------------------------- */

/* The tag of a file's version; whether it is one. */
int tag_version(PyObject *tag, int64_t *version) {
    if (integers(tag, version, 3)) return 1;
    PyErr_Clear();
    return 0;
}

/* Whether what is stored at `key` is of version `tag`: 1, 0, or -1 where asking failed. */
int same_version(const Direct *self, PyObject *key, PyObject *tag) {
    PyObject *found = PyObject_CallFunctionObjArgs(self->tag_of, key, NULL);
    if (!found) return -1;
    int same = PyObject_RichCompareBool(found, tag, Py_EQ);
    Py_DECREF(found);
    return same;
}

/* What a cache has for `key`, now used last; NULL: nothing, or with an error set. */
PyObject *entry_of(const Direct *self, PyObject *entries, PyObject *key) {
    PyObject *found = PyObject_GetItem(entries, key);
    PyObject *moved = found ? PyObject_CallMethodObjArgs(entries, self->move, key, NULL) : NULL;
    if (!moved && PyErr_ExceptionMatches(PyExc_KeyError)) PyErr_Clear(); /* it may go meanwhile */
    Py_XDECREF(moved);
    if (found && !PyErr_Occurred() && PyTuple_Check(found) && PyTuple_Size(found) == 3) return found;
    Py_XDECREF(found);
    return NULL;
}

PyObject *entries_of(Direct *self, PyObject *cache) {
    long long now = atomic_load(&process);
    if (self->process != now) { /* of a forked child each cache is empty */
        PyObject *caches[] = {self->cache, self->indices};
        for (int k = 0; k < 2; k++) {
            PyObject *done = caches[k] == Py_None ? NULL : PyObject_CallMethod(caches[k], "here", NULL);
            if (!done && PyErr_Occurred()) return NULL;
            Py_XDECREF(done);
        }
        self->process = now;
    }
    return PyObject_GetAttrString(cache, "entries");
}

PyObject *make_output(const Direct *self, const Box *box, Py_buffer *buffer) {
    PyObject *shape = PyTuple_New(box->dims), *out = NULL;
    for (int k = 0, dim = 0; shape && k < self->axes; k++) {
        PyObject *n = box->point[k] ? NULL : PyLong_FromLongLong(box->n[k]);
        if (!box->point[k] && (!n || PyTuple_SetItem(shape, dim++, n))) goto end;
    }
    if (shape) out = PyObject_CallFunctionObjArgs(self->empty, shape, self->dtype, NULL);
    if (out && (PyObject_GetBuffer(out, buffer, PyBUF_WRITABLE) || buffer->len != box->bytes)) {
        if (buffer->obj) PyBuffer_Release(buffer);
        Py_CLEAR(out);
    }
end:
    Py_XDECREF(shape);
    return out;
}

/* NumPy's scalar of an array of no dimensions, which goes. */
PyObject *scalar_of(PyObject *array) {
    PyObject *none = PyTuple_New(0), *scalar = none ? PyObject_GetItem(array, none) : NULL;
    Py_XDECREF(none);
    Py_DECREF(array);
    return scalar;
}
