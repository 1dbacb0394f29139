/* The steps that chunks go through, as Python hands them over: those that can be carried out. */
#include "batch.h"

#include <string.h>

static int take_step(Step *step, const Chain *chain, PyObject *given, int encoding) {
    int64_t numbers[2 + MOST_NUMBERS] = {0};
    Py_ssize_t count = PyTuple_Check(given) ? PyTuple_Size(given) : -1;
    if (count < 2 || count > (encoding ? 2 + MOST_NUMBERS : 2)) return wrong("no such step");
    if (!integers(given, numbers, count)) return 0;
    if (numbers[0] < 0 || numbers[0] >= KINDS || numbers[1] < 0) return wrong("no such step");
    step->kind = (int)numbers[0];
    step->size = numbers[1];
    memcpy(step->numbers, numbers + 2, sizeof step->numbers);
    if (!(encoding ? encodes(step) : resolved(step->kind))) return wrong("no such step");
    if (step->kind == SWAP && (step->size < 1 || chain->itemsize % step->size))
        return wrong("no such number");
    return 1;
}

/* Steps outermost first; to encode, innermost first. */
int take_chain(Chain *chain, PyObject *given, int encoding) {
    PyObject *steps;
    long long nbytes, most, itemsize;
    if (!PyArg_ParseTuple(given, "OLLL", &steps, &nbytes, &most, &itemsize)) return 0;
    Py_ssize_t count = PyTuple_Check(steps) ? PyTuple_Size(steps) : -1;
    if (count < 0 || count > MOST_STEPS) return wrong("a tuple of at most 16 steps");
    if (itemsize < 1 || nbytes < itemsize || nbytes % itemsize || most < 0 ||
        nbytes > INT64_MAX / 8)
        return wrong("no size of a chunk");
    chain->nbytes = nbytes;
    chain->most = most;
    chain->itemsize = itemsize;
    chain->count = (int)count;
    int compressors = 0; /* they share a buffer */
    for (Py_ssize_t k = 0; k < count; k++) {
        Step *step = &chain->steps[k];
        if (!take_step(step, chain, PyTuple_GetItem(steps, k), encoding)) return 0;
        if (step->kind != SWAP && step->kind != CRC32C && compressors++)
            return wrong("more than one that compresses");
        if (encoding && step->kind == SWAP && k) return wrong("numbers are swapped first");
    }
    return 1;
}
