/* From a chunk to what is stored of it: many whole chunks, each gathered from an array by any strides
   and encoded to a place of its own. An encoder is taken from the very library that Python's codec
   calls, for another version's bytes may be others. */
#include "batch.h"

#include <dlfcn.h>
#include <limits.h>
#include <string.h>

#define BLOSC_OVERHEAD 16
#define LZ4_MOST 0x7E000000
#define ZLIB_MEMORY 8 /* as Python's own zlib has it */

/* -- the encoders ------------------------------------------------------------------------ */

typedef struct {
    void *(*create)(void);
    size_t (*free)(void *);
    size_t (*encode)(void *, void *, size_t, const void *, size_t);
    size_t (*bound)(size_t);
    size_t (*held)(const void *);
    unsigned (*error)(size_t);
    size_t (*set)(void *, int, int);
    size_t (*reset)(void *, int);
    const char *(*version)(void);
} Zstd;

static struct {
    int (*encode)(int, int, size_t, size_t, const void *, void *, size_t, const char *, size_t, int);
    const char *(*version)(void);
} blosc;

static struct {
    int (*begin)(Stream *, int, int, int, int, int, const char *, int);
    int (*encode)(Stream *, int);
    int (*end)(Stream *);
    const char *(*version)(void);
} zlib;

static struct {
    int (*encode)(const char *, char *, int, int, int);
    int (*bound)(int);
    const char *(*version)(void);
} lz4;

static Zstd zstd[MOST_ENCODERS]; /* for all frames but small ones, and for these */

static const char *const blosc_names[] = {"blosc_compress_ctx", "blosc_get_version_string"};
static const char *const zstd_names[] = {
    "ZSTD_createCCtx",    "ZSTD_freeCCtx", "ZSTD_compress2",         "ZSTD_compressBound",
    "ZSTD_sizeof_CCtx",   "ZSTD_isError",  "ZSTD_CCtx_setParameter", "ZSTD_CCtx_reset",
    "ZSTD_versionString"};
static const char *const zlib_names[] = {"deflateInit2_", "deflate", "deflateEnd", "zlibVersion"};
static const char *const lz4_names[] = {"LZ4_compress_fast", "LZ4_compressBound",
                                        "LZ4_versionString"};
static const char *const compressors[] = {"blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd"};

/* Take an encoder from the library at `path`, or where that is empty from what the interpreter
   itself brings; of this `version`, unless that is NULL. Returns its version; NULL: it is not there. */
const char *resolve_encoder(int which, const char *path, const char *version) {
    void *handle = dlopen(*path ? path : NULL, RTLD_NOW | RTLD_LOCAL);
    const char *found = NULL;
    if (!handle) return NULL;
#define TAKE(FAMILY, NAMES)                                                                  \
    {                                                                                        \
        if (FAMILY.encode) return FAMILY.version();                                          \
        __typeof__(FAMILY) taken;                                                            \
        if (take_family(handle, &taken, sizeof taken, NAMES)) {                              \
            found = taken.version();                                                         \
            if (version && strcmp(found, version)) found = NULL;                             \
            else FAMILY = taken;                                                             \
        }                                                                                    \
        break;                                                                               \
    }
    switch (which) {
    case ENCODES_BLOSC: TAKE(blosc, blosc_names)
    case ENCODES_ZSTD: TAKE(zstd[0], zstd_names)
    case ENCODES_SMALL_ZSTD: TAKE(zstd[1], zstd_names)
    case ENCODES_ZLIB: TAKE(zlib, zlib_names)
    case ENCODES_LZ4: TAKE(lz4, lz4_names)
    }
    if (!found) dlclose(handle);
    return found;
}

static int between(int64_t number, int64_t low, int64_t high) {
    return number >= low && number <= high;
}

/* Whether a step can be carried out, with the numbers that it has. */
int encodes(const Step *step) {
    const int64_t *n = step->numbers;
    switch (step->kind) {
    case CRC32C:
    case SWAP:
        return 1;
    case BLOSC: /* the compressor, its level, shuffle, bytes of a block and of an element */
        return blosc.encode && blosc.version()[0] == '1' && between(n[0], 0, 5) &&
               between(n[1], 0, 9) && between(n[2], 0, 2) && between(n[3], 0, INT_MAX) &&
               between(n[4], 1, INT_MAX);
    case ZSTD: /* level, checksum, whether the frame is small */
        return between(n[2], 0, 1) && zstd[n[2]].encode && between(n[0], -131072, 22) &&
               between(n[1], 0, 1);
    case GZIP: /* level; what level 0 stores depends on the room that there is */
    case ZLIB:
        return zlib.encode && zlib.version()[0] == '1' && !strstr(zlib.version(), "-ng") &&
               between(n[0], -1, 9) && n[0];
    case LZ4: /* acceleration */
        return lz4.encode && between(n[0], INT_MIN, INT_MAX);
    default:
        return 0;
    }
}

static int compresses(const Step *step) { return step->kind != SWAP && step->kind != CRC32C; }

/* The most bytes that a step makes of `size`; -1: it cannot take so many. */
static int64_t bound(const Step *step, int64_t size) {
    switch (step->kind) {
    case CRC32C:
        return size + 4;
    case BLOSC:
        return size > INT_MAX - BLOSC_OVERHEAD ? -1 : size + BLOSC_OVERHEAD;
    case ZSTD: {
        size_t most = zstd[step->numbers[2]].bound((size_t)size);
        return zstd[step->numbers[2]].error(most) ? -1 : (int64_t)most;
    }
    case GZIP:
    case ZLIB:
        return size > INT_MAX / 2 ? -1 : size + size / 8 + size / 64 + 64;
    case LZ4:
        return size > LZ4_MOST ? -1 : 4 + lz4.bound((int)size);
    default:
        return size;
    }
}

/* The bytes that a place must have for what a chain makes of a chunk; -1: it cannot. */
int64_t capacity(const Chain *chain) {
    int64_t size = chain->nbytes;
    for (int k = 0; k < chain->count && size >= 0; k++) size = bound(&chain->steps[k], size);
    return size;
}

static int64_t pack_zstd(Scratch *scratch, const Step *step, const uint8_t *data, int64_t size,
                         uint8_t *to, int64_t most) {
    const Zstd *library = &zstd[step->numbers[2]];
    Context *own = &scratch->encoders[step->numbers[2]];
    if (!own->at) *own = (Context){library->create(), library->free, library->held};
    void *context = own->at;
    if (!context) return FAILED;
    if (library->error(library->reset(context, 3 /* the session and all parameters */)) ||
        library->error(library->set(context, 100 /* the level */, (int)step->numbers[0])) ||
        library->error(library->set(context, 201 /* a checksum */, (int)step->numbers[1])))
        return FAILED;
    size_t made = library->encode(context, to, (size_t)most, data, (size_t)size);
    return library->error(made) ? FAILED : (int64_t)made;
}

static int64_t pack_zlib(const Step *step, const uint8_t *data, int64_t size, uint8_t *to,
                         int64_t most) {
    Stream stream;
    memset(&stream, 0, sizeof stream);
    if (zlib.begin(&stream, (int)step->numbers[0], 8 /* deflated */, step->kind == GZIP ? 31 : 15,
                   ZLIB_MEMORY, 0, zlib.version(), (int)sizeof stream))
        return FAILED;
    stream.next_in = data;
    stream.avail_in = (unsigned)size;
    stream.next_out = to;
    stream.avail_out = (unsigned)most;
    int ended = zlib.encode(&stream, 4 /* finish */) == 1 /* the end of the stream */;
    int64_t made = most - (int64_t)stream.avail_out;
    zlib.end(&stream);
    return ended ? made : FAILED;
}

static int64_t pack(Scratch *scratch, const Step *step, const uint8_t *data, int64_t size,
                    uint8_t *to) {
    int64_t most = bound(step, size);
    const int64_t *n = step->numbers;
    int made;
    switch (step->kind) {
    case BLOSC:
        made = blosc.encode((int)n[1], (int)n[2], (size_t)n[4], (size_t)size, data, to,
                            (size_t)most, compressors[n[0]], (size_t)n[3], 1);
        return made > 0 ? made : FAILED;
    case ZSTD:
        return pack_zstd(scratch, step, data, size, to, most);
    case LZ4:
        made = lz4.encode((const char *)data, (char *)to + 4, (int)size, (int)(most - 4), (int)n[0]);
        store32(to, (uint32_t)size);
        return made > 0 ? made + 4 : FAILED;
    default:
        return pack_zlib(step, data, size, to, most);
    }
}

/* -- one chunk --------------------------------------------------------------------------- */

/* The bytes that a chunk and what is put behind it take before it is compressed: -1 where it is
   compressed as it is. Sets whether anything compresses. */
static int64_t before(const Chain *chain, int *packed) {
    int64_t size = chain->nbytes;
    int changed = 0;
    *packed = 0;
    for (int k = 0; k < chain->count; k++) {
        if (compresses(&chain->steps[k])) {
            *packed = 1;
            break;
        }
        changed = 1;
        size = bound(&chain->steps[k], size);
    }
    return changed || !*packed ? size : -1;
}

static int all_fill(const uint8_t *chunk, const Chain *chain, const uint8_t *fill) {
    size_t item = (size_t)chain->itemsize, rest = (size_t)chain->nbytes - item;
    return !memcmp(chunk, fill, item) && !memcmp(chunk, chunk + item, rest);
}

/* What becomes of the chunk in `data`, in `slot`: its size, or FAILED. Steps before the one that
   compresses change `data`, which then has room for them. */
static int64_t pack_all(const Chain *chain, Scratch *scratch, uint8_t *data, uint8_t *slot) {
    int64_t size = chain->nbytes;
    for (int k = 0; k < chain->count && size >= 0; k++) {
        const Step *step = &chain->steps[k];
        if (step->kind == SWAP) {
            swap(data, size, step->size);
        } else if (step->kind == CRC32C) {
            store32(data + size, crc32c(data, (size_t)size));
            size += 4;
        } else {
            size = pack(scratch, step, data, size, slot);
            data = slot;
        }
    }
    return size > chain->most ? FAILED : size;
}

static int64_t carry_out(const Encoding *call, int64_t k, Scratch *scratch, Home *home) {
    const Chain *chain = &call->chain;
    const int64_t *task = call->tasks + k * (1 + call->tables.count);
    Dim dims[MOST_DIMS];
    int64_t from = 0, to = 0, elements = 1;
    size_t item = (size_t)chain->itemsize;
    for (int g = 0; g < call->tables.count; g++) {
        const Group *group = &call->tables.groups[g];
        const int64_t *row = group->what + task[1 + g] * ROW;
        dims[g] = (Dim){row[0], row[4], row[2],
                        row[6] < 0 ? NULL : group->lists + group->listed + row[6],
                        row[5] < 0 ? NULL : group->lists + row[5]};
        to += row[1];
        from += row[3];
        if (__builtin_mul_overflow(elements, row[0], &elements)) return FAILED;
    }
    int count = arrange(dims, call->tables.count, &from, &to, &item);
    int packed;
    int64_t own = before(chain, &packed);
    int as_it_lies = !count && (int64_t)item == chain->nbytes; /* one run of the array */
    uint8_t *slot = NULL, *chunk = NULL;
    if (!call->puts_files) slot = call->out + task[0];
    else if (as_it_lies && !chain->count) own = -1;
    else if (!(slot = room(&scratch->stored, call->place))) return FAILED;
    if (own >= 0 || !as_it_lies) {
        chunk = packed ? room(&scratch->decoded, own < 0 ? chain->nbytes : own) : slot;
        if (!chunk) return FAILED;
        if (elements < chain->nbytes / chain->itemsize) {
            Dim all = {chain->nbytes / chain->itemsize, 0, chain->itemsize, NULL, NULL};
            copy(call->fill, chunk, &all, 1, (size_t)chain->itemsize);
        }
        copy(call->source + from, chunk + to, dims, count, item);
    } else {
        chunk = (uint8_t *)call->source + from; /* it is compressed from where it lies */
    }
    if (!call->keep && all_fill(chunk, chain, call->fill)) return ALL_FILL;
    int64_t size = pack_all(chain, scratch, chunk, slot);
    if (size < 0 || !call->puts_files) return size;
    return put_file(&call->puts, home, task[0], k, packed ? slot : chunk, size) ? size : FAILED;
}

static void work(void *given, Scratch *scratch) {
    Encoding *call = given;
    Home home = {-1, -1};
    int64_t at;
    while ((at = atomic_fetch_add(call->next, call->grain)) < call->count) {
        int64_t stop = at + call->grain < call->count ? at + call->grain : call->count;
        for (; at < stop; at++) {
            call->sizes[at] = carry_out(call, at, scratch, &home);
            call->done += call->sizes[at] >= 0;
        }
        if (call->puts_files && monotonic() > call->puts.until) break;
    }
    leave(&home);
}

void encode_all(Encoding *encoding) { in_threads(work, encoding, 1); }
