/* What reads small boxes of one array, and the box that is wanted of it. */
#ifndef TENSORSTASH_DIRECT_H
#define TENSORSTASH_DIRECT_H

#include "batch.h"

#define MOST_TASKS 64      /* chunks of one call */
#define MOST_JOBS 8        /* shards of one call */
#define MOST_AXES 16
#define ALONE 65536        /* bytes from which they are copied without the interpreter's lock */
#define PACE 4             /* bytes that are decoded in a nanosecond, about; as in batch.py */
#define COUNTS 5           /* which process, chunks, bytes, nanoseconds, hits */

typedef struct {
    PyObject_HEAD
    PyObject *empty, *dtype, *integer; /* numpy.empty, the array's dtype, numpy.integer */
    PyObject *cache;                   /* of decoded chunks; None: they are read */
    PyObject *indices;                 /* a cache of the indices of shards, or None */
    PyObject *tag_of, *absent;         /* called with a key */
    PyObject *key;                     /* of the document */
    PyObject *move;                    /* the name of what is called when an entry is used */
    PyObject *fill, *prefix, *files, *document; /* keep alive what is below */
    Py_buffer counts, last;            /* `last`: the box that was read before, from and to */
    char separator;
    const char *prefix_at, *files_at, *document_at; /* NULL: there are no files */
    Py_ssize_t prefix_size, files_size;
    Chain chain;
    int axes, immutable, scalars, spans, sharded;
    int64_t shape[MOST_AXES], edges[MOST_AXES], strides[MOST_AXES], ratios[MOST_AXES], places[MOST_AXES];
    _Atomic int64_t pace; /* bytes that are decoded in the time of a part of a chunk, of late */
    int64_t each; /* bytes of work from which the read has threads, and is not done here */
    long long process;
} Direct;

#define ALL(self)                                                                               \
    {self->empty,  self->dtype, self->integer, self->cache,  self->indices, self->tag_of,       \
     self->absent, self->key,   self->fill,    self->prefix, self->files,   self->document, self->move}

/* Which elements are wanted, and in which chunks they are. */
typedef struct {
    int64_t start[MOST_AXES], n[MOST_AXES], first[MOST_AXES], many[MOST_AXES], out[MOST_AXES];
    int point[MOST_AXES], dims, ellipsis;
    int64_t tasks, bytes;
} Box;

/* box.c */
int box_of(const Direct *self, PyObject *selection, Box *box);
int64_t cut_box(const Direct *self, const Box *box, int k, int64_t at, int64_t *from, int64_t *to);
void chunk_at(const Direct *self, const Box *box, int64_t task, int64_t *chunk);
int64_t name_chunk(const Direct *self, const char *base, int64_t size, const int64_t *numbers, char *to);

/* shared.c */
void note_done(const Direct *self, int64_t chunks, int64_t bytes, int64_t nanoseconds, int64_t hits);
int tag_version(PyObject *tag, int64_t *version);
int same_version(const Direct *self, PyObject *key, PyObject *tag);
PyObject *entry_of(const Direct *self, PyObject *entries, PyObject *key);
PyObject *entries_of(Direct *self, PyObject *cache);
PyObject *make_output(const Direct *self, const Box *box, Py_buffer *buffer);
PyObject *scalar_of(PyObject *array);

/* kept.c */
PyObject *read_kept(Direct *self, const Box *box, PyObject *tag);

#endif
