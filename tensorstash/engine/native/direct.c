/* A small box of an array, from the index that was given to what NumPy would return, in one call: for
   an element, a row or a patch, tables and objects of Python's cost more than the read itself.

   It declines (None) whatever is not plain: other indices, what is not kept or not stored, another
   version, damage, more chunks than a few. Python then reads all of it again, and says what is wrong. */
#include "direct.h"

#include <stdlib.h>
#include <string.h>

/* -- what is stored --------------------------------------------------------------------- */

#define MOST_SPARE 8

/* What a call works in; a few are kept, for all handles. */
typedef struct {
    Call call;
    Job jobs[MOST_JOBS];
    Py_buffer indices[MOST_JOBS];
    char paths[MOST_JOBS][LONGEST];
    int64_t rows[MOST_AXES][MOST_TASKS * (1 + ROW)];
    uint8_t status[MOST_TASKS];
} Room;

static void make_rows(const Direct *self, const Box *box, Room *room) {
    Call *call = &room->call;
    call->tables.count = self->axes;
    for (int k = 0; k < self->axes; k++) {
        Group *group = &call->tables.groups[k];
        int64_t *at = room->rows[k], *row = at + box->many[k];
        group->rows = box->many[k];
        group->coords = 1;
        group->axes[0] = k;
        group->at = at;
        group->what = row;
        for (int64_t i = 0; i < group->rows; i++, row += ROW) {
            int64_t from, to;
            at[i] = box->first[k] + i;
            row[0] = cut_box(self, box, k, at[i], &from, &to);
            row[1] = from * self->strides[k];
            row[2] = self->strides[k];
            row[3] = to * box->out[k];
            row[4] = box->out[k];
            row[5] = row[6] = -1;
        }
    }
}

/* The shards of the box, whose indices are known; how many, or 0. */
static int64_t make_shards(Direct *self, const Box *box, Room *room, PyObject **known) {
    int64_t first[MOST_AXES], many[MOST_AXES], shard[MOST_AXES], all = 1, before = 0;
    for (int k = 0; k < self->axes; k++) {
        first[k] = box->first[k] / self->ratios[k];
        many[k] = (box->first[k] + box->many[k] - 1) / self->ratios[k] - first[k] + 1;
        if (many[k] > MOST_JOBS || (all *= many[k]) > MOST_JOBS) return 0;
    }
    PyObject *entries = entries_of(self, self->indices);
    int64_t made = 0;
    for (; entries && made < all; made++) {
        Job *job = &room->jobs[made];
        int64_t left = made, tasks = 1, version[3];
        for (int k = self->axes - 1; k >= 0; k--) {
            shard[k] = first[k] + left % many[k];
            left /= many[k];
            int64_t low = shard[k] * self->ratios[k] - box->first[k];
            int64_t high = low + self->ratios[k];
            job->low[k] = low < 0 ? 0 : low;
            job->high[k] = high < box->many[k] ? high : box->many[k];
            tasks *= job->high[k] - job->low[k];
        }
        job->before = before;
        before += tasks;
        char name[LONGEST];
        int64_t size = name_chunk(self, self->prefix_at, self->prefix_size, shard, name);
        job->path = room->paths[made];
        job->length = name_chunk(self, self->files_at, self->files_size, shard, room->paths[made]);
        if (size < 0 || job->length < 0) break;
        PyObject *key = PyUnicode_FromStringAndSize(name, (Py_ssize_t)size);
        PyObject *entry = key ? entry_of(self, entries, key) : NULL;
        Py_XDECREF(key);
        if (!entry) break;
        known[made] = entry;
        Py_buffer *index = &room->indices[made];
        if (!tag_version(PyTuple_GetItem(entry, 0), version) ||
            PyObject_GetBuffer(PyTuple_GetItem(entry, 1), index, PyBUF_C_CONTIGUOUS)) {
            index->obj = NULL;
            break;
        }
        job->inode = version[0];
        job->modified = version[1];
        job->bytes = version[2];
        job->index = index->buf;
        job->entries = (int64_t)(index->len / 16);
        if (index->itemsize != 8 || (uintptr_t)index->buf % 8) break;
    }
    Py_XDECREF(entries);
    return made == all ? made : 0;
}

/* Whether an absent chunk is one for sure. */
static int is_absent(const Direct *self, const Box *box, int64_t task) {
    char name[LONGEST];
    int64_t chunk[MOST_AXES], size;
    chunk_at(self, box, task, chunk);
    size = name_chunk(self, self->prefix_at, self->prefix_size, chunk, name);
    PyObject *key = size < 0 ? NULL : PyUnicode_FromStringAndSize(name, (Py_ssize_t)size);
    PyObject *found = key ? PyObject_CallFunctionObjArgs(self->absent, key, NULL) : NULL;
    int sure = found == Py_True;
    Py_XDECREF(key);
    Py_XDECREF(found);
    return sure;
}

/* The bytes of a chunk that a part of it spans; 0 where that is not much less than all, as in batch.py. */
static int64_t part_of(const Direct *self, const Box *box) {
    int64_t hull = self->chain.itemsize;
    for (int k = 0; k < self->axes; k++) {
        int64_t n = box->n[k] < self->edges[k] ? box->n[k] : self->edges[k];
        hull += (n - 1) * self->strides[k];
    }
    return hull * 4 <= self->chain.nbytes ? hull : 0;
}

/* Whether more than one thread would be had for it: `part` is of each chunk. What is decoded for that,
   in large blocks, is known by the time that it took; one that took long is tried again, much later. */
static int is_much(Direct *self, const Box *box, int64_t part) {
    int64_t most = self->each / box->tasks;
    if (box->tasks < 2) return 0;
    if (!part) return self->chain.nbytes > most;
    if (part <= most && self->pace > most) {
        self->pace -= self->pace / 256 + 1;
        return 1;
    }
    return part > most;
}

static void note_pace(Direct *self, int64_t nanoseconds, int64_t chunks) {
    int64_t now = chunks ? nanoseconds / chunks * PACE : 0, pace = self->pace;
    if (now > self->chain.nbytes) now = self->chain.nbytes;
    self->pace = now < pace ? now : pace + (now - pace) / 4;
}

static void *_Atomic spare[MOST_SPARE];

static Room *take_room(void) {
    Room *room = NULL;
    for (int k = 0; k < MOST_SPARE && !room; k++) room = atomic_exchange(&spare[k], NULL);
    if (!room) room = calloc(1, sizeof *room);
    if (!room) PyErr_NoMemory();
    return room;
}

static void leave_room(Room *room) {
    for (int k = 0; k < MOST_SPARE && room; k++) room = atomic_exchange(&spare[k], room);
    free(room);
}

static PyObject *from_files(Direct *self, const Box *box, PyObject *tag) {
    PyObject *entries[MOST_JOBS] = {NULL}, *result = NULL;
    Py_buffer to = {0};
    int64_t document[3];
    int64_t part = part_of(self, box);
    if (is_much(self, box, part) || (tag != Py_None && !tag_version(tag, document))) return NULL;
    Room *room = take_room();
    if (!room) return NULL;
    Call *call = &room->call;
    call->chain = self->chain;
    call->axes = self->axes;
    call->jobs = room->jobs;
    memset(room->status, 0, sizeof room->status);
    make_rows(self, box, room);
    int good;
    if (self->sharded) {
        call->all = make_shards(self, box, room, entries);
        good = call->all > 0;
        for (int k = 0; k < self->axes; k++) {
            call->ratios[k] = self->ratios[k];
            call->strides[k] = self->places[k];
        }
    } else {
        Job *job = room->jobs;
        call->all = good = 1;
        job->path = self->files_at;
        job->length = self->files_size;
        job->index = NULL;
        job->before = 0;
        for (int k = 0; k < self->axes; k++) {
            job->low[k] = 0;
            job->high[k] = box->many[k];
        }
    }
    good = good && (result = make_output(self, box, &to));
    if (good) {
        call->separator = self->separator;
        call->out = to.buf;
        call->fill = self->fill == Py_None ? NULL : (const uint8_t *)PyBytes_AsString(self->fill);
        call->spans = self->spans;
        call->status = room->status;
        call->tasks = box->tasks;
        call->grain = box->tasks;
        call->next = call->done = call->absent = call->bytes = call->nanoseconds = 0;
        Py_BEGIN_ALLOW_THREADS
        run_all(call, 1);
        if (tag != Py_None) good = is_at(self->document_at, document);
        Py_END_ALLOW_THREADS
    }
    for (int64_t k = 0; good && k < box->tasks; k++) {
        int code = room->status[k];
        good = code == DONE || (code == ABSENT && call->fill && (self->sharded || is_absent(self, box, k)));
    }
    if (good) note_done(self, call->done, call->bytes, call->nanoseconds, 0);
    if (good && part) note_pace(self, call->nanoseconds, call->done);
    for (int k = 0; k < MOST_JOBS; k++) {
        if (!entries[k]) continue;
        if (room->indices[k].obj) PyBuffer_Release(&room->indices[k]);
        Py_DECREF(entries[k]);
    }
    if (to.obj) PyBuffer_Release(&to);
    leave_room(room);
    if (!good) Py_CLEAR(result);
    return result && !box->dims ? scalar_of(result) : result;
}

/* -- the type --------------------------------------------------------------------------- */

/* Notes the box, and whether it begins along one axis where the one before ended, as who reads in
   order asks. */
static int follows(const Direct *self, const Box *box) {
    if (!self->last.obj) return 0;
    int64_t *last = self->last.buf;
    int moved = 0, next = 0;
    for (int k = 0; k < self->axes; k++, last += 2) {
        int64_t start = box->start[k], stop = start + box->n[k];
        if (last[0] != start || last[1] != stop) {
            moved++;
            next = start == last[1];
        }
    }
    if (moved == 1 && next) return 1; /* it is noted by who is told */
    last = self->last.buf;
    for (int k = 0; k < self->axes; k++) {
        *last++ = box->start[k];
        *last++ = box->start[k] + box->n[k];
    }
    return 0;
}

static PyObject *take(PyObject *given, PyObject *arguments) {
    Direct *self = (Direct *)given;
    PyObject *selection, *tag, *told;
    Box box;
    if (!PyArg_ParseTuple(arguments, "OOO", &selection, &tag, &told)) return NULL;
    PyObject *found = NULL;
    if (box_of(self, selection, &box))
        found = self->cache == Py_None ? from_files(self, &box, tag) : read_kept(self, &box, tag);
    if (!found) { /* Python says it again, but what no read may swallow */
        if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception)) return NULL;
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    if (self->last.obj && follows(self, &box)) {
        PyObject *done = PyObject_CallFunctionObjArgs(told, selection, NULL);
        if (!done) Py_CLEAR(found);
        Py_XDECREF(done);
    }
    return found;
}

/* What refers to it can be cleared: there is nothing to be cleared in here. */
static int visit_all(PyObject *given, visitproc visit, void *arg) {
    Direct *self = (Direct *)given;
    PyObject *all[] = ALL(self);
    Py_VISIT(Py_TYPE(given));
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) Py_VISIT(all[k]);
    return 0;
}

static void drop(PyObject *given) {
    Direct *self = (Direct *)given;
    PyTypeObject *type = Py_TYPE(given);
    PyObject_GC_UnTrack(given);
    PyObject *all[] = ALL(self);
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) Py_XDECREF(all[k]);
    if (self->counts.obj) PyBuffer_Release(&self->counts);
    if (self->last.obj) PyBuffer_Release(&self->last);
    PyObject_GC_Del(given);
    Py_DECREF(type);
}

static int take_sizes(PyObject *sizes, int which, int64_t *to, int axes, int64_t least) {
    if (!integers(PyTuple_GetItem(sizes, which), to, axes)) return 0;
    for (int k = 0; k < axes; k++)
        if (to[k] < least || to[k] > INT64_MAX / 8) return wrong("no such size");
    return 1;
}

static PyObject *make(PyTypeObject *type, PyObject *arguments, PyObject *names) {
    PyObject *chain, *sizes, *objects, *texts, *flags, *counts, *last;
    Direct *self = NULL;
    int64_t flag[5];
    (void)names;
    if (!PyArg_ParseTuple(arguments, "OO!O!O!OOO", &chain, &PyTuple_Type, &sizes, &PyTuple_Type, &objects,
                          &PyTuple_Type, &texts, &flags, &counts, &last))
        return NULL;
    Py_ssize_t axes = PyTuple_Size(sizes) == 5 ? PyObject_Length(PyTuple_GetItem(sizes, 0)) : -1;
    if (axes < 1 || axes > MOST_AXES) {
        PyErr_Clear();
        wrong("no such axes");
        return NULL;
    }
    self = (Direct *)PyType_GenericAlloc(type, 0);
    if (!self) return NULL;
    PyObject_GC_UnTrack(self); /* until what it refers to is its own */
    self->axes = (int)axes;
    const char *text = "";
    Py_ssize_t size = 0;
    if (!PyArg_ParseTuple(objects, "OOOOOOO", &self->empty, &self->dtype, &self->integer, &self->cache,
                          &self->indices, &self->tag_of, &self->absent) ||
        !PyArg_ParseTuple(texts, "OOOOOs#", &self->prefix, &self->files, &self->document, &self->key,
                          &self->fill, &text, &size))
        PyErr_Clear();
    self->move = PyUnicode_InternFromString("move_to_end");
    PyObject *all[] = ALL(self);
    int whole = 1;
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        if (all[k] != self->move) Py_XINCREF(all[k]);
        whole = whole && all[k];
    }
    if (!whole || !PyType_Check(self->integer) || size != 1 || !*text) {
        wrong("what is needed is missing");
        goto failed;
    }
    self->separator = *text;
    if (!take_chain(&self->chain, chain, 0) || !take_sizes(sizes, 0, self->shape, self->axes, 0) ||
        !take_sizes(sizes, 1, self->edges, self->axes, 1) || !take_sizes(sizes, 2, self->strides, self->axes, 0) ||
        !take_sizes(sizes, 3, self->ratios, self->axes, 1) || !take_sizes(sizes, 4, self->places, self->axes, 0) ||
        !integers(flags, flag, 5))
        goto failed;
    int64_t far, reach = self->chain.itemsize;
    for (int k = 0; k < self->axes; k++)
        if (__builtin_mul_overflow(self->edges[k] - 1, self->strides[k], &far) ||
            __builtin_add_overflow(reach, far, &reach) ||
            self->places[k] > INT64_MAX / 64 / self->ratios[k])
            reach = INT64_MAX / 2;
    if (self->cache == Py_None && reach > self->chain.nbytes) {
        wrong("a row reaches beyond a chunk");
        goto failed;
    }
    self->immutable = flag[0] != 0;
    self->scalars = flag[1] != 0;
    self->spans = flag[2] != 0;
    self->sharded = flag[3] != 0;
    self->each = flag[4];
    self->prefix_at = PyUnicode_AsUTF8AndSize(self->prefix, &self->prefix_size);
    if (!self->prefix_at) goto failed;
    if (self->files != Py_None) {
        char *files, *document;
        if (PyBytes_AsStringAndSize(self->files, &files, NULL) ||
            PyBytes_AsStringAndSize(self->document, &document, NULL))
            goto failed;
        self->files_at = files;
        self->files_size = PyBytes_Size(self->files);
        self->document_at = document;
        if (self->files_size + 2 > LONGEST) {
            wrong("no path of a file");
            goto failed;
        }
    } else if (self->cache == Py_None) {
        wrong("neither a cache nor files");
        goto failed;
    }
    if (self->fill != Py_None && (!PyBytes_Check(self->fill) || PyBytes_Size(self->fill) != self->chain.itemsize)) {
        wrong("a fill value of another size");
        goto failed;
    }
    if (PyObject_GetBuffer(counts, &self->counts, PyBUF_WRITABLE)) goto failed;
    if (last != Py_None && PyObject_GetBuffer(last, &self->last, PyBUF_WRITABLE)) goto failed;
    if (self->counts.len != 8 * COUNTS || (uintptr_t)self->counts.buf % 8 ||
        (self->last.obj && (self->last.len != 16 * axes || (uintptr_t)self->last.buf % 8))) {
        wrong("buffers of another size");
        goto failed;
    }
    PyObject_GC_Track(self);
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static PyMethodDef methods[] = {
    {"take", take, METH_VARARGS,
     "take(selection, tag, told) -> what NumPy returns, or None: Python is to look\n\n"
     "`tag`: the version that the document must have afterwards, or None. `told(selection)` is called\n"
     "where a box begins where the one before ended."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, make},
    {Py_tp_dealloc, drop},
    {Py_tp_traverse, visit_all},
    {Py_tp_methods, methods},
    {Py_tp_doc, "Direct(chain, sizes, objects, texts, flags, counts, last): small boxes of an array."},
    {0, NULL},
};

static PyType_Spec spec = {"tensorstash.engine.native._kernel.Direct", sizeof(Direct), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};

int add_direct(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    if (!type) return -1;
    int code = PyModule_AddObjectRef(module, "Direct", type);
    Py_DECREF(type);
    return code;
}
