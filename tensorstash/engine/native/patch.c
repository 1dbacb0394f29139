/* Rows of chunks that are plain memory. Bytes written within files that are open, each compared with
   what is at its path: a row of a few fields in one call, as Python's own calls for it take longer than
   the writes. And a few rows copied out of maps, as a plan for them takes longer than the copies. */
#include "batch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/vfs.h>
#endif
#include <unistd.h>

#define MOST_PATCHES 4096

typedef struct {
    const char *path;
    int fd;
    unsigned long long inode, device;
    long long size, at;
    Py_buffer data, memory; /* `memory.buf` NULL: by pwrite */
} Patch;

static int is_there(const Patch *patch) {
    struct stat status;
    return !fstatat(AT_FDCWD, patch->path, &status, AT_SYMLINK_NOFOLLOW) &&
           S_ISREG(status.st_mode) && (unsigned long long)status.st_ino == patch->inode &&
           (unsigned long long)status.st_dev == patch->device && (long long)status.st_size == patch->size &&
           status.st_nlink == 1;
}

/* Whether all of it is in the file that was at the path when this ended. */
static int written(const Patch *patch) {
    const char *from = patch->data.buf;
    long long left = (long long)patch->data.len, at = patch->at;
    if (at < 0 || left > patch->size || at > patch->size - left || !is_there(patch)) return 0;
    if (patch->memory.buf) {
        memcpy((char *)patch->memory.buf + at, from, (size_t)left);
        left = 0;
    }
    struct stat own;
    if (left > 0 && (fstat(patch->fd, &own) || (unsigned long long)own.st_ino != patch->inode ||
                     (unsigned long long)own.st_dev != patch->device))
        return 0; /* closed meanwhile, and another file's by now */
    while (left > 0) {
        ssize_t more = pwrite(patch->fd, from, (size_t)left, (off_t)at);
        if (more < 0 && errno == EINTR) continue;
        if (more <= 0) return 0;
        from += more;
        at += more;
        left -= more;
    }
    struct stat status;
    return !fstat(patch->fd, &status) && status.st_nlink > 0;
}

static int is_tuple(PyObject *item) {
    if (PyTuple_Check(item)) return 1;
    PyErr_SetString(PyExc_TypeError, "a tuple is needed");
    return 0;
}

/* The document, as (path, inode, modified, size), or None; 0: an error is set. */
static int take_look(PyObject *look, const char **path, int64_t *version) {
    unsigned long long inode;
    long long modified, size;
    if (look == Py_None) return 1;
    if (!is_tuple(look) || !PyArg_ParseTuple(look, "yKLL", path, &inode, &modified, &size)) return 0;
    version[0] = (int64_t)inode;
    version[1] = modified;
    version[2] = size;
    return 1;
}

/* Whether the file system keeps room for a file that it has reserved, so that a store to a map of it
   fails no more than memory does: ext2 to 4, XFS, tmpfs. Others may find no room at any store. */
PyObject *reserves(PyObject *module, PyObject *descriptor) {
    (void)module;
    long fd = PyLong_AsLong(descriptor);
    if (fd == -1 && PyErr_Occurred()) return NULL;
#ifdef __linux__
    struct statfs status;
    if (!fstatfs((int)fd, &status)) {
        unsigned long kind = (unsigned long)status.f_type & 0xffffffff;
        return PyBool_FromLong(kind == 0xef53 || kind == 0x58465342 || kind == 0x01021994);
    }
#endif
    return PyBool_FromLong(0);
}

PyObject *patch(PyObject *module, PyObject *arguments) {
    PyObject *look, *jobs, *result = NULL;
    const char *document = NULL;
    int64_t version[3];
    long long done = 0;
    Py_ssize_t taken = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OO!", &look, &PyList_Type, &jobs)) return NULL;
    if (!take_look(look, &document, version)) return NULL;
    Py_ssize_t count = PyList_Size(jobs);
    if (count > MOST_PATCHES) {
        PyErr_SetString(PyExc_ValueError, "too many patches");
        return NULL;
    }
    Patch *patches = calloc((size_t)count + 1, sizeof *patches);
    if (!patches) return PyErr_NoMemory();
    for (; taken < count; taken++) {
        Patch *one = &patches[taken];
        PyObject *file, *data, *memory;
        PyObject *job = PyList_GetItem(jobs, taken);
        if (!is_tuple(job) || !PyArg_ParseTuple(job, "OLO", &file, &one->at, &data)) goto end;
        if (!is_tuple(file) || !PyArg_ParseTuple(file, "yiKKLO", &one->path, &one->fd, &one->inode,
                                                 &one->device, &one->size, &memory))
            goto end;
        if (PyObject_GetBuffer(data, &one->data, PyBUF_SIMPLE)) goto end;
        if (memory == Py_None) continue;
        if (PyObject_GetBuffer(memory, &one->memory, PyBUF_WRITABLE) ||
            (long long)one->memory.len != one->size) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "memory of another size");
            taken++;
            goto end;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    if (document && !is_at(document, version)) done = -1;
    else
        while (done < count && written(&patches[done])) done++;
    Py_END_ALLOW_THREADS
    result = PyLong_FromLongLong(done);
end:
    for (Py_ssize_t k = 0; k < taken; k++) {
        PyBuffer_Release(&patches[k].data);
        if (patches[k].memory.obj) PyBuffer_Release(&patches[k].memory);
    }
    free(patches);
    return result;
}

#define MOST_CHUNKS 64
#define MOST_FIELDS 4096

/* A chunk as it is known: a file that is mapped, or, without memory, that there is none. */
typedef struct {
    PyObject *known; /* NULL: no row lies in it */
    const char *path;
    unsigned long long inode, device;
    long long size;
    Py_buffer memory;
    int moved; /* it is another one by now, or was never known */
} Chunk;

typedef struct {
    PyObject *chunks; /* a dict by number, of the caller's tuple */
    long long per, width, first;
    Py_buffer fill, out;
    unsigned char wanted[MOST_CHUNKS];
    Chunk known[MOST_CHUNKS];
} Field;

/* Rows as the caller has them, who may change them meanwhile, counted from the start; which are the
   first and the last. */
static int ranged(int64_t *rows, const void *given, int64_t n, int64_t count, int64_t *low, int64_t *high) {
    *low = INT64_MAX, *high = -1;
    memcpy(rows, given, (size_t)n * sizeof *rows); /* of any alignment */
    for (int64_t i = 0; i < n; i++) {
        int64_t row = rows[i];
        if (row < 0) row += count;
        if (row < *low) *low = row;
        if (row > *high) *high = row;
        rows[i] = row;
    }
    return n > 0 && *low >= 0 && *high < count;
}

static int is_moved(const Chunk *chunk) {
    struct stat status;
    if (fstatat(AT_FDCWD, chunk->path, &status, AT_SYMLINK_NOFOLLOW))
        return chunk->memory.obj || errno != ENOENT;
    return !chunk->memory.obj || !S_ISREG(status.st_mode) ||
           (unsigned long long)status.st_ino != chunk->inode ||
           (unsigned long long)status.st_dev != chunk->device || (long long)status.st_size != chunk->size;
}

static void copy_rows(const Field *field, const int64_t *rows, int64_t n) {
    uint8_t *to = field->out.buf;
    size_t width = (size_t)field->width;
    for (int64_t i = 0; i < n; i++, to += width) {
        int64_t row = rows[i], number = row / field->per;
        const uint8_t *from = field->known[number - field->first].memory.buf;
        if (from) memcpy(to, from + (row - number * field->per) * field->width, width);
        else
            for (size_t k = 0; k < width; k += (size_t)field->fill.len)
                memcpy(to + k, field->fill.buf, (size_t)field->fill.len);
    }
}

/* What is known of a chunk; 0: another way is to be taken, or an error is set. */
static int take_chunk(Field *field, int k) {
    Chunk *chunk = &field->known[k];
    PyObject *number = PyLong_FromLongLong(field->first + k), *memory;
    int fd;
    if (!number) return 0;
    chunk->known = PyObject_GetItem(field->chunks, number);
    Py_DECREF(number);
    if (!chunk->known) {
        if (!PyErr_ExceptionMatches(PyExc_KeyError)) return 0;
        PyErr_Clear();
        chunk->moved = 1;
        return 1;
    }
    if (PyBytes_Check(chunk->known)) {
        chunk->path = PyBytes_AsString(chunk->known);
        return chunk->path && field->fill.obj;
    }
    return is_tuple(chunk->known) &&
           PyArg_ParseTuple(chunk->known, "yiKKLO", &chunk->path, &fd, &chunk->inode, &chunk->device,
                            &chunk->size, &memory) &&
           !PyObject_GetBuffer(memory, &chunk->memory, PyBUF_SIMPLE) &&
           (long long)chunk->memory.len == chunk->size && chunk->size == field->per * field->width;
}

static int take_field(Field *field, PyObject *given, int64_t n) {
    PyObject *fill, *out;
    if (!is_tuple(given) || !PyArg_ParseTuple(given, "O!LLOO", &PyDict_Type, &field->chunks, &field->per,
                                              &field->width, &fill, &out))
        return 0;
    if ((fill != Py_None && PyObject_GetBuffer(fill, &field->fill, PyBUF_SIMPLE)) ||
        PyObject_GetBuffer(out, &field->out, PyBUF_WRITABLE))
        return 0;
    if (field->per < 1 || field->width < 1 || field->per > INT64_MAX / field->width ||
        n > INT64_MAX / field->width || (long long)field->out.len != n * field->width ||
        (field->fill.obj && (field->fill.len < 1 || field->width % field->fill.len))) {
        PyErr_SetString(PyExc_ValueError, "no such rows");
        return 0;
    }
    return 1;
}

static void release_field(Field *field) {
    for (int k = 0; k < MOST_CHUNKS; k++) {
        if (field->known[k].memory.obj) PyBuffer_Release(&field->known[k].memory);
        Py_XDECREF(field->known[k].known);
    }
    if (field->fill.obj) PyBuffer_Release(&field->fill);
    if (field->out.obj) PyBuffer_Release(&field->out);
}

PyObject *gather(PyObject *module, PyObject *arguments) {
    PyObject *look, *given, *numbers, *result = NULL;
    const char *document = NULL;
    long long count;
    int64_t version[3], low = 0, high = 0, *rows = NULL;
    Py_buffer asked = {0};
    Py_ssize_t taken = 0;
    int near = 1, moved = 0, same = 1;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OO!OL", &look, &PyList_Type, &given, &numbers, &count)) return NULL;
    if (!take_look(look, &document, version)) return NULL;
    Py_ssize_t many = PyList_Size(given);
    if (many > MOST_FIELDS) {
        PyErr_SetString(PyExc_ValueError, "too many fields");
        return NULL;
    }
    Field *fields = calloc((size_t)many + 1, sizeof *fields);
    if (!fields) return PyErr_NoMemory();
    if (PyObject_GetBuffer(numbers, &asked, PyBUF_SIMPLE)) goto end;
    int64_t n = (int64_t)asked.len / 8;
    if (asked.len % 8) {
        PyErr_SetString(PyExc_ValueError, "no such rows");
        goto end;
    }
    if (!(rows = malloc((size_t)asked.len + 1))) {
        PyErr_NoMemory();
        goto end;
    }
    for (; taken < many; taken++) {
        PyObject *one = PyList_GetItem(given, taken);
        if (!one || !take_field(&fields[taken], one, n)) {
            if (one) taken++;
            goto end;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    near = ranged(rows, asked.buf, n, count, &low, &high);
    for (Py_ssize_t f = 0; near && f < many; f++) {
        Field *field = &fields[f];
        field->first = low / field->per;
        near = high / field->per - field->first < MOST_CHUNKS;
        for (int64_t i = 0; near && i < n; i++) field->wanted[rows[i] / field->per - field->first] = 1;
    }
    Py_END_ALLOW_THREADS
    for (Py_ssize_t f = 0; near && f < many; f++)
        for (int k = 0; near && k < MOST_CHUNKS; k++)
            if (fields[f].wanted[k]) near = take_chunk(&fields[f], k);
    if (PyErr_Occurred()) goto end;
    if (near) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t f = 0; f < many; f++)
            for (int k = 0; k < MOST_CHUNKS; k++) {
                Chunk *chunk = &fields[f].known[k];
                if (chunk->known) chunk->moved = is_moved(chunk);
                moved += chunk->moved;
            }
        for (Py_ssize_t f = 0; !moved && f < many; f++) copy_rows(&fields[f], rows, n);
        if (!moved && document) same = is_at(document, version);
        Py_END_ALLOW_THREADS
    }
    if (!near || !same) result = PyBool_FromLong(0);
    else if (!moved) result = PyBool_FromLong(1);
    else if ((result = PyList_New(0)))
        for (Py_ssize_t f = 0; f < many; f++)
            for (int k = 0; k < MOST_CHUNKS; k++) {
                if (!fields[f].known[k].moved) continue;
                PyObject *pair = Py_BuildValue("(nL)", f, fields[f].first + k);
                if (!pair || PyList_Append(result, pair)) Py_CLEAR(result);
                Py_XDECREF(pair);
                if (!result) goto end;
            }
end:
    for (Py_ssize_t f = 0; f < taken; f++) release_field(&fields[f]);
    free(fields);
    free(rows);
    if (asked.obj) PyBuffer_Release(&asked);
    return result;
}
