/* Many tasks (read, decode, copy to their places), without the interpreter's lock. */
#include "batch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PARTLY 49152     /* bytes of a stored chunk from which reading a part of it pays */
#define HEAD 4096        /* of them, that are read first */
#define APART 8192       /* bytes that are read in the time that one read more takes */
#define OPEN (O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW)

/* -- one task -------------------------------------------------------------------------- */

typedef struct {
    int fd;
    const Job *job;
    int code;
    int64_t size;
} File;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int open_file(const char *path, struct stat *status, int *code) {
    int fd;
    do fd = open(path, OPEN);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        *code = errno == ENOENT ? ABSENT : UNOPENED;
    } else if (fstat(fd, status) || !S_ISREG(status->st_mode)) {
        close(fd);
        fd = -1;
        *code = UNOPENED;
    }
    return fd;
}

static int read_file(int fd, uint8_t *to, int64_t size, int64_t from) {
    while (size > 0) {
        ssize_t more = pread(fd, to, (size_t)(size < (1 << 30) ? size : 1 << 30), (off_t)from);
        if (more < 0 && errno == EINTR) continue;
        if (more <= 0) return SHORT;
        to += more;
        from += more;
        size -= more;
    }
    return DONE;
}

static int key_path(const Call *call, const Job *job, const int64_t *chunk, char *path) {
    int64_t at = job->length;
    memcpy(path, job->path, (size_t)at);
    for (int k = 0; k < call->axes; k++) {
        char digits[24];
        int n = digits_of(chunk[k], digits);
        if (at + n + 2 > LONGEST) return 0;
        if (k) path[at++] = call->separator;
        memcpy(path + at, digits, (size_t)n);
        at += n;
    }
    path[at] = 0;
    return 1;
}

/* A time beyond that of 64 bits is another one here, and no tag of Python's. */
void version_of(const struct stat *status, int64_t *version) {
#ifdef __APPLE__
    struct timespec at = status->st_mtimespec;
#else
    struct timespec at = status->st_mtim;
#endif
    version[0] = (int64_t)status->st_ino;
    version[1] = (int64_t)((uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec);
    version[2] = (int64_t)status->st_size;
}

/* Whether a file of that version is at the path, and no link. */
int is_at(const char *path, const int64_t *version) {
    struct stat status;
    int64_t found[3];
    if (fstatat(AT_FDCWD, path, &status, AT_SYMLINK_NOFOLLOW) || !S_ISREG(status.st_mode)) return 0;
    version_of(&status, found);
    return !memcmp(found, version, sizeof found);
}

/* Open the shard of `job`, unless it is open, and see that it is the version that is known. */
static int open_shard(File *file, const Job *job) {
    if (file->job != job) {
        struct stat status;
        if (file->fd >= 0) close(file->fd);
        file->job = job;
        file->code = DONE;
        file->fd = open_file(job->path, &status, &file->code);
        if (file->fd < 0) {
            file->code = CHANGED;
        } else {
            int64_t version[3];
            version_of(&status, version);
            file->size = version[2];
            if (version[0] != job->inode || version[1] != job->modified || version[2] != job->bytes)
                file->code = CHANGED;
        }
    }
    return file->code;
}

/* Of a large stored chunk only what holds the blocks that are wanted, where its beginning tells. */
static int read_parts(const Chain *chain, int fd, uint8_t *to, int64_t size, int64_t from,
                      const Wanted *wanted, int *some) {
    int64_t extents[MOST_PARTS][2];
    int code = read_file(fd, to, HEAD, from);
    int count = code == DONE ? parts(chain, to, HEAD, size, wanted, extents) : -1;
    if (code == DONE && count < 0) return read_file(fd, to + HEAD, size - HEAD, from + HEAD);
    *some = 1;
    for (int k = 0; k < count && code == DONE; k++) {
        int64_t first = extents[k][0] < HEAD ? HEAD : extents[k][0];
        if (extents[k][1] > first)
            code = read_file(fd, to + first, extents[k][1] - first, from + first);
    }
    return code;
}

/* Of a plain chunk the runs that are wanted, one by one. */
static int read_runs(int fd, uint8_t *to, int64_t from, const Wanted *wanted) {
    int code = DONE;
    for (int64_t k = 0; k < wanted->runs && code == DONE; k++) {
        int64_t at = wanted->base + (wanted->starts ? wanted->starts[k] : k * wanted->step);
        code = read_file(fd, to + at, wanted->length, from + at);
    }
    return code;
}

static uint64_t load64(const uint8_t *at) {
    uint64_t value = 0;
    for (int k = 7; k >= 0; k--) value = value << 8 | at[k];
    return value;
}

/* One shard's index of `count` entries, which `out` has room for: offsets and sizes, of what is
   absent 0 and -1. `stored` has room for it as it is stored. */
static int read_index(const char *path, int64_t count, int64_t limit, int checksum, int end,
                      uint8_t *stored, int64_t *out, int64_t *version) {
    struct stat status;
    int64_t plain = count * 16, size = plain + (checksum ? 4 : 0);
    int code = DONE, fd = open_file(path, &status, &code);
    if (fd < 0) return code;
    version_of(&status, version);
    code = version[2] < size ? SHORT : read_file(fd, stored, size, end ? version[2] - size : 0);
    close(fd);
    if (code != DONE) return code;
    /* The sum is the upper half of the last eight bytes. */
    if (checksum && crc32c(stored, (size_t)plain) != load64(stored + plain - 4) >> 32)
        return CHECKSUM;
    for (int64_t k = 0; k < count; k++) {
        uint64_t offset = load64(stored + 16 * k), length = load64(stored + 16 * k + 8);
        if (offset == UINT64_MAX && length == UINT64_MAX) {
            offset = 0;
            length = UINT64_MAX;
        } else if (offset >= (1ull << 62) || length > (uint64_t)limit) {
            return DAMAGED;
        }
        out[2 * k] = (int64_t)offset;
        out[2 * k + 1] = (int64_t)length;
    }
    return DONE;
}

void read_indices(const char **paths, int64_t all, int64_t count, int64_t limit, int checksum,
                  int end, int64_t *out, int64_t *versions, uint8_t *status) {
    uint8_t *stored = malloc((size_t)count * 16 + 4);
    for (int64_t k = 0; k < all; k++)
        status[k] = stored ? (uint8_t)read_index(paths[k], count, limit, checksum, end, stored,
                                                 out + 2 * k * count, versions + 3 * k)
                           : NO_MEMORY;
    free(stored);
}

static int raw(const Chain *chain) {
    return !chain->count || (chain->count == 1 && chain->steps[0].kind == SWAP);
}

/* The stored bytes of the call's `nth` task; of a plain chunk only `span` of them, or the `few` runs,
   where these are given, of others what `some` needs. */
static int fetch(const Call *call, const Job *job, const int64_t *chunk, int64_t nth, File *file,
                 Scratch *scratch, const Wanted *some, const Wanted *span, const Wanted *few,
                 uint8_t *straight, const uint8_t **data, int64_t *size) {
    const Chain *chain = &call->chain;
    int plain = raw(chain);
    scratch->some = 0;
    if (job->values && !job->index) {
        if (nth >= job->held) return AGAIN; /* they are those of this call */
        Py_buffer *value = &job->values[nth];
        *data = value->buf;
        *size = (int64_t)value->len;
        return value->buf ? DONE : ABSENT;
    }
    int64_t from = 0;
    int fd, code = DONE;
    if (job->index) {
        int64_t position = 0;
        for (int k = 0; k < call->axes; k++)
            position += chunk[k] % call->ratios[k] * call->strides[k];
        if (position < 0 || position >= job->entries) return AGAIN;
        if (!job->values) code = open_shard(file, job);
        if (code != DONE) return code;
        int64_t all = job->values ? job->bytes : file->size;
        from = job->index[2 * position];
        *size = job->index[2 * position + 1];
        if (*size < 0) return ABSENT;
        if (*size > chain->most) return TOO_LARGE;
        if (from < 0 || from > all || *size > all - from) return SHORT;
        if (plain && *size != chain->nbytes) return SIZE;
        if (job->values) {
            *data = (const uint8_t *)job->values->buf + from;
            return DONE;
        }
        fd = file->fd;
    } else {
        char path[LONGEST];
        struct stat status;
        if (!key_path(call, job, chunk, path)) return UNOPENED;
        fd = open_file(path, &status, &code);
        if (fd < 0) return code;
        if (call->versions) version_of(&status, call->versions + 3 * nth);
        *size = (int64_t)status.st_size;
        if (*size > chain->most) code = TOO_LARGE;
        /* Of a chunk that is read in part, Python does not look at the rest, either. */
        else if (plain && (span ? *size < span->stop : *size != chain->nbytes)) code = SIZE;
    }
    if (code == DONE) {
        uint8_t *to = plain && straight ? straight : room(&scratch->stored, *size);
        if (!to) {
            code = NO_MEMORY;
        } else if (plain && (span || few)) {
            to = room(&scratch->stored, chain->nbytes);
            if (!to) code = NO_MEMORY;
            else if (few) code = read_runs(fd, to, from, few);
            else code = read_file(fd, to + span->first, span->stop - span->first, from + span->first);
            *size = chain->nbytes;
        } else if (some && *size >= PARTLY && partial(chain)) {
            code = read_parts(chain, fd, to, *size, from, some, &scratch->some);
        } else {
            code = read_file(fd, to, *size, from);
        }
        *data = to;
    }
    if (!job->index) close(fd);
    return code;
}

typedef struct {
    Scratch *scratch;
    File file;
    int64_t done, absent, bytes, nanoseconds;
} Worker;

static int carry_out(Call *call, const Job *job, int64_t task, int64_t nth, Worker *worker) {
    const Chain *chain = &call->chain;
    Dim dims[MOST_DIMS];
    int64_t chunk[MOST_DIMS];
    int64_t in = 0, out = 0, last = chain->itemsize, left = task;
    Wanted wanted = {0};
    int64_t widest = -1;
    memset(chunk, 0, sizeof(int64_t) * (size_t)(call->axes ? call->axes : 1));
    for (int k = call->tables.count - 1; k >= 0; k--) {
        const Group *group = &call->tables.groups[k];
        int64_t span = job->high[k] - job->low[k];
        int64_t at = job->low[k] + left % span;
        left /= span;
        const int64_t *row = group->what + at * ROW;
        for (int64_t i = 0; i < group->coords; i++)
            chunk[group->axes[i]] = group->at[at * group->coords + i];
        Dim *dim = &dims[k];
        dim->n = row[0];
        dim->in_step = row[2];
        dim->out_step = row[4];
        dim->in_list = row[5] < 0 ? NULL : group->lists + row[5];
        dim->out_list = row[6] < 0 ? NULL : group->lists + group->listed + row[6];
        int64_t low = row[1], high = row[1];
        if (dim->in_list) {
            int64_t least = dim->in_list[0], most = least;
            for (int64_t i = 1; i < dim->n; i++) {
                if (dim->in_list[i] < least) least = dim->in_list[i];
                if (dim->in_list[i] > most) most = dim->in_list[i];
            }
            low += least;
            high += most;
        } else if (dim->in_step < 0) {
            low += (dim->n - 1) * dim->in_step;
        } else {
            high += (dim->n - 1) * dim->in_step;
        }
        wanted.first += low;
        last += high;
        in += row[1];
        out += row[3];
        if (high - low > widest) {  /* runs are told apart along the dimension that spans most */
            widest = high - low;
            wanted.runs = dim->n;
            wanted.starts = dim->in_list;
            wanted.step = dim->in_step;
            wanted.base = row[1] - low;
        }
    }
    wanted.stop = last;
    wanted.base += wanted.first;
    wanted.length = wanted.stop - wanted.first - (widest > 0 ? widest : 0);
    size_t item = (size_t)chain->itemsize;
    int count = arrange(dims, call->tables.count, &in, &out, &item);
    uint8_t *straight =
        count == 0 && (int64_t)item == chain->nbytes && in == 0 ? call->out + out : NULL;
    uint8_t *keep = call->keeps ? call->keeps[nth].buf : NULL;
    if (keep) straight = keep;
    int64_t hull = wanted.stop - wanted.first;
    const Wanted *some = !keep && hull < chain->nbytes ? &wanted : NULL;
    const Wanted *span = call->spans && some && hull * 4 <= chain->nbytes ? some : NULL;
    const Wanted *few =
        some && !job->values && some->runs <= hull / (some->length + APART) ? some : NULL;
    const uint8_t *data = NULL, *made = NULL;
    int64_t size = 0, began;
    int code = fetch(call, job, chunk, nth, &worker->file, worker->scratch, some, span, few,
                     straight, &data, &size);
    if (code == ABSENT && call->fill) {
        for (int k = 0; k < count; k++) {
            dims[k].in_step = 0;
            dims[k].in_list = NULL;
        }
        size_t single = (size_t)chain->itemsize;
        if (item > single)
            dims[count++] = (Dim){(int64_t)(item / single), 0, (int64_t)single, NULL, NULL};
        copy(call->fill, call->out + out, dims, count, single);
        worker->absent++;
        return ABSENT;
    }
    if (code != DONE) return code;
    int plain = raw(chain);
    int64_t stored = !plain ? size : few ? few->runs * few->length : span ? hull : size;
    began = plain ? 0 : now();
    code = decode(chain, worker->scratch, data, size, !job->values, straight, some, &made);
    if (code != DONE) return code;
    if (!plain) worker->nanoseconds += now() - began;
    if (keep && made != keep) memcpy(keep, made, (size_t)chain->nbytes);
    if (keep || made != straight) copy(made + in, call->out + out, dims, count, item);
    worker->done++;
    worker->bytes += stored;
    return DONE;
}

/* -- all of them ------------------------------------------------------------------------ */

static void work(void *given, Scratch *scratch) {
    Call *call = given;
    Worker worker = {.scratch = scratch, .file = {.fd = -1}};
    int64_t at;
    while ((at = atomic_fetch_add(&call->next, call->grain)) < call->tasks) {
        int64_t stop = at + call->grain < call->tasks ? at + call->grain : call->tasks;
        int64_t low = 0, high = call->all;
        while (high - low > 1) {  /* the last job that begins at or before the first task */
            int64_t middle = low + (high - low) / 2;
            if (call->jobs[middle].before <= call->first + at) low = middle;
            else high = middle;
        }
        for (; at < stop; at++) {
            int64_t task = call->picked ? call->picked[at] : call->first + at;
            while (low + 1 < call->all && call->jobs[low + 1].before <= task) low++;
            const Job *job = &call->jobs[low];
            call->status[at] = (uint8_t)carry_out(call, job, task - job->before, at, &worker);
        }
    }
    if (worker.file.fd >= 0) close(worker.file.fd);
    atomic_fetch_add(&call->done, worker.done);
    atomic_fetch_add(&call->absent, worker.absent);
    atomic_fetch_add(&call->bytes, worker.bytes);
    atomic_fetch_add(&call->nanoseconds, worker.nanoseconds);
}

void run_all(Call *call, int threads) { in_threads(work, call, threads); }
