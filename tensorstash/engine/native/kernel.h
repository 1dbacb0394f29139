/* What the files of the kernel share. No header but Python's and the system's is needed: the
   decoders are found at run time, in libraries that are installed already. */
#ifndef TENSORSTASH_KERNEL_H
#define TENSORSTASH_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#define MOST_DIMS 64  /* NumPy's own limit */
#define MOST_STEPS 16
#define MOST_NUMBERS 5 /* that say how a step encodes */
#define MOST_FAMILY 16
#define MOST_PARTS 64
#define MOST_ENCODERS 2 /* of Zstandard: for all frames but small ones, and for these */

/* What became of a task. All but DONE and ABSENT are carried out again in Python, which says what
   is wrong in its own words. */
enum { AGAIN, DONE, ABSENT, UNOPENED, CHANGED, SHORT, TOO_LARGE, CHECKSUM, SIZE, DAMAGED, NO_MEMORY };

/* One step of a chain. A new filter is a row here, a row in steps.py, and a function in steps.c. */
enum { CRC32C, BLOSC, ZSTD, GZIP, ZLIB, LZ4, SWAP, KINDS };

/* What the bytes of an encoder are of: small frames of zstd come from a library of their own. */
enum { ENCODES_BLOSC, ENCODES_ZSTD, ENCODES_SMALL_ZSTD, ENCODES_ZLIB, ENCODES_LZ4 };

typedef struct {
    int kind;
    int64_t size;  /* of a decoder: the bytes that come out; of SWAP: those of a number */
    int64_t numbers[MOST_NUMBERS];
} Step;

typedef struct {
    Step steps[MOST_STEPS];  /* outermost first; to encode, innermost first */
    int count;
    int64_t nbytes;    /* of a chunk in memory */
    int64_t most;      /* that a stored chunk may have */
    int64_t itemsize;
} Chain;

typedef struct {
    uint8_t *at;
    size_t size;
} Memory;

/* What a library keeps from call to call, and that library's functions. */
typedef struct {
    void *at;
    size_t (*free)(void *);
    size_t (*held)(const void *);
} Context;

/* What one thread works in, from chunk to chunk. */
typedef struct {
    Memory stored, decoded, blocks;
    Context decoder, encoders[MOST_ENCODERS];
    int some;  /* of the stored chunk not all was read */
} Scratch;

/* zlib's own structure: its layout has been the same since version 1.0. */
typedef struct {
    const uint8_t *next_in;
    unsigned avail_in;
    unsigned long total_in;
    uint8_t *next_out;
    unsigned avail_out;
    unsigned long total_out;
    const char *msg;
    void *state, *zalloc, *zfree, *opaque;
    int data_type;
    unsigned long adler, reserved;
} Stream;

/* Bytes of a chunk that are wanted, and single runs of them where there are few. */
typedef struct {
    int64_t first, stop;
    const int64_t *starts;  /* of `runs` runs of `length` bytes from `base`; NULL: all of it */
    int64_t step;           /* between the runs, where there is no list */
    int64_t runs, base, length;
} Wanted;

/* A dimension of a box: `n` elements, by steps or by lists of offsets, in bytes. */
typedef struct {
    int64_t n, in_step, out_step;
    const int64_t *in_list, *out_list;
} Dim;

/* A number as digits, of a name; how many. Here, as a call would cost as much as they do. */
static inline int digits_of(int64_t value, char digits[24]) {
    uint64_t number = (uint64_t)value;
    char turned[24];
    int n = 0;
    do turned[n++] = (char)('0' + number % 10);
    while (number /= 10);
    for (int k = 0; k < n; k++) digits[k] = turned[n - 1 - k];
    return n;
}

uint8_t *room(Memory *memory, int64_t size);
void release(Scratch *scratch);
size_t held(const Scratch *scratch);

int decode(const Chain *chain, Scratch *scratch, const uint8_t *data, int64_t size, int writable,
           uint8_t *straight, const Wanted *wanted, const uint8_t **chunk);
int partial(const Chain *chain);
int parts(const Chain *chain, const uint8_t *data, int64_t head, int64_t size,
          const Wanted *wanted, int64_t (*extents)[2]);
int resolve(const char *path);
int resolved(int kind);
int take_family(void *handle, void *to, size_t size, const char *const *names);
void store32(uint8_t *at, uint32_t value);
void swap(uint8_t *at, int64_t size, int64_t width);

int64_t capacity(const Chain *chain);
const char *resolve_encoder(int which, const char *path, const char *version);
int encodes(const Step *step);

int arrange(Dim *dims, int count, int64_t *in, int64_t *out, size_t *item);
void copy(const uint8_t *in, uint8_t *out, const Dim *dims, int count, size_t item);

uint32_t crc32c(const uint8_t *data, size_t size);

#endif
