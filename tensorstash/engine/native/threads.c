/* Threads that exist only while a call lasts, of which a process has no more than processors; and what
   a thread works in, kept from call to call. */
#include "batch.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define KEPT (32 << 20) /* bytes of scratch that a thread keeps from call to call */

static pthread_key_t own_key;
static pthread_once_t own_once = PTHREAD_ONCE_INIT;
static int has_own;

static void drop_own(void *scratch) {
    release(scratch);
    free(scratch);
}

static void make_own(void) { has_own = pthread_key_create(&own_key, drop_own) == 0; }

static atomic_int running, processors = MOST_THREADS;

void threads_at_most(int most) { atomic_store(&processors, most); }

/* In a forked child none runs. */
void forget_threads(void) { atomic_store(&running, 0); }

/* The caller runs, and `wanted` helpers may as well, or as many as there are processors free: calls of
   many threads of the caller's have no more threads together. Nobody waits for one. */
static int begin_threads(int wanted) {
    int now = atomic_fetch_add(&running, 1) + 1, most = atomic_load(&processors), taken;
    do {
        taken = wanted < most - now ? wanted : most - now;
        if (taken <= 0) return 0;
    } while (!atomic_compare_exchange_weak(&running, &now, now + taken));
    return taken;
}

typedef struct {
    void (*work)(void *, Scratch *);
    void *call;
} Work;

static void *helper(void *given) {
    const Work *todo = given;
    Scratch scratch;
    memset(&scratch, 0, sizeof scratch);
    todo->work(todo->call, &scratch);
    release(&scratch);
    atomic_fetch_sub(&running, 1);
    return NULL;
}

static _Atomic size_t most_kept = KEPT;

void keep_at_most(int64_t size) { atomic_store(&most_kept, size > 0 ? (size_t)size : 0); }

/* Have `work` done by so many threads, the caller's among them; what they take in turns is theirs. */
void in_threads(void (*work)(void *, Scratch *), void *call, int threads) {
    pthread_t helpers[MOST_THREADS];
    Work todo = {work, call};
    int begun = 0;
    int most = begin_threads(threads - 1);
    if (most > 0) {
        sigset_t all, before;
        sigfillset(&all);  /* signals are for Python's threads, but for those of a crash */
        sigdelset(&all, SIGSEGV);
        sigdelset(&all, SIGBUS);
        sigdelset(&all, SIGFPE);
        sigdelset(&all, SIGILL);
        sigdelset(&all, SIGABRT);
        pthread_sigmask(SIG_BLOCK, &all, &before);
        while (begun < most && !pthread_create(&helpers[begun], NULL, helper, &todo)) begun++;
        atomic_fetch_sub(&running, most - begun);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_once(&own_once, make_own);
    Scratch *scratch = has_own ? pthread_getspecific(own_key) : NULL;
    Scratch own;
    if (!scratch && has_own) {
        scratch = calloc(1, sizeof *scratch);
        if (scratch && pthread_setspecific(own_key, scratch)) {
            free(scratch);
            scratch = NULL;
        }
    }
    if (scratch) {
        work(call, scratch);
        if (held(scratch) > atomic_load(&most_kept)) release(scratch);
    } else {
        memset(&own, 0, sizeof own);
        work(call, &own);
        release(&own);
    }
    atomic_fetch_sub(&running, 1);
    while (begun) pthread_join(helpers[--begun], NULL);
}
