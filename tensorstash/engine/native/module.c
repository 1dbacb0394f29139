/* The module: takes a call from Python, and checks that no task can reach beyond its buffers. */
#include "batch.h"

#include <stdlib.h>
#include <string.h>

#define VERSION 1 /* of what `run` takes: library.py has the same */

static int view(Call *call, PyObject *object, int flags, Py_buffer **found) {
    if (call->viewed == call->viewable) {
        PyErr_SetString(PyExc_ValueError, "more buffers than there is room for");
        return 0;
    }
    Py_buffer *one = &call->views[call->viewed];
    if (PyObject_GetBuffer(object, one, flags)) return 0;
    call->viewed++;
    *found = one;
    return 1;
}

static int wrong(const char *what) {
    PyErr_SetString(PyExc_ValueError, what);
    return 0;
}

static const int64_t *numbers(Call *call, PyObject *object, int64_t count, int64_t *found) {
    Py_buffer *buffer;
    if (!view(call, object, PyBUF_C_CONTIGUOUS, &buffer)) return NULL;
    if (buffer->itemsize != 8 || (uintptr_t)buffer->buf % 8 ||
        (count >= 0 && buffer->len != count * 8)) {
        wrong("an array of 64-bit integers of another size was expected");
        return NULL;
    }
    if (found) *found = (int64_t)(buffer->len / 8);
    return buffer->len ? buffer->buf : (const int64_t *)"\0\0\0\0\0\0\0";
}

static int integers(PyObject *tuple, int64_t *to, int64_t count) {
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
static int check_rows(Call *call, int64_t low_out, int64_t high_out) {
    int64_t in_low = 0, in_high = call->chain.itemsize, out_low = 0,
            out_high = call->chain.itemsize;
    for (int g = 0; g < call->count; g++) {
        const Group *group = &call->groups[g];
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
    if (in_low < 0 || in_high > call->chain.nbytes) return wrong("rows reach beyond a chunk");
    if (out_low < low_out || out_high > high_out) return wrong("rows reach beyond the output");
    return 1;
}

static int take_groups(Call *call, PyObject *groups) {
    Py_ssize_t count = PyTuple_Check(groups) ? PyTuple_Size(groups) : -1;
    if (count < 0 || count >= MOST_DIMS) return wrong("a tuple of fewer than 64 groups");
    call->count = (int)count;
    for (int k = 0; k < call->count; k++) {
        PyObject *axes, *at, *what, *lists;
        Group *group = &call->groups[k];
        if (!PyArg_ParseTuple(PyTuple_GetItem(groups, k), "OOOO", &axes, &at, &what, &lists)) return 0;
        Py_ssize_t coords = PyTuple_Check(axes) ? PyTuple_Size(axes) : -1;
        if (coords < 0 || coords > MOST_DIMS) return wrong("a tuple of axes");
        group->coords = coords;
        if (!integers(axes, group->axes, coords)) return 0;
        for (Py_ssize_t i = 0; i < coords; i++)
            if (group->axes[i] < 0 || group->axes[i] >= call->axes) return wrong("no such axis");
        group->what = numbers(call, what, -1, &group->rows);
        if (!group->what) return 0;
        if (group->rows % ROW) return wrong("rows of seven numbers");
        group->rows /= ROW;
        group->at = numbers(call, at, group->rows * coords, NULL);
        if (!group->at) return 0;
        if (lists != Py_None) {
            group->lists = numbers(call, lists, -1, &group->listed);
            if (!group->lists) return 0;
            if (group->listed % 2) return wrong("two lists of one size");
            group->listed /= 2;
        }
    }
    return 1;
}

static int take_values(Job *job, PyObject *values) {
    job->held = PyList_Size(values);
    if (job->held < 0) return 0;
    job->values = calloc((size_t)job->held + 1, sizeof *job->values);
    if (!job->values) {
        PyErr_NoMemory();
        return 0;
    }
    for (int64_t k = 0; k < job->held; k++) {
        PyObject *value = PyList_GetItem(values, (Py_ssize_t)k);
        if (value != Py_None && PyObject_GetBuffer(value, &job->values[k], PyBUF_SIMPLE)) {
            memset(&job->values[k], 0, sizeof job->values[k]);
            return 0;
        }
    }
    return 1;
}

/* A job is (path, index, tag, values, low, high): see `run` below. */
static int take_job(Call *call, Job *job, PyObject *given, int64_t *total) {
    PyObject *path, *index, *tag, *values, *low, *high;
    if (!PyArg_ParseTuple(given, "OOOOOO", &path, &index, &tag, &values, &low, &high)) return 0;
    char *text;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(path, &text, &length)) return 0;
    if (memchr(text, 0, (size_t)length) || length + 2 > LONGEST) return wrong("no path of a file");
    job->path = text;
    job->length = length;
    job->before = *total;
    if (!integers(low, job->low, call->count) || !integers(high, job->high, call->count)) return 0;
    int64_t tasks = 1;
    for (int k = 0; k < call->count; k++) {
        if (job->low[k] < 0 || job->high[k] < job->low[k] || job->high[k] > call->groups[k].rows)
            return wrong("a range of rows that are not there");
        if (__builtin_mul_overflow(tasks, job->high[k] - job->low[k], &tasks))
            return wrong("too many tasks");
    }
    if (__builtin_add_overflow(*total, tasks, total)) return wrong("too many tasks");
    if (values != Py_None && !take_values(job, values)) return 0;
    if (index == Py_None) return 1;
    if (job->values) {
        if (job->held != 1 || !job->values->buf) return wrong("a shard is one value");
        job->bytes = (int64_t)job->values->len;
        job->index = numbers(call, index, -1, &job->entries);
        job->entries /= 2;
        return job->index != NULL;
    }
    int64_t version[3];
    if (!integers(tag, version, 3)) return 0;
    job->inode = version[0];
    job->modified = version[1];
    job->bytes = version[2];
    job->index = numbers(call, index, -1, &job->entries);
    job->entries /= 2;
    return job->index != NULL;
}

static int take_chain(Chain *chain, PyObject *given) {
    PyObject *steps;
    long long nbytes, most, itemsize;
    if (!PyArg_ParseTuple(given, "OLLL", &steps, &nbytes, &most, &itemsize)) return 0;
    Py_ssize_t count = PyTuple_Check(steps) ? PyTuple_Size(steps) : -1;
    if (count < 0 || count > MOST_STEPS) return wrong("a tuple of at most 16 steps");
    if (itemsize < 1 || nbytes < itemsize || nbytes % itemsize || most < 0 ||
        nbytes > INT64_MAX / 8)
        return wrong("no size of a chunk");
    chain->nbytes = nbytes;
    chain->most = most;
    chain->itemsize = itemsize;
    chain->count = (int)count;
    int decoders = 0; /* they share a buffer */
    for (Py_ssize_t k = 0; k < count; k++) {
        int64_t step[2];
        if (!integers(PyTuple_GetItem(steps, k), step, 2)) return 0;
        if (step[0] < 0 || step[0] >= KINDS || step[1] < 0 || !resolved((int)step[0]))
            return wrong("no such step");
        if (step[0] == SWAP && (step[1] < 1 || itemsize % step[1])) return wrong("no such number");
        if (step[0] != SWAP && step[0] != CRC32C && decoders++) return wrong("more than one decoder");
        chain->steps[k] = (Step){(int)step[0], step[1]};
    }
    return 1;
}

static void drop(Call *call) {
    for (int64_t k = 0; call->jobs && k < call->all; k++) {
        Job *job = &call->jobs[k];
        for (int64_t i = 0; job->values && i < job->held; i++)
            if (job->values[i].obj) PyBuffer_Release(&job->values[i]);
        free(job->values);
    }
    for (int64_t k = 0; k < call->viewed; k++) PyBuffer_Release(&call->views[k]);
    free(call->views);
    free(call->jobs);
    free(call);
}

static PyObject *run(PyObject *module, PyObject *arguments) {
    PyObject *chain, *groups, *jobs, *out, *fill, *status, *ratios, *strides, *result = NULL;
    int separator, axes, spans, threads;
    long long first, grain;
    Py_buffer *buffer;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOO!OOOOOiiiiLL", &chain, &groups, &PyList_Type, &jobs, &out,
                          &fill, &status, &ratios, &strides, &axes, &separator, &spans, &threads,
                           &first, &grain))
        return NULL;
    if (axes < 0 || axes > MOST_DIMS || separator < 1 || separator > 127 || grain < 1 || first < 0) {
        wrong("no such call");
        return NULL;
    }
    Call *call = calloc(1, sizeof *call);
    if (!call) return PyErr_NoMemory();
    call->all = PyList_Size(jobs);
    call->jobs = calloc((size_t)call->all + 1, sizeof *call->jobs);
    call->viewable = call->all + 3 * MOST_DIMS + 3;
    call->views = calloc((size_t)call->viewable, sizeof *call->views);
    call->axes = axes;
    call->separator = (char)separator;
    call->spans = spans;
    call->first = first;
    call->grain = grain;
    if (!call->jobs || !call->views) {
        PyErr_NoMemory();
        goto end;
    }
    if (!take_chain(&call->chain, chain) || !take_groups(call, groups)) goto end;
    if (!integers(ratios, call->ratios, axes) || !integers(strides, call->strides, axes)) goto end;
    for (int k = 0; k < axes; k++)
        if (call->ratios[k] < 1 || call->strides[k] < 0 || call->strides[k] > INT64_MAX / 64 / call->ratios[k]) {
            wrong("no such shard");
            goto end;
        }
    int64_t total = 0;
    for (int64_t k = 0; k < call->all; k++)
        if (!take_job(call, &call->jobs[k], PyList_GetItem(jobs, (Py_ssize_t)k), &total)) goto end;
    if (fill != Py_None) {
        if (!view(call, fill, PyBUF_SIMPLE, &buffer)) goto end;
        if (buffer->len != call->chain.itemsize) {
            wrong("a fill value of another size");
            goto end;
        }
        call->fill = buffer->buf;
    }
    if (!view(call, status, PyBUF_WRITABLE, &buffer)) goto end;
    call->status = buffer->buf;
    call->tasks = (int64_t)buffer->len;
    if (call->first > total || call->tasks > total - call->first) {
        wrong("more tasks than there are");
        goto end;
    }
    if (!view(call, out, PyBUF_STRIDES | PyBUF_WRITABLE, &buffer)) goto end;
    int64_t low = 0, high = buffer->itemsize;
    for (int k = 0; k < buffer->ndim; k++) {
        int64_t far = (buffer->shape[k] - 1) * buffer->strides[k];
        if (buffer->shape[k] < 1) goto counted;
        if (far < 0) low += far;
        else high += far;
    }
    if (buffer->itemsize != call->chain.itemsize) {
        wrong("an output of another item size");
        goto end;
    }
    call->out = buffer->buf;
    if (!check_rows(call, low, high)) goto end;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (call->tasks) {
        Py_BEGIN_ALLOW_THREADS
        run_all(call, threads);
        Py_END_ALLOW_THREADS
    }
counted:
    result = Py_BuildValue("LLLL", (long long)call->done, (long long)call->absent,
                           (long long)call->bytes, (long long)call->nanoseconds);
end:
    drop(call);
    return result;
}

static PyObject *find(PyObject *module, PyObject *paths) {
    (void)module;
    for (Py_ssize_t k = 0; k < PyTuple_Size(paths); k++) {
        const char *path = PyBytes_AsString(PyTuple_GetItem(paths, k));
        if (!path) return NULL;
        resolve(path);
    }
    long long found = 0;
    for (int kind = 0; kind < KINDS; kind++)
        if (resolved(kind)) found |= 1ll << kind;
    return PyLong_FromLongLong(found);
}

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS,
     "run(chain, groups, jobs, out, fill, status, ratios, strides, axes, separator, spans,\n"
     "    threads, first, grain) -> (done, absent, bytes, nanoseconds)\n\n"
     "Carry out tasks `first` on, one an item of `status`, of the product of the groups."},
    {"patch", patch, METH_VARARGS,
     "patch(look, jobs) -> how many were done\n\n"
     "Write (file, at, data) within open files ((path, fd, inode, device, size, memory or None)), while each is at\n"
     "its path and has one link; up to the first of which that is not so, or that fails. -1: the\n"
     "file `look` (path, inode, modified, size) is another one, and nothing was done."},
    {"gather", gather, METH_VARARGS,
     "gather(chunks, first, rows, per, width, fill, out) -> whether all of `out` was filled\n\n"
     "Copy rows of `width` bytes, `per` in each of the chunks from the `first` on (None: absent, all\n"
     "`fill`, where that is not None either)."},
    {"reserves", reserves, METH_O, "reserves(fd): whether a map of a file there has room for sure."},
    {"find", find, METH_VARARGS, "find(*paths): look for decoders there; those known, as bits."},
    {NULL, NULL, 0, NULL},
};

static int add_version(PyObject *module) {
    return PyModule_AddIntConstant(module, "VERSION", VERSION);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_version},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernel", "Batches of reads, carried out without the interpreter.", 0,
    methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }
