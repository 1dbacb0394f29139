/* A call as the module has checked it, and as threads carry it out. The tasks are the product of
   groups of rows, as in indexing/plan.py: a row is a chunk along one axis or more, and what is wanted
   of it. */
#ifndef TENSORSTASH_BATCH_H
#define TENSORSTASH_BATCH_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>

#include "kernel.h"

#ifdef __APPLE__
#define MODIFIED(status) ((status).st_mtimespec)
#else
#define MODIFIED(status) ((status).st_mtim)
#endif

PyObject *patch(PyObject *module, PyObject *arguments);
PyObject *gather(PyObject *module, PyObject *arguments);
PyObject *reserves(PyObject *module, PyObject *descriptor);

#define ROW 7        /* count, in, in_step, out, out_step, in_list, out_list */
#define LONGEST 4096 /* of a path */
#define MOST_THREADS 256

typedef struct {
    int64_t rows, coords;
    int64_t axes[MOST_DIMS];
    const int64_t *at;    /* rows * coords: which chunk */
    const int64_t *what;  /* rows * ROW */
    const int64_t *lists; /* offsets that rows point into: of the input, then of the output */
    int64_t listed;
} Group;

/* Where the tasks of one run of rows are stored: a file each, all in one file (a shard), or in
   memory. */
typedef struct {
    const char *path;
    int64_t length;
    const int64_t *index;  /* of a shard: offset and size of each inner chunk; size -1: absent */
    int64_t entries, inode, modified, bytes;
    Py_buffer *values;     /* of memory; `buf` NULL: absent */
    int64_t held;
    int64_t low[MOST_DIMS], high[MOST_DIMS];
    int64_t before;        /* tasks of the jobs before it */
} Job;

typedef struct {
    Chain chain;
    Group groups[MOST_DIMS];
    int count, axes;
    Job *jobs;
    int64_t all;
    int64_t ratios[MOST_DIMS], strides[MOST_DIMS];  /* of inner chunks in a shard */
    char separator;
    uint8_t *out;
    const uint8_t *fill;
    int spans;
    uint8_t *status;
    int64_t first, tasks, grain;
    atomic_llong next, done, absent, bytes, nanoseconds;
    Py_buffer *views;
    int64_t viewed, viewable;
} Call;

void run_all(Call *call, int threads);

#endif
