// Makes file system calls fail from the n-th on, or kills the process at the n-th: loaded with LD_PRELOAD by
// fault_campaign.py, told what to do by fault_set. Only calls on paths below a folder, and on files opened there, count.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>

static char folder[4096];
static int error_number, is_sticky;
static atomic_int first, calls;
static atomic_char is_watched[65536];

// Calls number `at` and, if `sticky`, all later ones fail with `error`; error = 0: the process is killed there, in the
// middle of a write; at = 0: nothing happens, calls are counted.
void fault_set(const char *below, int at, int error, int sticky) {
    strncpy(folder, below, sizeof folder - 1);
    error_number = error;
    is_sticky = sticky;
    first = at;
    calls = 0;
}

int fault_count(void) { return calls; }

static int fails(void) {
    int number = ++calls;
    if (!first || number < first || (number > first && !is_sticky)) return 0;
    if (!error_number) raise(SIGKILL);
    errno = error_number;
    return 1;
}

static int is_below(const char *path) { return folder[0] && path && !strncmp(path, folder, strlen(folder)); }
static int is_below_fd(int fd) { return folder[0] && fd >= 0 && fd < 65536 && is_watched[fd]; }

static int remember(int fd, int watched) {
    if (fd >= 0 && fd < 65536) is_watched[fd] = watched;
    return fd;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                          \
    int name(const char *path, int flags, ...) {                            \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = va_arg(rest, mode_t);                                 \
        va_end(rest);                                                       \
        int watched = is_below(path);                                       \
        if (watched && (flags & O_CREAT) && fails()) return -1;             \
        return remember(REAL(name)(path, flags, mode), watched);            \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                        \
    int name(int base, const char *path, int flags, ...) {                  \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = va_arg(rest, mode_t);                                 \
        va_end(rest);                                                       \
        int watched = is_below(path) || (path[0] != '/' && is_below_fd(base)); \
        if (watched && (flags & O_CREAT) && fails()) return -1;             \
        return remember(REAL(name)(base, path, flags, mode), watched);      \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    if (is_below_fd(fd)) {
        if (first && !error_number && calls + 1 == first) REAL(write)(fd, data, size / 2);
        if (fails()) return -1;
    }
    return REAL(write)(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    if (is_below_fd(fd)) {
        if (first && !error_number && calls + 1 == first) REAL(pwrite64)(fd, data, size / 2, at);
        if (fails()) return -1;
    }
    return REAL(pwrite64)(fd, data, size, at);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    if (is_below_fd(fd)) {
        if (first && !error_number && calls + 1 == first) REAL(pwrite)(fd, data, size / 2, at);
        if (fails()) return -1;
    }
    return REAL(pwrite)(fd, data, size, at);
}
int fsync(int fd) { return is_below_fd(fd) && fails() ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return is_below_fd(fd) && fails() ? -1 : REAL(fdatasync)(fd); }
int close(int fd) {
    remember(fd, 0);
    return REAL(close)(fd);
}
int mkdir(const char *path, mode_t mode) { return is_below(path) && fails() ? -1 : REAL(mkdir)(path, mode); }
int rmdir(const char *path) { return is_below(path) && fails() ? -1 : REAL(rmdir)(path); }
int unlink(const char *path) { return is_below(path) && fails() ? -1 : REAL(unlink)(path); }
int rename(const char *from, const char *to) { return is_below(from) && fails() ? -1 : REAL(rename)(from, to); }
