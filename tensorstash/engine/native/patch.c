/* Rows of chunks that are plain memory. Bytes written within files that are open, each compared with
   what is at its path: a row of a few fields in one call, as Python's own calls for it take longer than
   the writes. And a few rows copied out of maps, as a plan for them takes longer than the copies. */
#include "batch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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

static int is_version(const char *path, unsigned long long inode, long long modified, long long size) {
    struct stat status;
    return !fstatat(AT_FDCWD, path, &status, AT_SYMLINK_NOFOLLOW) && S_ISREG(status.st_mode) &&
           (unsigned long long)status.st_ino == inode && (long long)status.st_size == size &&
           (long long)MODIFIED(status).tv_sec * 1000000000 + MODIFIED(status).tv_nsec == modified;
}

static int is_tuple(PyObject *item) {
    if (PyTuple_Check(item)) return 1;
    PyErr_SetString(PyExc_TypeError, "a tuple is needed");
    return 0;
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
    unsigned long long inode = 0;
    long long modified = 0, size = 0, done = 0;
    Py_ssize_t taken = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OO!", &look, &PyList_Type, &jobs)) return NULL;
    if (look != Py_None &&
        (!is_tuple(look) || !PyArg_ParseTuple(look, "yKLL", &document, &inode, &modified, &size)))
        return NULL;
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
    if (document && !is_version(document, inode, modified, size)) done = -1;
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

PyObject *gather(PyObject *module, PyObject *arguments) {
    PyObject *views, *numbers, *fill, *out;
    long long first, per, width;
    Py_buffer rows = {0}, filled = {0}, to = {0};
    int done = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!LOLLOO", &PyList_Type, &views, &first, &numbers, &per, &width,
                          &fill, &out))
        return NULL;
    Py_ssize_t count = PyList_Size(views), taken = 0;
    Py_buffer *chunks = calloc((size_t)count + 1, sizeof *chunks);
    if (!chunks) return PyErr_NoMemory();
    if (PyObject_GetBuffer(numbers, &rows, PyBUF_SIMPLE) ||
        (fill != Py_None && PyObject_GetBuffer(fill, &filled, PyBUF_SIMPLE)) ||
        PyObject_GetBuffer(out, &to, PyBUF_WRITABLE))
        goto end;
    if (per < 1 || width < 1 || per > INT64_MAX / width) goto wrong;
    for (; taken < count; taken++) {
        PyObject *view = PyList_GetItem(views, taken);
        if (view == Py_None) continue;
        if (PyObject_GetBuffer(view, &chunks[taken], PyBUF_SIMPLE)) goto end;
        if ((long long)chunks[taken].len != per * width) {
            taken++;
            goto end; /* another way says what is wrong */
        }
    }
    int64_t n = (int64_t)rows.len / 8;
    if (rows.len % 8 || n > INT64_MAX / width || (long long)to.len != n * width ||
        (filled.obj && (filled.len < 1 || width % filled.len)))
        goto wrong;
    Py_BEGIN_ALLOW_THREADS
    uint8_t *at = to.buf;
    int64_t i = 0;
    for (; i < n; i++, at += width) {
        int64_t row = ((const int64_t *)rows.buf)[i];
        int64_t number = row < 0 ? -1 : row / per - first;
        if (number < 0 || number >= count) break;
        const uint8_t *chunk = chunks[number].buf;
        if (chunk) memcpy(at, chunk + (row % per) * width, (size_t)width);
        else if (!filled.obj) break;
        else
            for (int64_t k = 0; k < width; k += filled.len) memcpy(at + k, filled.buf, (size_t)filled.len);
    }
    done = i == n;
    Py_END_ALLOW_THREADS
    goto end;
wrong:
    PyErr_SetString(PyExc_ValueError, "no such rows");
end:
    for (Py_ssize_t k = 0; k < taken; k++)
        if (chunks[k].obj) PyBuffer_Release(&chunks[k]);
    free(chunks);
    if (rows.obj) PyBuffer_Release(&rows);
    if (filled.obj) PyBuffer_Release(&filled);
    if (to.obj) PyBuffer_Release(&to);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(done);
}
