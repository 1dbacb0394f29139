/* Encoded chunks to files, as drivers/file/writing.py puts them where no condition is asked for: a
   file without a name is linked where nothing is yet, else a named one is renamed over what is there,
   while the folder's lock is shared. What is odd in any way is left to Python. */
#define _GNU_SOURCE
#include "batch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NAME_PART 32 /* of a file's name, in that of its temporary; as in partial.py */

/* -- locks that a child which is forked meanwhile must not keep -------------------------------- */

static atomic_int locked[MOST_THREADS]; /* descriptors, one more than they are; 0: none */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void let_go(void) {
    for (int k = 0; k < MOST_THREADS; k++) {
        int fd = atomic_exchange(&locked[k], 0);
        if (fd) close(fd - 1);
    }
}

static void prepare(void) { pthread_atfork(NULL, NULL, let_go); }

static atomic_int *note(int fd) {
    pthread_once(&once, prepare);
    for (int k = 0; k < MOST_THREADS; k++) {
        int none = 0;
        if (atomic_compare_exchange_strong(&locked[k], &none, fd + 1)) return &locked[k];
    }
    return NULL;
}

/* -- folders ----------------------------------------------------------------------------- */

/* Make the folder at `path`, and those above it. */
static void make_folder(char *path) {
    if (!mkdir(path, 0777) || errno != ENOENT) return;
    char *slash = strrchr(path, '/');
    if (!slash || slash == path) return;
    *slash = 0;
    make_folder(path);
    *slash = '/';
    mkdir(path, 0777);
}

static int open_folder(const char *path) {
    return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
}

static int enter(const Puts *puts, Home *home, int64_t folder) {
    if (home->fd >= 0 && home->folder == folder) return 1;
    leave(home);
    const char *path = puts->folders[folder];
    home->fd = open_folder(path);
    if (home->fd < 0 && errno == ENOENT) {
        char copy[LONGEST];
        size_t length = strlen(path);
        if (length >= sizeof copy) return 0;
        memcpy(copy, path, length + 1);
        make_folder(copy);
        home->fd = open_folder(path);
    }
    home->folder = folder;
    return home->fd >= 0;
}

void leave(Home *home) {
    if (home->fd >= 0) close(home->fd);
    home->fd = -1;
}

/* -- one file ---------------------------------------------------------------------------- */

static int fill_file(int fd, const uint8_t *data, int64_t size, int64_t stamp) {
    while (size > 0) {
        ssize_t done = write(fd, data, (size_t)size);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return 0;
        data += done;
        size -= done;
    }
    struct timespec at = {stamp / 1000000000, stamp % 1000000000};
    if (futimens(fd, (struct timespec[]){at, at})) return 0;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* a network file system tells at a close what it lost */
    return copy >= 0 && !close(copy);
}

/* Put where nothing is: 1, or 0 where that failed; then nothing was left. */
static int create(int home, const char *name, const uint8_t *data, int64_t size, int64_t stamp) {
#ifdef O_TMPFILE
    char link[64];
    int fd = openat(home, ".", O_WRONLY | O_TMPFILE | O_CLOEXEC, 0666);
    if (fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int put = fill_file(fd, data, size, stamp) &&
              !linkat(AT_FDCWD, link, home, name, AT_SYMLINK_FOLLOW);
    close(fd);
    return put;
#else
    (void)home, (void)name, (void)data, (void)size, (void)stamp;
    return 0;
#endif
}

/* Rename over what is there, unless somebody compares and renames there just now. */
static int commit(int home, const char *temporary, const char *name) {
    atomic_int *noted = note(home);
    if (!noted) return 0;
    int taken = !flock(home, LOCK_SH | LOCK_NB), put = 0;
    if (taken || errno != EWOULDBLOCK) /* else the file system has no locks */
        put = !renameat(home, temporary, home, name);
    if (taken) flock(home, LOCK_UN);
    atomic_store(noted, 0);
    return put;
}

static int replace(const Puts *puts, int home, const char *name, const uint8_t *data, int64_t size,
                   int64_t stamp) {
    char temporary[NAME_PART + 128];
    snprintf(temporary, sizeof temporary, ".%.*s.%.64s-%016" PRIx64 ".partial", NAME_PART, name,
             puts->writer, stamp);
    int fd = openat(home, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return 0;
    int filled = fill_file(fd, data, size, stamp);
    close(fd);
    if (filled && commit(home, temporary, name)) return 1;
    unlinkat(home, temporary, 0);
    return 0;
}

/* Whether the file of a task is in its place; else nothing was changed, and Python is to do it. */
int put_file(const Puts *puts, Home *home, int64_t folder, int64_t task, const uint8_t *data,
             int64_t size) {
    const char *name = puts->names[task];
    for (int attempt = 0; attempt < 2; attempt++) { /* the folder may have been deleted meanwhile */
        struct stat status;
        if (!enter(puts, home, folder)) return 0;
        if (fstatat(home->fd, name, &status, AT_SYMLINK_NOFOLLOW)) {
            if (errno != ENOENT) return 0;
            if (create(home->fd, name, data, size, puts->stamp + task)) return 1;
        } else if (!S_ISREG(status.st_mode)) {
            return 0;
        }
        if (replace(puts, home->fd, name, data, size, puts->stamp + task)) return 1;
        leave(home);
    }
    return 0;
}

int64_t monotonic(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* -- what Python hands over -------------------------------------------------------------- */

static const char **strings(PyObject *list, int64_t *count) {
    *count = PyList_Size(list);
    if (*count < 0) return NULL;
    const char **found = calloc((size_t)*count + 1, sizeof *found);
    if (!found) PyErr_NoMemory();
    for (int64_t k = 0; found && k < *count; k++) {
        char *text;
        if (PyBytes_AsStringAndSize(PyList_GetItem(list, (Py_ssize_t)k), &text, NULL)) {
            free(found);
            return NULL;
        }
        found[k] = text;
    }
    return found;
}

/* (folders, names, writer, stamp, nanoseconds), of `count` tasks. */
int take_puts(Puts *puts, PyObject *given, int64_t count) {
    PyObject *folders, *names, *writer;
    long long stamp, nanoseconds;
    int64_t named;
    if (!PyArg_ParseTuple(given, "OOOLL", &folders, &names, &writer, &stamp, &nanoseconds)) return 0;
    puts->writer = PyBytes_AsString(writer);
    if (!puts->writer) return 0;
    puts->folders = strings(folders, &puts->count);
    puts->names = puts->folders ? strings(names, &named) : NULL;
    if (!puts->names) return 0;
    if (named != count) return wrong("a name for each task");
    for (int64_t k = 0; k < named; k++)
        if (!*puts->names[k] || strchr(puts->names[k], '/')) return wrong("no name of a file");
    if (stamp < 0 || stamp > INT64_MAX - count || nanoseconds < 1) return wrong("no such time");
    puts->stamp = stamp;
    puts->until = monotonic() + nanoseconds;
    return 1;
}

void release_puts(Puts *puts) {
    free(puts->folders);
    free(puts->names);
}
