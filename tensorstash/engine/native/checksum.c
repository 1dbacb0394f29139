/* CRC-32C (RFC 3720): the processor's own instruction where it has one, else tables. */
#include "kernel.h"

#include <string.h>

static uint32_t table[8][256];

static uint64_t load(const uint8_t *at) {  /* little-endian, whatever the machine is */
    uint64_t value = 0;
    for (int k = 7; k >= 0; k--) value = value << 8 | at[k];
    return value;
}

/* Before any thread needs them: a constructor runs once, when the module is loaded. */
__attribute__((constructor)) static void fill_table(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
        table[0][n] = c;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 1; k < 8; k++)
            table[k][n] = table[k - 1][n] >> 8 ^ table[0][table[k - 1][n] & 255];
}

static uint32_t by_table(uint32_t crc, const uint8_t *at, size_t size) {
    for (; size >= 8; at += 8, size -= 8) {
        uint64_t x = load(at) ^ crc;
        crc = 0;
        for (int k = 0; k < 8; k++) crc ^= table[7 - k][x >> (8 * k) & 255];
    }
    while (size--) crc = crc >> 8 ^ table[0][(crc ^ *at++) & 255];
    return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define LONG 8192 /* bytes of each of three runs that the processor works on side by side */

static uint32_t past[4][256]; /* by byte of a sum: the same after LONG zeros */

static uint32_t times(const uint32_t *matrix, uint32_t vector) {
    uint32_t sum = 0;
    for (; vector; vector >>= 1, matrix++)
        if (vector & 1) sum ^= *matrix;
    return sum;
}

__attribute__((constructor)) static void fill_past(void) {
    uint32_t some[32] = {0x82f63b78u}, more[32]; /* one zero bit, as a matrix over bits */
    for (int k = 1; k < 32; k++) some[k] = 1u << (k - 1);
    for (int bits = 1; bits < LONG * 8; bits *= 2) {
        for (int k = 0; k < 32; k++) more[k] = times(some, some[k]);
        memcpy(some, more, sizeof some);
    }
    for (int k = 0; k < 4; k++)
        for (uint32_t n = 0; n < 256; n++) past[k][n] = times(some, n << (8 * k));
}

static uint64_t shift(uint64_t crc) {
    return past[0][crc & 255] ^ past[1][crc >> 8 & 255] ^ past[2][crc >> 16 & 255] ^
           past[3][crc >> 24 & 255];
}

__attribute__((target("sse4.2"))) static uint32_t by_processor(uint32_t crc, const uint8_t *at,
                                                               size_t size) {
    uint64_t c = crc, x, y, z;
    for (; size >= 3 * LONG; at += 3 * LONG, size -= 3 * LONG) {
        uint64_t d = 0, e = 0;
        for (size_t k = 0; k < LONG; k += 8) {
            memcpy(&x, at + k, 8);
            memcpy(&y, at + LONG + k, 8);
            memcpy(&z, at + 2 * LONG + k, 8);
            c = __builtin_ia32_crc32di(c, x);
            d = __builtin_ia32_crc32di(d, y);
            e = __builtin_ia32_crc32di(e, z);
        }
        c = shift(shift(c) ^ d) ^ e;
    }
    for (; size >= 8; at += 8, size -= 8) {
        memcpy(&x, at, 8);
        c = __builtin_ia32_crc32di(c, x);
    }
    crc = (uint32_t)c;
    while (size--) crc = __builtin_ia32_crc32qi(crc, *at++);
    return crc;
}
#endif

uint32_t crc32c(const uint8_t *data, size_t size) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("sse4.2")) return ~by_processor(~0u, data, size);
#endif
    return ~by_table(~0u, data, size);
}
