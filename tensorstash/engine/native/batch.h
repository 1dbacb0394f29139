/* A call as the module has checked it, and as threads carry it out. The tasks are the product of
   groups of rows, as in indexing/plan.py: a row is a chunk along one axis or more, and what is wanted
   of it. */
#ifndef TENSORSTASH_BATCH_H
#define TENSORSTASH_BATCH_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <sys/stat.h>

#include "kernel.h"

PyObject *patch(PyObject *module, PyObject *arguments);
PyObject *gather(PyObject *module, PyObject *arguments);
PyObject *reserves(PyObject *module, PyObject *descriptor);
PyObject *tally(PyObject *module, PyObject *nothing);
int add_direct(PyObject *module);

#define ROW 7        /* count, in, in_step, out, out_step, in_list, out_list */
#define LONGEST 4096 /* of a path */
#define MOST_THREADS 256
#define MOST_ROWS (1 << 20)

typedef struct {
    int64_t rows, coords;
    int64_t axes[MOST_DIMS];
    const int64_t *at;    /* rows * coords: which chunk */
    const int64_t *what;  /* rows * ROW */
    const int64_t *lists; /* offsets that rows point into: of the input, then of the output */
    int64_t listed;
    int64_t *made;        /* `at` and `what`, where they were worked out here */
} Group;

typedef struct {
    Group groups[MOST_DIMS];
    int count;
} Tables;

/* Buffers of Python's that a call holds. */
typedef struct {
    Py_buffer *at;
    int64_t count, most;
} Views;

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
    Tables tables;
    int axes;
    Job *jobs;
    int64_t all;
    int64_t ratios[MOST_DIMS], strides[MOST_DIMS];  /* of inner chunks in a shard */
    char separator;
    uint8_t *out;
    const uint8_t *fill;
    int spans;
    uint8_t *status;
    int64_t first, tasks, grain;
    const int64_t *picked; /* the tasks, where they are not those from `first` on; of one job */
    Py_buffer *keeps;      /* of each task, memory for all of its chunk; `buf` NULL: none is wanted */
    int64_t kept;
    int64_t *versions;     /* of each task, three numbers: of the file that was read; or NULL */
    atomic_llong next, done, absent, bytes, nanoseconds;
    Views views;
} Call;

/* Where chunks are put as files. */
typedef struct {
    const char **folders, **names; /* paths; of each task its name in one of them */
    const char *writer;            /* whose temporaries they are */
    int64_t count;                 /* of folders */
    int64_t stamp;                 /* the time that the first gets, in ns; each next one's is one more */
    int64_t until;                 /* when no more tasks are begun, by the monotonic clock */
} Puts;

/* The folder that a thread put its last file in. */
typedef struct {
    int64_t folder;
    int fd;
} Home;

/* Whole chunks to be encoded, each to a place of its own, or to a file. */
typedef struct {
    Chain chain;
    Tables tables;
    const int64_t *tasks;  /* where in `out` it goes, or its folder; then a row of each group */
    int64_t count;
    const uint8_t *source, *fill;
    int keep;              /* also what is nothing but fill */
    uint8_t *out;
    int64_t place;         /* bytes that one may take */
    int puts_files;
    Puts puts;
    int64_t *sizes;        /* of each task: bytes, or one of those below */
    int64_t grain;
    atomic_llong *next;    /* the next task, of all calls that share them */
    int64_t done;
    Views views;
} Encoding;

enum { ALL_FILL = -1, FAILED = -2 };

int view(Views *views, PyObject *object, int flags, Py_buffer **found);
int make_views(Views *views, int64_t most);
void release_views(Views *views);
void release_tables(Tables *tables);
int wrong(const char *what);
const int64_t *numbers(Views *views, PyObject *object, int64_t count, int64_t *found);
int integers(PyObject *tuple, int64_t *to, int64_t count);
int take_chain(Chain *chain, PyObject *given, int encoding);
int take_groups(Tables *tables, Views *views, PyObject *groups, int axes);
int check_rows(const Tables *tables, const Chain *chain, int64_t low_out, int64_t high_out);
int extent(const Py_buffer *array, int64_t *low, int64_t *high);

int take_puts(Puts *puts, PyObject *given, int64_t count);
void release_puts(Puts *puts);
int put_file(const Puts *puts, Home *home, int64_t folder, int64_t task, const uint8_t *data,
             int64_t size);
void leave(Home *home);
int64_t monotonic(void);

void run_all(Call *call, int threads);
void encode_all(Encoding *encoding);
void in_threads(void (*work)(void *, Scratch *), void *call, int threads);
void keep_at_most(int64_t size);
void threads_at_most(int most);
void forget_threads(void);
void watch_forks(void);
void version_of(const struct stat *status, int64_t *version);
int is_at(const char *path, const int64_t *version);
void read_indices(const char **paths, int64_t all, int64_t count, int64_t limit, int checksum,
                  int end, int64_t *out, int64_t *versions, uint8_t *status);

#endif
