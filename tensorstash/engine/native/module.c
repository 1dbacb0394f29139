/* The module: takes a call from Python, and checks that no task can reach beyond its buffers. */
#include "batch.h"

#include <stdlib.h>
#include <string.h>

#define VERSION 9 /* of what the functions take: library.py has the same */

static void free_buffers(Py_buffer *buffers, int64_t count) {
    for (int64_t k = 0; buffers && k < count; k++)
        if (buffers[k].obj) PyBuffer_Release(&buffers[k]);
    free(buffers);
}

/* A buffer of each item of a list; of `None` none. */
static Py_buffer *buffers(PyObject *list, int flags, int64_t *count) {
    *count = PyList_Size(list);
    if (*count < 0) return NULL;
    Py_buffer *found = calloc((size_t)*count + 1, sizeof *found);
    if (!found) {
        PyErr_NoMemory();
        return NULL;
    }
    for (int64_t k = 0; k < *count; k++) {
        PyObject *item = PyList_GetItem(list, (Py_ssize_t)k);
        if (item != Py_None && PyObject_GetBuffer(item, &found[k], flags)) {
            memset(&found[k], 0, sizeof found[k]);
            free_buffers(found, k);
            return NULL;
        }
    }
    return found;
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
    if (!integers(low, job->low, call->tables.count) || !integers(high, job->high, call->tables.count)) return 0;
    int64_t tasks = 1;
    for (int k = 0; k < call->tables.count; k++) {
        if (job->low[k] < 0 || job->high[k] < job->low[k] || job->high[k] > call->tables.groups[k].rows)
            return wrong("a range of rows that are not there");
        if (__builtin_mul_overflow(tasks, job->high[k] - job->low[k], &tasks))
            return wrong("too many tasks");
    }
    if (__builtin_add_overflow(*total, tasks, total)) return wrong("too many tasks");
    if (values != Py_None) {
        job->values = buffers(values, PyBUF_SIMPLE, &job->held);
        if (!job->values) return 0;
    }
    if (index == Py_None) return 1;
    if (job->values) {
        if (job->held != 1 || !job->values->buf) return wrong("a shard is one value");
        job->bytes = (int64_t)job->values->len;
    } else {
        int64_t version[3];
        if (!integers(tag, version, 3)) return 0;
        job->inode = version[0];
        job->modified = version[1];
        job->bytes = version[2];
    }
    job->index = numbers(&call->views, index, -1, &job->entries);
    job->entries /= 2;
    return job->index != NULL;
}

static void drop(Call *call) {
    for (int64_t k = 0; call->jobs && k < call->all; k++)
        free_buffers(call->jobs[k].values, call->jobs[k].held);
    free_buffers(call->keeps, call->kept);
    release_tables(&call->tables);
    release_views(&call->views);
    free(call->jobs);
    free(call);
}

/* Tasks that are picked, and memory for their chunks: an item a task. */
static int take_picked(Call *call, PyObject *picked, PyObject *keeps, PyObject *versions,
                       int64_t total) {
    if (picked != Py_None) {
        call->picked = numbers(&call->views, picked, call->tasks, NULL);
        if (!call->picked) return 0;
        for (int64_t k = 0; k < call->tasks; k++) {
            if (call->picked[k] < 0 || call->picked[k] >= total) return wrong("a task that is not there");
            /* A thread goes from job to job as it goes from task to task. */
            if (call->all != 1 && k && call->picked[k] <= call->picked[k - 1])
                return wrong("tasks of several jobs are picked in order");
        }
        call->first = 0;
    }
    if (versions != Py_None) {
        Py_buffer *buffer;
        if (!view(&call->views, versions, PyBUF_WRITABLE, &buffer)) return 0;
        if (buffer->len != call->tasks * 24 || (uintptr_t)buffer->buf % 8)
            return wrong("three numbers a task");
        call->versions = buffer->buf;
    }
    if (keeps == Py_None) return 1;
    if (!PyList_Check(keeps)) return wrong("a list of buffers");
    call->keeps = buffers(keeps, PyBUF_WRITABLE, &call->kept);
    if (!call->keeps) return 0;
    if (call->kept != call->tasks) return wrong("a buffer a task");
    for (int64_t k = 0; k < call->kept; k++)
        if (call->keeps[k].obj && (int64_t)call->keeps[k].len != call->chain.nbytes)
            return wrong("memory of another size than a chunk");
    return 1;
}

static PyObject *run(PyObject *module, PyObject *arguments) {
    PyObject *chain, *groups, *jobs, *out, *fill, *status, *ratios, *strides, *picked, *keeps, *versions;
    PyObject *result = NULL;
    int separator, axes, spans, threads;
    long long first, grain;
    Py_buffer *buffer;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOO!OOOOOiiiiLLOOO", &chain, &groups, &PyList_Type, &jobs, &out,
                          &fill, &status, &ratios, &strides, &axes, &separator, &spans, &threads,
                          &first, &grain, &picked, &keeps, &versions))
        return NULL;
    if (axes < 0 || axes > MOST_DIMS || separator < 1 || separator > 127 || grain < 1 || first < 0) {
        wrong("no such call");
        return NULL;
    }
    Call *call = calloc(1, sizeof *call);
    if (!call) return PyErr_NoMemory();
    call->all = PyList_Size(jobs);
    call->jobs = calloc((size_t)call->all + 1, sizeof *call->jobs);
    call->axes = axes;
    call->separator = (char)separator;
    call->spans = spans;
    call->first = first;
    call->grain = grain;
    if (!call->jobs) {
        PyErr_NoMemory();
        goto end;
    }
    if (!make_views(&call->views, call->all + 3 * MOST_DIMS + 5)) goto end;
    if (!take_chain(&call->chain, chain, 0) || !take_groups(&call->tables, &call->views, groups, axes)) goto end;
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
        if (!view(&call->views, fill, PyBUF_SIMPLE, &buffer)) goto end;
        if (buffer->len != call->chain.itemsize) {
            wrong("a fill value of another size");
            goto end;
        }
        call->fill = buffer->buf;
    }
    if (!view(&call->views, status, PyBUF_WRITABLE, &buffer)) goto end;
    call->status = buffer->buf;
    call->tasks = (int64_t)buffer->len;
    if (!take_picked(call, picked, keeps, versions, total)) goto end;
    if (!call->picked && (call->first > total || call->tasks > total - call->first)) {
        wrong("more tasks than there are");
        goto end;
    }
    if (!view(&call->views, out, PyBUF_STRIDES | PyBUF_WRITABLE, &buffer)) goto end;
    int64_t low, high;
    if (!extent(buffer, &low, &high)) goto counted;
    if (buffer->itemsize != call->chain.itemsize) {
        wrong("an output of another item size");
        goto end;
    }
    call->out = buffer->buf;
    if (!check_rows(&call->tables, &call->chain, low, high)) goto end;
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

/* Every task lies in its tables, and what it makes in the buffer. */
static int check_tasks(const Encoding *call, int64_t size) {
    int64_t most = capacity(&call->chain);
    if (call->puts_files) {
        size = call->puts.count; /* a task says which folder is its own */
        most = most < 0 ? most : 1;
    }
    if (most < 0) return wrong("a chunk of more bytes than can be encoded");
    for (int64_t k = 0; k < call->count; k++) {
        const int64_t *task = call->tasks + k * (1 + call->tables.count);
        if (task[0] < 0 || task[0] > size - most) return wrong("a chunk goes beyond the buffer");
        for (int g = 0; g < call->tables.count; g++)
            if (task[1 + g] < 0 || task[1 + g] >= call->tables.groups[g].rows)
                return wrong("a row that is not there");
    }
    return 1;
}

static PyObject *encode(PyObject *module, PyObject *arguments) {
    PyObject *chain, *groups, *tasks, *source, *fill, *out, *sizes, *next, *puts;
    PyObject *result = NULL;
    int axes, keep;
    long long grain;
    Py_buffer *buffer;
    int64_t low, high, numbers_given;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOOOOOOiiLOO", &chain, &groups, &tasks, &source, &fill, &out,
                          &sizes, &axes, &keep, &grain, &next, &puts))
        return NULL;
    if (axes < 0 || axes > MOST_DIMS || grain < 1) {
        wrong("no such call");
        return NULL;
    }
    Encoding *call = calloc(1, sizeof *call);
    if (!call) return PyErr_NoMemory();
    call->keep = keep;
    call->grain = grain;
    if (!make_views(&call->views, 3 * MOST_DIMS + 6)) goto end;
    if (!take_chain(&call->chain, chain, 1)) goto end;
    if (!take_groups(&call->tables, &call->views, groups, axes)) goto end;
    call->tasks = numbers(&call->views, tasks, -1, &numbers_given);
    if (!call->tasks) goto end;
    call->count = numbers_given / (1 + call->tables.count);
    if (!view(&call->views, sizes, PyBUF_WRITABLE, &buffer)) goto end;
    if (numbers_given % (1 + call->tables.count) || buffer->len / 8 != call->count ||
        buffer->len % 8 || (uintptr_t)buffer->buf % 8) {
        wrong("a size for each task");
        goto end;
    }
    call->sizes = buffer->buf;
    if (!view(&call->views, fill, PyBUF_SIMPLE, &buffer)) goto end;
    if (buffer->len != call->chain.itemsize) {
        wrong("a fill value of another size");
        goto end;
    }
    call->fill = buffer->buf;
    if (!view(&call->views, out, PyBUF_WRITABLE, &buffer)) goto end;
    call->out = buffer->buf;
    int64_t room_given = (int64_t)buffer->len;
    if (!view(&call->views, next, PyBUF_WRITABLE, &buffer)) goto end;
    call->next = buffer->buf;
    if (buffer->len != 8 || (uintptr_t)buffer->buf % 8 || *(int64_t *)buffer->buf < 0) {
        wrong("no number of a task");
        goto end;
    }
    call->puts_files = puts != Py_None;
    if (call->puts_files && !take_puts(&call->puts, puts, call->count)) goto end;
    call->place = capacity(&call->chain);
    if (!check_tasks(call, room_given)) goto end;
    if (!view(&call->views, source, PyBUF_STRIDES, &buffer)) goto end;
    if (buffer->itemsize != call->chain.itemsize || !extent(buffer, &low, &high)) {
        wrong("an array of another item size, or of none");
        goto end;
    }
    call->source = buffer->buf;
    if (!check_rows(&call->tables, &call->chain, low, high)) goto end;
    if (call->count) {
        Py_BEGIN_ALLOW_THREADS
        encode_all(call);
        Py_END_ALLOW_THREADS
    }
    result = PyLong_FromLongLong((long long)call->done);
end:
    release_puts(&call->puts);
    release_tables(&call->tables);
    release_views(&call->views);
    free(call);
    return result;
}

static PyObject *capacity_of(PyObject *module, PyObject *chain) {
    Chain taken = {0};
    (void)module;
    if (!take_chain(&taken, chain, 1)) return NULL;
    return PyLong_FromLongLong((long long)capacity(&taken));
}

static PyObject *pack(PyObject *module, PyObject *arguments) {
    PyObject *out, *sizes;
    long long start, slot;
    int64_t count;
    Py_buffer *buffer;
    Py_buffer held[2];
    Views views = {held, 0, 2};
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOLL", &out, &sizes, &start, &slot)) return NULL;
    if (!view(&views, out, PyBUF_WRITABLE, &buffer)) return NULL;
    uint8_t *body = buffer->buf;
    int64_t most = (int64_t)buffer->len;
    const int64_t *each = numbers(&views, sizes, -1, &count);
    if (!each) goto end;
    if (start < 0 || start > most || slot < 1 || count > (most - start) / slot) {
        wrong("places beyond the buffer");
        goto end;
    }
    for (int64_t k = 0; k < count; k++)
        if (each[k] > slot) {
            wrong("a chunk of more than its place");
            goto end;
        }
    int64_t end = start;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t k = 0; k < count; k++) {
        if (each[k] <= 0) continue;
        if (end != start + k * slot) memmove(body + end, body + start + k * slot, (size_t)each[k]);
        end += each[k];
    }
    Py_END_ALLOW_THREADS
    result = PyLong_FromLongLong((long long)end);
end:
    for (int64_t k = 0; k < views.count; k++) PyBuffer_Release(&held[k]);
    return result;
}

static PyObject *find_encoder(PyObject *module, PyObject *arguments) {
    int which;
    const char *path, *version;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "iyz", &which, &path, &version)) return NULL;
    const char *found = resolve_encoder(which, path, version);
    if (!found) Py_RETURN_NONE;
    return PyUnicode_FromString(found);
}

/* Shards' indices from their files. What is odd in any way is left to Python. */
static PyObject *indices(PyObject *module, PyObject *arguments) {
    PyObject *paths, *out, *versions, *status, *result = NULL;
    long long count, limit;
    int checksum, end;
    Py_buffer numbers = {0}, tags = {0}, found = {0};
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!LLiiOOO", &PyList_Type, &paths, &count, &limit, &checksum,
                          &end, &out, &versions, &status))
        return NULL;
    Py_ssize_t all = PyList_Size(paths);
    const char **names = calloc((size_t)all + 1, sizeof *names);
    if (!names) return PyErr_NoMemory();
    for (Py_ssize_t k = 0; k < all; k++) {
        names[k] = PyBytes_AsString(PyList_GetItem(paths, k));
        if (!names[k]) goto end;
    }
    if (PyObject_GetBuffer(out, &numbers, PyBUF_WRITABLE) ||
        PyObject_GetBuffer(versions, &tags, PyBUF_WRITABLE) ||
        PyObject_GetBuffer(status, &found, PyBUF_WRITABLE))
        goto end;
    if (count < 1 || count > INT64_MAX / 32 / (all + 1) || numbers.len != all * count * 16 ||
        tags.len != all * 24 || found.len != all || (uintptr_t)numbers.buf % 8 ||
        (uintptr_t)tags.buf % 8) {
        wrong("buffers of another size");
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    read_indices(names, all, count, limit, checksum, end, numbers.buf, tags.buf, found.buf);
    Py_END_ALLOW_THREADS
    Py_INCREF(Py_None);
    result = Py_None;
end:
    if (found.obj) PyBuffer_Release(&found);
    if (tags.obj) PyBuffer_Release(&tags);
    if (numbers.obj) PyBuffer_Release(&numbers);
    free(names);
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

static PyObject *keep(PyObject *module, PyObject *size) {
    (void)module;
    long long most = PyLong_AsLongLong(size);
    if (most == -1 && PyErr_Occurred()) return NULL;
    keep_at_most(most);
    Py_RETURN_NONE;
}

static PyObject *processors(PyObject *module, PyObject *number) {
    (void)module;
    long most = PyLong_AsLong(number);
    if (most == -1 && PyErr_Occurred()) return NULL;
    threads_at_most(most < 1 ? 1 : most > 1 << 20 ? 1 << 20 : (int)most);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS,
     "run(chain, groups, jobs, out, fill, status, ratios, strides, axes, separator, spans,\n"
     "    threads, first, grain, picked, keeps, versions) -> (done, absent, bytes, nanoseconds)\n\n"
     "Carry out tasks `first` on, or those `picked`, one an item of `status`, of the product of\n"
     "the groups; `keeps`: memory for the whole chunk of each; `versions`: of the file of each, set."},
    {"encode", encode, METH_VARARGS,
     "encode(chain, groups, tasks, source, fill, out, sizes, axes, keep, grain, next, puts) -> done\n\n"
     "Encode a chunk a task, from the one that `next` (8 bytes) says on; calls at once may share the\n"
     "tasks by it. A task is which is where in `out` it goes and a row of each group. `sizes`\n"
     "become those of what is stored; -1: all of it is fill; -2: Python is to look. With `puts`,\n"
     "(folders, names, writer, stamp, nanoseconds), each becomes the file of that name in the folder\n"
     "that the task tells in place of where it goes; after so long no more are begun."},
    {"capacity", capacity_of, METH_O, "capacity(chain): bytes that a place in `out` must have."},
    {"pack", pack, METH_VARARGS,
     "pack(out, sizes, start, slot): move what lies `slot` apart together; where it ends."},
    {"encoder", find_encoder, METH_VARARGS,
     "encoder(which, path, version): look for an encoder there; its version, or None."},
    {"indices", indices, METH_VARARGS,
     "indices(paths, count, limit, checksum, end, out, versions, status)\n\n"
     "Read the index of each shard, with the file's version; `status` says what became of each."},
    {"keep", keep, METH_O, "keep(size): bytes of scratch that a thread keeps, at most."},
    {"processors", processors, METH_O,
     "processors(number): of this process. All calls together have that many threads, or one each."},
    {"tally", tally, METH_NOARGS,
     "tally() -> tasks of `Direct`s by kind, those of no kind, and all."},
    {"patch", patch, METH_VARARGS,
     "patch(look, jobs) -> how many were done\n\n"
     "Write (file, at, data) within open files ((path, fd, inode, device, size, memory or None)), while each is at\n"
     "its path and has one link; up to the first of which that is not so, or that fails. -1: the\n"
     "file `look` (path, inode, modified, size) is another one, and nothing was done."},
    {"gather", gather, METH_VARARGS,
     "gather(look, fields, rows, count) -> whether it was done, or what is not as it is known\n\n"
     "Copy the rows of these numbers, of `count`, out of each field (chunks, per, width, fill, out): of\n"
     "`width` bytes, `per` in a chunk, which is in `chunks` by its number: (path, fd, inode, device,\n"
     "size, memory), or the path where no file is, all `fill`, unless that is None. A list of (field,\n"
     "chunk): these are none or others by now, and nothing was done. False: rows are out of range or\n"
     "far apart, or the file `look` (path, inode, modified, size) is another one."},
    {"reserves", reserves, METH_O, "reserves(fd): whether a map of a file there has room for sure."},
    {"find", find, METH_VARARGS, "find(*paths): look for decoders there; those known, as bits."},
    {NULL, NULL, 0, NULL},
};

static int add_names(PyObject *module) {
    watch_forks();
    return PyModule_AddIntConstant(module, "VERSION", VERSION) || add_direct(module) ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_names},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernel", "Batches of reads and writes, carried out without the interpreter.", 0,
    methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }
