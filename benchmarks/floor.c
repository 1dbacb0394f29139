/* The floor of the tables: the same reads, decodes and copies in a plain loop of C, and the same
 * encodes and writes. It knows the array's shape and believes what is stored: nothing is checked,
 * locked or kept. Decoders and encoders are those of the library whose addresses it is given. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define AXES 8
#define THREADS 64
#define NAME 4096

enum { RAW, BLOSC, ZSTD };

typedef struct {
    int (*blosc_decompress)(const void *, void *, size_t, int);
    int (*blosc_getitem)(const void *, int, int, void *);
    int (*blosc_compress)(int, int, size_t, size_t, const void *, void *, size_t, const char *,
                          size_t, int);
    void *(*zstd_dctx)(void);
    size_t (*zstd_decompress)(void *, void *, size_t, const void *, size_t);
    void *(*zstd_cctx)(void);
    size_t (*zstd_compress)(void *, void *, size_t, const void *, size_t, int);
} Library;

typedef struct {
    char *encoded, *decoded;
    void *dctx, *cctx;
} Scratch;

typedef struct {
    Library library;
    int64_t axes, itemsize, codec, threads, limit;
    int64_t shape[AXES], chunk[AXES], inner[AXES], grid[AXES];
    int64_t size, slots; /* bytes of a chunk; chunks of a shard, 0 without shards */
    int64_t strides[AXES];
    const int64_t *index; /* start and length of each chunk of each shard */
    Scratch scratch[THREADS];
} Floor;

/* What one call does, and how far its threads are. */
typedef struct {
    Floor *floor;
    const char *root;
    char *out;
    const char *values;
    int64_t low[AXES], high[AXES], first[AXES], count[AXES], steps[AXES];
    const int64_t *rows, *bounds;
    int64_t units, next, failed;
    void (*unit)(void *, int64_t, Scratch *);
} Job;

Floor *floor_new(const Library *library, int64_t axes, const int64_t *shape, const int64_t *chunk,
                 const int64_t *inner, int64_t itemsize, int64_t codec, int64_t limit,
                 int64_t threads, const int64_t *index)
{
    Floor *f = calloc(1, sizeof(Floor));
    f->library = *library;
    f->axes = axes;
    f->itemsize = itemsize;
    f->codec = codec;
    f->threads = threads;
    f->index = index;
    f->size = itemsize;
    f->slots = inner ? 1 : 0;
    for (int64_t i = axes - 1; i >= 0; i--) {
        f->shape[i] = shape[i];
        f->chunk[i] = chunk[i];
        f->strides[i] = f->size;
        f->size *= chunk[i];
        f->inner[i] = inner ? inner[i] : 1;
        f->slots *= f->inner[i];
        f->grid[i] = (shape[i] + chunk[i] * f->inner[i] - 1) / (chunk[i] * f->inner[i]);
    }
    f->limit = limit > f->size + 64 ? limit : f->size + 64;
    for (int64_t i = 0; i < threads; i++) {
        f->scratch[i].encoded = malloc(f->limit);
        f->scratch[i].decoded = calloc(1, f->size);
        if (codec == ZSTD) {
            f->scratch[i].dctx = library->zstd_dctx();
            f->scratch[i].cctx = library->zstd_cctx();
        }
    }
    return f;
}

/* -- helpers ---------------------------------------------------------------------------------- */

static void name_of(char *name, const char *root, int64_t axes, const int64_t *at)
{
    char *end = stpcpy(name, root);
    for (int64_t i = 0; i < axes; i++)
        end += sprintf(end, i ? "/%lld" : "%lld", (long long)at[i]);
}

static void copy(char *to, const int64_t *to_steps, const char *from, const int64_t *from_steps,
                 const int64_t *count, int64_t axes, int64_t itemsize)
{
    if (axes == 0) {
        memcpy(to, from, itemsize);
        return;
    }
    if (axes == 1 && *to_steps == itemsize && *from_steps == itemsize) {
        memcpy(to, from, *count * itemsize);
        return;
    }
    if (axes == 2 && count[1] == 1) { /* a column: no call an element */
        axes = 1;
    }
    if (axes == 1 && itemsize == 2) {
        for (int64_t i = 0; i < *count; i++, to += *to_steps, from += *from_steps)
            memcpy(to, from, 2);
        return;
    }
    if (axes == 1 && itemsize == 4) {
        for (int64_t i = 0; i < *count; i++, to += *to_steps, from += *from_steps)
            memcpy(to, from, 4);
        return;
    }
    for (int64_t i = 0; i < *count; i++, to += *to_steps, from += *from_steps)
        copy(to, to_steps + 1, from, from_steps + 1, count + 1, axes - 1, itemsize);
}

static int decode(const Floor *f, Scratch *s, const char *data, int64_t size)
{
    if (f->codec == BLOSC)
        return f->library.blosc_decompress(data, s->decoded, f->size, 1) == f->size;
    return f->library.zstd_decompress(s->dctx, s->decoded, f->size, data, size) == (size_t)f->size;
}

static void *work(void *argument)
{
    void **both = argument;
    Job *job = both[0];
    for (;;) {
        int64_t i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (i >= job->units)
            return NULL;
        job->unit(job, i, both[1]);
    }
}

static int64_t run(Job *job, int64_t threads)
{
    pthread_t made[THREADS];
    void *both[THREADS][2];
    int64_t helpers = threads < job->units ? threads : job->units;
    for (int64_t i = 0; i < helpers; i++) {
        both[i][0] = job;
        both[i][1] = &job->floor->scratch[i];
        if (i)
            pthread_create(&made[i], NULL, work, both[i]);
    }
    if (helpers)
        work(both[0]);
    for (int64_t i = 1; i < helpers; i++)
        pthread_join(made[i], NULL);
    return job->failed;
}

/* -- boxes ------------------------------------------------------------------------------------ */

/* The part of chunk ``at`` that the box wants: counts, its place in the chunk and the output. */
static void part(const Job *job, const int64_t *at, int64_t *count, int64_t *from, int64_t *to)
{
    const Floor *f = job->floor;
    *from = *to = 0;
    for (int64_t i = 0; i < f->axes; i++) {
        int64_t start = at[i] * f->chunk[i];
        int64_t low = job->low[i] > start ? job->low[i] : start;
        int64_t high = job->high[i] < start + f->chunk[i] ? job->high[i] : start + f->chunk[i];
        count[i] = high - low;
        *from += (low - start) * f->strides[i];
        *to += (low - job->low[i]) * job->steps[i];
    }
}

/* Of ``size`` bytes at ``start`` of an open file, or of ``held`` where the file is in memory. */
static int place(const Job *job, Scratch *s, const int64_t *at, int file, const char *held,
                 int64_t start, int64_t size)
{
    const Floor *f = job->floor;
    int64_t count[AXES], from, to, span = f->itemsize;
    part(job, at, count, &from, &to);
    for (int64_t i = 0; i < f->axes; i++)
        span += (count[i] - 1) * f->strides[i];
    const char *chunk = s->decoded;
    if (f->codec == RAW) {
        if (held)
            chunk = held;
        else if (pread(file, s->decoded + from, span, start + from) != span)
            return 0;
    } else {
        const char *data = held;
        if (!held) {
            size = pread(file, s->encoded, size, start);
            data = s->encoded;
        }
        if (f->codec == BLOSC && 2 * span <= f->size) {
            if (f->library.blosc_getitem(data, from / f->itemsize, span / f->itemsize,
                                         s->decoded + from) != span)
                return 0;
        } else if (!decode(f, s, data, size))
            return 0;
    }
    copy(job->out + to, job->steps, chunk + from, f->strides, count, f->axes, f->itemsize);
    return 1;
}

/* Unit ``i`` of the box: a chunk, or all that is wanted of a shard. */
static void box_unit(void *argument, int64_t i, Scratch *s)
{
    Job *job = argument;
    const Floor *f = job->floor;
    char name[NAME];
    int64_t at[AXES], shard = 0, ok = 1;
    for (int64_t k = f->axes - 1; k >= 0; k--) {
        at[k] = job->first[k] + i % job->count[k];
        i /= job->count[k];
    }
    name_of(name, job->root, f->axes, at);
    int file = open(name, O_RDONLY);
    if (!f->slots) {
        ok = file >= 0 && place(job, s, at, file, NULL, 0, f->limit);
    } else {
        int64_t low[AXES], high[AXES], inside[AXES], wanted = 1;
        for (int64_t k = 0; k < f->axes; k++) {
            shard = shard * f->grid[k] + at[k];
            int64_t start = at[k] * f->inner[k];
            low[k] = job->low[k] / f->chunk[k];
            high[k] = (job->high[k] - 1) / f->chunk[k] + 1;
            if (low[k] < start)
                low[k] = start;
            if (high[k] > start + f->inner[k])
                high[k] = start + f->inner[k];
            inside[k] = low[k];
            wanted *= high[k] - low[k];
        }
        const int64_t *index = f->index + 2 * shard * f->slots;
        const char *body = NULL;
        if (2 * wanted > f->slots) { /* most of it: the whole file at once */
            ok = file >= 0 && read(file, s->encoded, f->limit) > 0;
            body = s->encoded;
        }
        while (ok) {
            int64_t slot = 0, k;
            for (k = 0; k < f->axes; k++)
                slot = slot * f->inner[k] + inside[k] % f->inner[k];
            ok = place(job, s, inside, file, body ? body + index[2 * slot] : NULL, index[2 * slot],
                       index[2 * slot + 1]);
            for (k = f->axes - 1; k >= 0; k--) {
                if (++inside[k] < high[k])
                    break;
                inside[k] = low[k];
            }
            if (k < 0)
                break;
        }
    }
    if (file >= 0)
        close(file);
    if (!ok)
        job->failed = 1;
}

/* Reads the box into ``out``, contiguous. Returns 0 when all of it was read. */
int64_t floor_read(Floor *f, const char *root, const int64_t *low, const int64_t *high, char *out)
{
    Job job = {.floor = f, .root = root, .out = out, .units = 1, .unit = box_unit};
    int64_t step = f->itemsize;
    for (int64_t i = f->axes - 1; i >= 0; i--) {
        int64_t outer = f->chunk[i] * f->inner[i];
        job.low[i] = low[i];
        job.high[i] = high[i];
        job.first[i] = low[i] / outer;
        job.count[i] = (high[i] - 1) / outer + 1 - job.first[i];
        job.steps[i] = step;
        step *= high[i] - low[i];
        job.units *= job.count[i];
    }
    return run(&job, f->threads);
}

/* -- rows ------------------------------------------------------------------------------------- */

/* Unit ``i``: the rows between two bounds, all of one chunk. */
static void rows_unit(void *argument, int64_t i, Scratch *s)
{
    Job *job = argument;
    const Floor *f = job->floor;
    char name[NAME];
    int64_t lowest = job->bounds[i], end = job->bounds[i + 1];
    int64_t chunk = job->rows[lowest] / f->chunk[0], at[AXES] = {0}, start = 0, size = f->limit;
    int64_t row = f->strides[0], ok;
    at[0] = chunk / f->inner[0];
    if (f->slots) {
        const int64_t *entry = f->index + 2 * (at[0] * f->slots + chunk % f->inner[0]);
        start = entry[0];
        size = entry[1];
    }
    name_of(name, job->root, f->axes, at);
    int file = open(name, O_RDONLY);
    ok = file >= 0;
    int single = 0;
    if (ok && f->codec != RAW) {
        size = pread(file, s->encoded, size, start);
        int32_t block;
        memcpy(&block, s->encoded + 8, 4);
        single = f->codec == BLOSC && (end - lowest) * block < f->size;
        ok = single || decode(f, s, s->encoded, size);
    }
    for (int64_t k = lowest; ok && k < end; k++) {
        int64_t inside = job->rows[k] - chunk * f->chunk[0];
        char *to = job->out + k * row;
        if (f->codec == RAW)
            ok = pread(file, to, row, start + inside * row) == row;
        else if (single)
            ok = f->library.blosc_getitem(s->encoded, inside * row / f->itemsize,
                                          row / f->itemsize, to) == row;
        else
            memcpy(to, s->decoded + inside * row, row);
    }
    if (file >= 0)
        close(file);
    if (!ok)
        job->failed = 1;
}

/* Rows in increasing order into ``out``; ``bounds`` part them by their chunks. */
int64_t floor_take(Floor *f, const char *root, const int64_t *rows, const int64_t *bounds,
                   int64_t chunks, char *out)
{
    Job job = {.floor = f, .root = root, .out = out, .rows = rows, .bounds = bounds,
               .units = chunks, .unit = rows_unit};
    return run(&job, f->threads);
}

/* -- writes ----------------------------------------------------------------------------------- */

static int made(char *name)
{
    int file = open(name, O_WRONLY | O_CREAT, 0666);
    if (file >= 0 || errno != ENOENT)
        return file;
    for (char *slash = strchr(name + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(name, 0777);
        *slash = '/';
    }
    return open(name, O_WRONLY | O_CREAT, 0666);
}

/* Unit ``i`` of the array: gathered, encoded, written beside its place and renamed. */
static void write_unit(void *argument, int64_t i, Scratch *s)
{
    Job *job = argument;
    const Floor *f = job->floor;
    char name[NAME], beside[NAME + 8];
    int64_t at[AXES], count[AXES], from = 0;
    for (int64_t k = f->axes - 1; k >= 0; k--) {
        at[k] = i % f->grid[k];
        i /= f->grid[k];
        int64_t start = at[k] * f->chunk[k];
        count[k] = f->shape[k] - start < f->chunk[k] ? f->shape[k] - start : f->chunk[k];
        from += start * job->steps[k];
    }
    copy(s->decoded, f->strides, job->values + from, job->steps, count, f->axes, f->itemsize);
    const char *data = s->decoded;
    int64_t size = f->size;
    if (f->codec == BLOSC)
        size = f->library.blosc_compress(5, 1, f->itemsize, f->size, s->decoded, s->encoded,
                                         f->limit, "lz4", 0, 1);
    if (f->codec == ZSTD)
        size = f->library.zstd_compress(s->cctx, s->encoded, f->limit, s->decoded, f->size, 1);
    if (f->codec != RAW)
        data = s->encoded;
    name_of(name, job->root, f->axes, at);
    strcpy(stpcpy(beside, name), ".part");
    int file = made(beside);
    if (file < 0 || write(file, data, size) != size || close(file) || rename(beside, name))
        job->failed = 1;
}

/* Writes all of ``values``, contiguous. */
int64_t floor_write(Floor *f, const char *root, const char *values)
{
    Job job = {.floor = f, .root = root, .values = values, .units = 1, .unit = write_unit};
    int64_t step = f->itemsize;
    for (int64_t i = f->axes - 1; i >= 0; i--) {
        job.steps[i] = step;
        step *= f->shape[i];
        job.units *= f->grid[i];
    }
    return run(&job, f->threads);
}
