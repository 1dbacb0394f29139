/* What one thread works in. It frees what libraries keep there by their own functions, and knows none
   of them. */
#include "kernel.h"

#include <stdlib.h>
#include <string.h>

/* At least `size` bytes; what was in them is lost. NULL where there is no memory. */
uint8_t *room(Memory *memory, int64_t size) {
    size_t wanted = size > 0 ? (size_t)size : 1;
#ifdef TENSORSTASH_EXACT  /* for the sanitizers: a block of just this size, each time */
    free(memory->at);
    memory->at = NULL;
    memory->size = 0;
#endif
    if (memory->size < wanted) {
        free(memory->at);
        memory->at = malloc(wanted);
        memory->size = memory->at ? wanted : 0;
    }
    return memory->at;
}

static void free_context(Context *context) {
    if (context->at) context->free(context->at);
}

void release(Scratch *scratch) {
    free(scratch->stored.at);
    free(scratch->decoded.at);
    free(scratch->blocks.at);
    free_context(&scratch->decoder);
    for (int k = 0; k < MOST_ENCODERS; k++) free_context(&scratch->encoders[k]);
    memset(scratch, 0, sizeof *scratch);
}

/* Bytes that it keeps; a decoder keeps few. */
size_t held(const Scratch *scratch) {
    size_t size = scratch->stored.size + scratch->decoded.size + scratch->blocks.size;
    for (int k = 0; k < MOST_ENCODERS; k++) {
        const Context *context = &scratch->encoders[k];
        if (context->at) size += context->held(context->at);
    }
    return size;
}
