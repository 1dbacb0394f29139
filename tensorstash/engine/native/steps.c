/* From stored bytes to a chunk: one function a kind of step, each of which believes no number that
   it reads before it has compared it with what is there. */
#include "kernel.h"

#include <dlfcn.h>
#include <limits.h>
#include <string.h>

#define EXPANSION 32768 /* as in codecs/streams.py: no byte of a format here becomes more */
#define HEADER 16       /* of a Blosc buffer */
#define BLOCK 131072    /* Zstandard's largest block */
#define FED 16384       /* compressed bytes that are decoded at a time, where not all are wanted */

/* Families of functions, each from one library: what one makes, another takes. */
static struct {
    struct {
        int (*decode)(const void *, void *, size_t, int);
        const char *(*version)(void);
    } blosc;
    struct {
        void *(*create)(void);
        size_t (*free)(void *);
        size_t (*decode)(void *, void *, size_t, const void *, size_t);
        unsigned long long (*content)(const void *, size_t);
        size_t (*frame)(const void *, size_t);
        unsigned (*error)(size_t);
        size_t (*stream)(void *, void *, void *);
        size_t (*set)(void *, int, int);
        size_t (*reset)(void *, int);
    } zstd;
    struct {
        int (*decode)(const char *, char *, int, int);
    } lz4;
    struct {
        int (*begin)(Stream *, int, const char *, int);
        int (*decode)(Stream *, int);
        int (*end)(Stream *);
        const char *(*version)(void);
    } zlib;
} library;

static const char *const blosc_names[] = {"blosc_decompress_ctx", "blosc_get_version_string"};
static const char *const zstd_names[] = {
    "ZSTD_createDCtx",          "ZSTD_freeDCtx",
    "ZSTD_decompressDCtx",      "ZSTD_getFrameContentSize",
    "ZSTD_findFrameCompressedSize", "ZSTD_isError",
    "ZSTD_decompressStream",    "ZSTD_DCtx_setParameter",
    "ZSTD_DCtx_reset"};
static const char *const lz4_names[] = {"LZ4_decompress_safe"};
static const char *const zlib_names[] = {"inflateInit2_", "inflate", "inflateEnd", "zlibVersion"};

/* Take a family of `size` bytes of functions from one library: all of them, or nothing. */
int take_family(void *handle, void *to, size_t size, const char *const *names) {
    void *found[MOST_FAMILY];
    size_t count = size / sizeof *found;
    for (size_t k = 0; k < count; k++)
        if (!(found[k] = dlsym(handle, names[k]))) return 0;
    memcpy(to, found, size);
    return 1;
}

#define TAKE(FAMILY)                                                                         \
    if (!library.FAMILY.decode) take_family(handle, &library.FAMILY, sizeof library.FAMILY, FAMILY##_names)

/* Take from the library at `path`, which is loaded already, the families that are not known yet. */
int resolve(const char *path) {
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (!handle) return -1;
    TAKE(blosc);
    TAKE(zstd);
    TAKE(lz4);
    TAKE(zlib);
    return 0; /* the handle stays open: the module is there for as long as the process */
}

int resolved(int kind) {
    switch (kind) {
    case BLOSC:  /* of Blosc 2, the function of that name takes other arguments */
        return library.blosc.decode && library.blosc.version()[0] == '1';
    case ZSTD:
        return library.zstd.decode != NULL;
    case GZIP:
    case ZLIB:
        return library.zlib.decode && library.zlib.version()[0] == '1';
    case LZ4:
        return library.lz4.decode != NULL;
    default:
        return 1;
    }
}

static uint32_t load32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

void store32(uint8_t *at, uint32_t value) {
    for (int k = 0; k < 4; k++) at[k] = (uint8_t)(value >> (8 * k));
}

static int check_crc32c(const uint8_t *data, int64_t *size) {
    if (*size < 4) return CHECKSUM;
    *size -= 4;
    return load32(data + *size) == crc32c(data, (size_t)*size) ? DONE : CHECKSUM;
}

/* Blosc cuts a chunk into blocks that are compressed one by one; a run of them behind a header of
   its own is a Blosc buffer. Here is which of them are wanted, where that is at most half. */
typedef struct {
    int64_t block, count, from, to; /* `to` 0: those of each run of what is wanted */
} Blocks;

static int blosc_cut(const uint8_t *data, int64_t total, const Wanted *wanted, Blocks *blocks) {
    int64_t block = load32(data + 8);
    if (!wanted || data[2] & 2 || block <= 0 || block >= total) return 0;
    int64_t count = (total + block - 1) / block;
    *blocks = (Blocks){block, count, wanted->first / block, (wanted->stop + block - 1) / block};
    if (2 * (blocks->to - blocks->from) <= count) return 1;
    blocks->to = 0;
    if (wanted->runs < 2 || 2 * wanted->runs > count) return 0;
    for (int64_t k = 0; k < wanted->runs; k++) {
        int64_t at = wanted->base + (wanted->starts ? wanted->starts[k] : k * wanted->step);
        int64_t low = at / block, high = (at + wanted->length + block - 1) / block;
        if (high - low > 1 + count / (4 * wanted->runs)) return 0;
    }
    return 1;
}

/* The next run of blocks, from `low` to `high`; `k` counts, from 0. */
static int blosc_next(const Blocks *blocks, const Wanted *wanted, int64_t *k, int64_t *low,
                      int64_t *high) {
    if (blocks->to) {
        *low = blocks->from;
        *high = blocks->to;
        return !(*k)++;
    }
    int64_t from = *k ? *low : -1, to = *k ? *high : -1;
    while (*k < wanted->runs) {
        int64_t i = (*k)++;
        int64_t at = wanted->base + (wanted->starts ? wanted->starts[i] : i * wanted->step);
        *low = at / blocks->block;
        *high = (at + wanted->length + blocks->block - 1) / blocks->block;
        if (*low < from || *high > to) return 1; /* not the blocks of the run before */
    }
    return 0;
}

/* Where blocks `from` to `to` are stored; `from` may become less. */
static int blosc_extent(const uint8_t *data, int64_t size, int64_t total, const Blocks *blocks,
                        int64_t *from, int64_t to, int64_t *first, int64_t *stop) {
    int64_t count = blocks->count;
    if (total % blocks->block && *from == count - 1) --*from; /* a last, shorter one cannot stand alone */
    if (*from < 0) return 0;
    int64_t before = *first = load32(data + HEADER + 4 * *from);
    *stop = to < count ? (int64_t)load32(data + HEADER + 4 * to) : size;
    if (*first < HEADER + 4 * count || *stop > size) return 0;
    for (int64_t k = *from + 1; k <= to; k++) {  /* in order, or they are not each other's ends */
        int64_t next = k < to ? (int64_t)load32(data + HEADER + 4 * k) : *stop;
        if (next <= before) return 0;
        before = next;
    }
    return 1;
}

/* Blocks `from` to `to`, not all of them, to their places. */
static int blosc_blocks(Scratch *scratch, const uint8_t *data, int64_t size, uint8_t *out,
                        int64_t total, const Blocks *blocks, int64_t from, int64_t to) {
    int64_t first, stop, block = blocks->block;
    if (!blosc_extent(data, size, total, blocks, &from, to, &first, &stop)) return AGAIN;
    int64_t head = HEADER + 4 * (to - from), body = stop - first;
    uint8_t *some = room(&scratch->blocks, head + body);
    if (!some) return NO_MEMORY;
    int64_t low = from * block, high = to * block < total ? to * block : total;
    memcpy(some, data, 4);
    store32(some + 4, (uint32_t)(high - low));
    store32(some + 8, (uint32_t)block);
    store32(some + 12, (uint32_t)(head + body));
    for (int64_t k = from; k < to; k++)
        store32(some + HEADER + 4 * (k - from),
                (uint32_t)(load32(data + HEADER + 4 * k) - first + head));
    memcpy(some + head, data + first, (size_t)body);
    int made = library.blosc.decode(some, out + low, (size_t)(high - low), 1);
    return made == high - low ? DONE : AGAIN;
}

static int blosc_some(Scratch *scratch, const uint8_t *data, int64_t size, uint8_t *out,
                      int64_t total, const Wanted *wanted) {
    Blocks blocks;
    int64_t k = 0, low, high;
    if (!blosc_cut(data, total, wanted, &blocks) || size < HEADER + 4 * blocks.count) return AGAIN;
    while (blosc_next(&blocks, wanted, &k, &low, &high)) {
        int code = blosc_blocks(scratch, data, size, out, total, &blocks, low, high);
        if (code != DONE) return code;
    }
    return DONE;
}

/* Which extents of a stored chunk of `size` bytes hold the blocks that are wanted, told from its
   first `head` bytes; -1 where all of it is to be read. */
int parts(const Chain *chain, const uint8_t *data, int64_t head, int64_t size,
          const Wanted *wanted, int64_t (*extents)[2]) {
    Blocks blocks;
    int64_t total = chain->nbytes, k = 0, low, high, together = 0;
    if (!partial(chain) || head < HEADER || load32(data + 12) != (uint64_t)size ||
        load32(data + 4) != (uint64_t)total || !blosc_cut(data, total, wanted, &blocks) ||
        head < HEADER + 4 * blocks.count)
        return -1;
    int count = 0;
    while (blosc_next(&blocks, wanted, &k, &low, &high)) {
        int64_t from = low;
        if (count == MOST_PARTS || !blosc_extent(data, size, total, &blocks, &from, high,
                                                 &extents[count][0], &extents[count][1]))
            return -1;
        together += extents[count][1] - extents[count][0];
        count++;
    }
    return 2 * together <= size ? count : -1;
}

/* Whether part of a stored chunk may do: one that no checksum is of. */
int partial(const Chain *chain) {
    return chain->count == 1 && chain->steps[0].kind == BLOSC &&
           chain->steps[0].size == chain->nbytes;
}

static int unblosc(Scratch *scratch, const uint8_t *data, int64_t size, uint8_t *out,
                   int64_t total, const Wanted *wanted) {
    if (size < HEADER || total > INT_MAX) return SIZE;
    int64_t claimed = load32(data + 4);
    if (load32(data + 12) != (uint64_t)size || claimed != total || total > size * EXPANSION)
        return SIZE;
    if (!total || !data[3]) return DAMAGED;
    int code = blosc_some(scratch, data, size, out, total, wanted);
    if (code != AGAIN || scratch->some) return code; /* the rest was not read */
    return library.blosc.decode(data, out, (size_t)total, 1) == total ? DONE : DAMAGED;
}

/* The first `stop` bytes of a frame, straight into `out`, which has room for all of them. */
static int zstd_start(void *context, const uint8_t *data, int64_t size, uint8_t *out,
                      int64_t total, int64_t stop) {
    struct {
        const void *at;
        size_t size, done;
    } in = {data, 0, 0};
    struct {
        void *at;
        size_t size, done;
    } to = {out, (size_t)total, 0};
    if (library.zstd.error(library.zstd.reset(context, 1 /* the session */)) ||
        library.zstd.error(library.zstd.set(context, 1001 /* the output stays where it is */, 1)))
        return AGAIN;
    int code = DAMAGED;
    while ((int64_t)in.size < size || in.done < in.size) {
        if (in.done == in.size) {
            int64_t more = size - (int64_t)in.size;
            in.size += (size_t)(more < FED ? more : FED);
            if ((int64_t)in.size == size && !in.done) return AGAIN; /* it is short: decode it all */
        }
        size_t before = in.done, made = to.done;
        if (library.zstd.error(library.zstd.stream(context, &to, &in))) break;
        if ((int64_t)to.done >= stop) {
            code = DONE;
            break;
        }
        if (in.done == before && to.done == made) break;
    }
    library.zstd.reset(context, 1);
    return code;
}

static int unzstd(Scratch *scratch, const uint8_t *data, int64_t size, uint8_t *out, int64_t total,
                  const Wanted *wanted) {
    if (library.zstd.content(data, (size_t)size) != (unsigned long long)total) return SIZE;
    if (!total || total > size * EXPANSION) return SIZE;
    Context *context = &scratch->decoder;
    if (!context->at) *context = (Context){library.zstd.create(), library.zstd.free, NULL};
    if (!context->at) return NO_MEMORY;
    /* As in codecs/zstd.py: what comes after the last byte wanted is left out, where it is much. */
    int checked = size < 5 || data[4] & 4; /* a frame's own checksum stands at its end */
    if (wanted && !checked && total > 2 * BLOCK && 5 * wanted->stop <= 3 * total) {
        int code = zstd_start(context->at, data, size, out, total, wanted->stop);
        if (code != AGAIN) return code;
    }
    if (library.zstd.frame(data, (size_t)size) != (size_t)size) return DAMAGED;
    size_t made = library.zstd.decode(context->at, out, (size_t)total, data, (size_t)size);
    return made == (size_t)total ? DONE : DAMAGED;
}

/* A zlib stream, or a gzip file of one member. */
static int uninflate(const uint8_t *data, int64_t size, uint8_t *out, int64_t total, int bits) {
    if (size > INT_MAX || total > INT_MAX) return SIZE;
    Stream stream;
    memset(&stream, 0, sizeof stream);
    if (library.zlib.begin(&stream, bits, library.zlib.version(), (int)sizeof stream))
        return NO_MEMORY;
    stream.next_in = data;
    stream.avail_in = (unsigned)size;
    stream.next_out = out;
    stream.avail_out = (unsigned)total;
    int ended = library.zlib.decode(&stream, 4 /* finish */) == 1 /* the end of the stream */;
    int whole = !stream.avail_in && !stream.avail_out;
    library.zlib.end(&stream);
    return ended && whole ? DONE : DAMAGED;
}

static int unlz4(const uint8_t *data, int64_t size, uint8_t *out, int64_t total) {
    if (size < 4 || size > INT_MAX || total > INT_MAX) return SIZE;
    if (load32(data) != (uint64_t)total || !total || total > size * EXPANSION) return SIZE;
    int made = library.lz4.decode((const char *)data + 4, (char *)out, (int)(size - 4), (int)total);
    return made == total ? DONE : DAMAGED;
}

void swap(uint8_t *at, int64_t size, int64_t width) {
    switch (width) {
    case 2:
        for (int64_t k = 0; k + 2 <= size; k += 2) {
            uint16_t x;
            memcpy(&x, at + k, 2);
            x = (uint16_t)(x << 8 | x >> 8);
            memcpy(at + k, &x, 2);
        }
        break;
    case 4:
        for (int64_t k = 0; k + 4 <= size; k += 4) {
            uint32_t x;
            memcpy(&x, at + k, 4);
            x = __builtin_bswap32(x);
            memcpy(at + k, &x, 4);
        }
        break;
    case 8:
        for (int64_t k = 0; k + 8 <= size; k += 8) {
            uint64_t x;
            memcpy(&x, at + k, 8);
            x = __builtin_bswap64(x);
            memcpy(at + k, &x, 8);
        }
        break;
    default:
        for (int64_t k = 0; k + width <= size; k += width)
            for (int64_t i = 0; i < width / 2; i++) {
                uint8_t x = at[k + i];
                at[k + i] = at[k + width - 1 - i];
                at[k + width - 1 - i] = x;
            }
    }
}

/* The chunk that `data` holds, of which `wanted` at least is right. It is in `straight`, where that
   is given and the chain can write there, else in the scratch or in `data` itself; `writable` says
   that this may be changed. */
int decode(const Chain *chain, Scratch *scratch, const uint8_t *data, int64_t size, int writable,
           uint8_t *straight, const Wanted *wanted, const uint8_t **chunk) {
    for (int k = 0; k < chain->count; k++) {
        const Step *step = &chain->steps[k];
        int code = DONE;
        if (step->kind == CRC32C) {
            code = check_crc32c(data, &size);
        } else if (step->kind == SWAP) {
            if (size != chain->nbytes) return SIZE;
            int64_t first = wanted ? wanted->first : 0, stop = wanted ? wanted->stop : size;
            uint8_t *at = (uint8_t *)data;
            if (!writable) {
                at = room(&scratch->decoded, size);
                if (!at) return NO_MEMORY;
                memcpy(at + first, data + first, (size_t)(stop - first));
            }
            swap(at + first, stop - first, step->size);
            data = at;
            writable = 1;
        } else {
            int64_t total = step->size;
            int inner = total == chain->nbytes;
            uint8_t *out = inner && straight ? straight : room(&scratch->decoded, total);
            if (!out) return NO_MEMORY;
            switch (step->kind) {
            case BLOSC:
                code = unblosc(scratch, data, size, out, total, inner ? wanted : NULL);
                break;
            case ZSTD:
                code = unzstd(scratch, data, size, out, total, inner ? wanted : NULL);
                break;
            case GZIP:
                code = uninflate(data, size, out, total, 31);
                break;
            case ZLIB:
                code = uninflate(data, size, out, total, 15);
                break;
            default:
                code = unlz4(data, size, out, total);
            }
            data = out;
            size = total;
            writable = 1;
        }
        if (code != DONE) return code;
    }
    if (size != chain->nbytes) return SIZE;
    *chunk = data;
    return DONE;
}
