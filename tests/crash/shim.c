/* Counts every call of a process tree that changes a file, and crashes or fails the one it was told to.
 *
 * Preloaded into a run (LD_PRELOAD) by tests/crash/harness.py. A call counts if it may change what a file system holds
 * below one of CRASH_PATHS: making, writing, truncating, syncing, renaming, linking or removing, and changing what
 * belongs to a file. Numbers are handed out by one atomic counter in memory that all processes share.
 *
 *   CRASH_PATHS    real paths, separated by colons
 *   CRASH_CONTROL  a file of at least sizeof(struct control) zero bytes: the shared memory
 *   CRASH_TRACE    where to append two lines for each call, one before and one after it (optional)
 *   CRASH_PLAN     what to do, none if empty:
 *                    kill before|middle|after N    SIGKILL; middle: half of what call N was to write is written
 *                    cut before|middle|after N     the same, and first the power of CRASH_MOUNT is cut
 *                    fail once|ever N ERRNO        call N, or every call from N on, fails
 *                    short once N                  call N writes half of what it was to write, and says so
 *   CRASH_ONLY     if given, N counts only calls of this name ("write", "rename") ...
 *   CRASH_ABOUT    ... one of whose paths contains this
 *   CRASH_SCOPE    tree: no process makes another counted call, and CRASH_MAIN is killed too; process: the caller only
 *   CRASH_MOUNT    the mount point of a file system that knows FS_IOC_GOINGDOWN
 *   CRASH_MAIN     the process whose end the harness waits for
 *
 * Not seen: stores to a mapped file, what libc writes by itself (stdio, mkstemp), io_uring. test_shim.py compares the
 * count with strace.
 *
 * Everything here may run in a forked child of a process with threads, or after vfork: no allocation, no stdio, no locks.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define GOINGDOWN _IOR('X', 125, uint32_t) /* ext4 and xfs: FS_IOC_SHUTDOWN */
#define NOLOGFLUSH 2                       /* what is in the journal's memory is lost, too */

enum verb { RECORD, KILL, CUT, FAIL, SHORT };
enum when { BEFORE, MIDDLE, AFTER, ONCE, EVER };
enum fired { NOT_YET, TREE_IS_DEAD, FIRED, NOT_CUT };

struct control {
    _Atomic uint64_t count;
    _Atomic uint64_t matching;
    _Atomic uint32_t fired;
};

struct call {
    const char *name;
    uint64_t number;  /* 0: does not count */
    uint64_t planned; /* the number that the plan goes by: among the calls that match */
    long flags;
    size_t size;
    char path[PATH_MAX + 16];  /* room for " (deleted)" */
    char other[PATH_MAX + 16]; /* the second name of rename and link */
};

static struct control *control; /* NULL: this process is not part of a harness */
static const char *trace_path;
static const char *watched;
static const char *only;
static const char *about;
static const char *mount_point;
static pid_t main_process;
static int whole_tree;
static struct {
    enum verb verb;
    enum when when;
    unsigned long at;
    int error;
} plan;

/* -- the kernel, without libc in between: libc's own names are ours here ------------------------------------------- */

#if defined(__x86_64__)
static long raw(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static long raw(long number, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "the shim knows x86_64 and aarch64"
#endif

#define L(value) ((long)(value))
#define RAW3(number, a, b, c) raw(number, L(a), L(b), L(c), 0, 0, 0)

static long checked(long result) {
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

/* -- which file a call is about ------------------------------------------------------------------------------------ */

static void read_link(const char *link, char *out) {
    long length = raw(SYS_readlinkat, AT_FDCWD, L(link), L(out), PATH_MAX + 15, 0, 0);
    out[length > 0 ? length : 0] = 0;
}

static void name_of_fd(int fd, char *out) {
    char link[32];
    if (fd == AT_FDCWD)
        strcpy(link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    read_link(link, out);
}

/* dir + "/" + name */
static void join(char *dir, const char *name, size_t length) {
    size_t end = strlen(dir);
    if (end > 0 && dir[end - 1] == '/')
        end--;
    if (end + 1 + length >= PATH_MAX) { /* the call will fail for its length */
        dir[0] = 0;
        return;
    }
    dir[end] = '/';
    memcpy(dir + end + 1, name, length);
    dir[end + 1 + length] = 0;
}

/* The real path of a name: its folder by the kernel's word, the last part as it stands. */
static void name_at(int dir, const char *path, char *out) {
    char parent[PATH_MAX];
    size_t length = path ? strnlen(path, PATH_MAX - 1) : 0, cut;
    while (length > 1 && path[length - 1] == '/')
        length--;
    for (cut = length; cut > 0 && path[cut - 1] != '/';)
        cut--;
    long fd = dir;
    if (cut > 0) {
        memcpy(parent, path, cut);
        parent[cut] = 0;
        fd = raw(SYS_openat, dir, L(parent), O_PATH | O_DIRECTORY | O_CLOEXEC, 0, 0, 0);
    }
    if (fd >= 0 || fd == AT_FDCWD) {
        name_of_fd((int)fd, out);
        if (length > 0)
            join(out, path + cut, length - cut);
    } else { /* no such folder: the call will fail, as the name stands */
        out[0] = 0;
        if (path[0] != '/')
            name_of_fd(dir, out);
        join(out, path + (path[0] == '/'), length - (path[0] == '/'));
    }
    if (cut > 0 && fd >= 0)
        raw(SYS_close, fd, 0, 0, 0, 0, 0);
    if (strncmp(out, "/proc/", 6) == 0 && strstr(out, "/fd/")) { /* chmod of /proc/self/fd/N, say */
        strcpy(parent, out);
        read_link(parent, out);
    }
}

static int is_watched(const char *path) {
    const char *at = watched;
    while (*at) {
        size_t length = strcspn(at, ":");
        if (length > 0 && strncmp(path, at, length) == 0 && (path[length] == '/' || path[length] == 0))
            return 1;
        at += length + (at[length] == ':');
    }
    return 0;
}

#define WATCHING (control != NULL)

/* -- counting, telling, crashing ----------------------------------------------------------------------------------- */

static void append(const char *line, size_t length) {
    /* Opened each time: programs close descriptors that they do not know. */
    long fd = raw(SYS_openat, AT_FDCWD, L(trace_path), O_WRONLY | O_APPEND | O_CLOEXEC, 0, 0, 0);
    if (fd < 0)
        return;
    RAW3(SYS_write, fd, line, length);
    raw(SYS_close, fd, 0, 0, 0, 0, 0);
}

static char *put_text(char *to, const char *text) {
    static const char digits[] = "0123456789abcdef";
    *to++ = '\t';
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte < 32 || byte == '\\' || byte >= 127) {
            *to++ = '\\';
            *to++ = 'x';
            *to++ = digits[byte >> 4];
            *to++ = digits[byte & 15];
        } else {
            *to++ = (char)byte;
        }
    }
    return to;
}

static long long now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void tell_before(const struct call *call) {
    char line[8 * PATH_MAX + 512];
    char *to = line;
    to += sprintf(to, "+\t%llu\t%lld\t%d\t%s\t%ld\t%zu", (unsigned long long)call->number, now_ns(), getpid(),
                  call->name, call->flags, call->size);
    to = put_text(to, call->path);
    to = put_text(to, call->other);
    *to++ = '\n';
    append(line, (size_t)(to - line));
}

static void tell_after(const struct call *call, long result) {
    char line[96];
    int length =
        snprintf(line, sizeof line, "-\t%llu\t%lld\t%ld\n", (unsigned long long)call->number, now_ns(), result);
    append(line, (size_t)length);
}

static _Noreturn void die(void) {
    for (;;)
        kill(getpid(), SIGKILL);
}

static void cut_power(void) {
    uint32_t flags = NOLOGFLUSH;
    long fd = raw(SYS_openat, AT_FDCWD, L(mount_point), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0, 0);
    if (fd < 0 || RAW3(SYS_ioctl, fd, GOINGDOWN, &flags) < 0)
        atomic_store(&control->fired, NOT_CUT);
    raw(SYS_close, fd, 0, 0, 0, 0, 0);
}

static _Noreturn void crash(void) {
    atomic_store(&control->fired, whole_tree ? TREE_IS_DEAD : FIRED);
    if (plan.verb == CUT)
        cut_power();
    if (whole_tree && main_process > 0)
        kill(main_process, SIGKILL);
    die();
}

static int matches(const struct call *call) {
    return strcmp(call->name, only) == 0 && (!about || strstr(call->path, about) || strstr(call->other, about));
}

static int is_planned(const struct call *call) { return call->planned != 0 && call->planned == plan.at; }

static int fails(const struct call *call, int allocates) {
    if (plan.verb != FAIL || call->planned == 0 || call->planned < plan.at)
        return 0;
    if (plan.when == ONCE)
        return call->planned == plan.at;
    return allocates || (plan.error != ENOSPC && plan.error != EDQUOT); /* a full disk lets files be removed and synced */
}

/* Before a call: gives it its number. -1 with errno if it is to fail. `allocates`: on a full disk it could not be done. */
static int begin(struct call *call, int allocates) {
    if (!WATCHING)
        return 0;
    if (!is_watched(call->path) && !(call->other[0] && is_watched(call->other)))
        return 0;
    if (atomic_load(&control->fired) == TREE_IS_DEAD)
        die();
    call->number = call->planned = atomic_fetch_add(&control->count, 1) + 1;
    if (only)
        call->planned = matches(call) ? atomic_fetch_add(&control->matching, 1) + 1 : 0;
    if (trace_path)
        tell_before(call);
    if (is_planned(call) && plan.when == BEFORE)
        crash();
    if (fails(call, allocates)) {
        atomic_store(&control->fired, FIRED);
        if (trace_path)
            tell_after(call, -plan.error);
        errno = plan.error;
        return -1;
    }
    return 0;
}

/* How many of the bytes are to be written. */
static size_t allowed(const struct call *call, size_t size) {
    if (!is_planned(call) || size < 2 || (plan.verb != SHORT && plan.when != MIDDLE))
        return size;
    if (plan.verb == SHORT)
        atomic_store(&control->fired, FIRED);
    return size / 2;
}

static long finish(const struct call *call, long result) {
    if (call->number == 0)
        return checked(result);
    if (trace_path)
        tell_after(call, result);
    if (is_planned(call) && (plan.when == MIDDLE || plan.when == AFTER))
        crash();
    return checked(result);
}

static int is_regular(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

static void describe(struct call *call, const char *name, long flags, size_t size) {
    call->name = name;
    call->number = call->planned = 0;
    call->flags = flags;
    call->size = size;
    call->path[0] = call->other[0] = 0;
}

/* One call about an open file. */
#define ON_FD(call_name, fd, flags, size, allocates, action)                                                           \
    do {                                                                                                               \
        struct call call;                                                                                              \
        describe(&call, call_name, L(flags), size);                                                                    \
        if (WATCHING)                                                                                                  \
            name_of_fd(fd, call.path);                                                                                 \
        if (begin(&call, allocates) < 0)                                                                               \
            return -1;                                                                                                 \
        return finish(&call, action);                                                                                  \
    } while (0)

/* One call about a name. */
#define ON_NAME(call_name, dir, name, flags, allocates, action)                                                        \
    do {                                                                                                               \
        struct call call;                                                                                              \
        describe(&call, call_name, L(flags), 0);                                                                       \
        if (WATCHING)                                                                                                  \
            name_at(dir, name, call.path);                                                                             \
        if (begin(&call, allocates) < 0)                                                                               \
            return -1;                                                                                                 \
        return (int)finish(&call, action);                                                                             \
    } while (0)

/* One call about two names. */
#define ON_NAMES(call_name, dir, name, other_dir, other_name, flags, action)                                           \
    do {                                                                                                               \
        struct call call;                                                                                              \
        describe(&call, call_name, L(flags), 0);                                                                       \
        if (WATCHING) {                                                                                                \
            name_at(dir, name, call.path);                                                                             \
            name_at(other_dir, other_name, call.other);                                                                \
        }                                                                                                              \
        if (begin(&call, 1) < 0)                                                                                       \
            return -1;                                                                                                 \
        return (int)finish(&call, action);                                                                             \
    } while (0)

/* -- making and opening -------------------------------------------------------------------------------------------- */

static int changes(int flags) { return (flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE; }

/* Whether a name comes into being is not told by the flags. */
static const char *word_for(int dir, const char *path, int flags) {
    if (!(flags & O_CREAT) || !WATCHING)
        return "open";
    return raw(SYS_faccessat, dir, L(path), F_OK, 0, 0, 0) < 0 ? "create" : "open";
}

static int do_open(int dir, const char *path, int flags, mode_t mode) {
    if (!changes(flags))
        return (int)checked(raw(SYS_openat, dir, L(path), flags, mode, 0, 0));
    ON_NAME(word_for(dir, path, flags), dir, path, flags, flags & O_CREAT, raw(SYS_openat, dir, L(path), flags, mode, 0, 0));
}

#define MODE_ARGUMENT(last)                                                                                            \
    mode_t mode = 0;                                                                                                   \
    if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) {                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, last);                                                                                          \
        mode = (mode_t)va_arg(rest, int);                                                                              \
        va_end(rest);                                                                                                  \
    }

EXPORT int open(const char *path, int flags, ...) {
    MODE_ARGUMENT(flags)
    return do_open(AT_FDCWD, path, flags, mode);
}

EXPORT int open64(const char *path, int flags, ...) {
    MODE_ARGUMENT(flags)
    return do_open(AT_FDCWD, path, flags, mode);
}

EXPORT int openat(int dir, const char *path, int flags, ...) {
    MODE_ARGUMENT(flags)
    return do_open(dir, path, flags, mode);
}

EXPORT int openat64(int dir, const char *path, int flags, ...) {
    MODE_ARGUMENT(flags)
    return do_open(dir, path, flags, mode);
}

EXPORT int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

EXPORT int creat64(const char *path, mode_t mode) { return creat(path, mode); }

EXPORT int mkdirat(int dir, const char *path, mode_t mode) {
    ON_NAME("mkdir", dir, path, 0, 1, RAW3(SYS_mkdirat, dir, path, mode));
}

EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

EXPORT int mknodat(int dir, const char *path, mode_t mode, dev_t device) {
    ON_NAME("mknod", dir, path, 0, 1, raw(SYS_mknodat, dir, L(path), mode, L(device), 0, 0));
}

EXPORT int mknod(const char *path, mode_t mode, dev_t device) { return mknodat(AT_FDCWD, path, mode, device); }

EXPORT int mkfifoat(int dir, const char *path, mode_t mode) { return mknodat(dir, path, mode | S_IFIFO, 0); }

EXPORT int mkfifo(const char *path, mode_t mode) { return mkfifoat(AT_FDCWD, path, mode); }

EXPORT int bind(int fd, const struct sockaddr *address, socklen_t length) {
    char path[sizeof(struct sockaddr_un)] = {0};
    if (address && address->sa_family == AF_UNIX && length > sizeof(sa_family_t) && length <= sizeof path)
        memcpy(path, ((const struct sockaddr_un *)address)->sun_path, length - sizeof(sa_family_t));
    if (!path[0]) /* another family, or an abstract name */
        return (int)checked(RAW3(SYS_bind, fd, address, length));
    ON_NAME("bind", AT_FDCWD, path, 0, 1, RAW3(SYS_bind, fd, address, length));
}

/* -- writing ------------------------------------------------------------------------------------------------------- */

EXPORT ssize_t write(int fd, const void *data, size_t size) {
    if (!WATCHING || !is_regular(fd))
        return checked(RAW3(SYS_write, fd, data, size));
    ON_FD("write", fd, 0, size, 1, RAW3(SYS_write, fd, data, allowed(&call, size)));
}

EXPORT ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    if (!WATCHING || !is_regular(fd))
        return checked(raw(SYS_pwrite64, fd, L(data), L(size), at, 0, 0));
    ON_FD("pwrite", fd, at, size, 1, raw(SYS_pwrite64, fd, L(data), L(allowed(&call, size)), at, 0, 0));
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }

static size_t total(const struct iovec *parts, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].iov_len;
    return size;
}

/* Half of several parts is half of the first one that has any: it is less than all, which is the point. */
static long write_parts(const struct call *call, int fd, const struct iovec *parts, int count, off64_t at, int flags) {
    if (allowed(call, call->size) < call->size) {
        int i = 0;
        while (parts[i].iov_len == 0)
            i++;
        size_t half = (parts[i].iov_len + 1) / 2;
        return at < 0 ? RAW3(SYS_write, fd, parts[i].iov_base, half)
                      : raw(SYS_pwrite64, fd, L(parts[i].iov_base), L(half), at, 0, 0);
    }
    return raw(SYS_pwritev2, fd, L(parts), count, at, 0, flags);
}

EXPORT ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags) {
    if (!WATCHING || !is_regular(fd))
        return checked(raw(SYS_pwritev2, fd, L(parts), count, at, 0, flags));
    ON_FD("writev", fd, at, total(parts, count), 1, write_parts(&call, fd, parts, count, at, flags));
}

EXPORT ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    return pwritev64v2(fd, parts, count, at, flags);
}

EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    return pwritev64v2(fd, parts, count, at, 0);
}

EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return pwritev64v2(fd, parts, count, at, 0);
}

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (!WATCHING || !is_regular(fd)) /* a socket has no position: not by way of pwritev2 */
        return checked(RAW3(SYS_writev, fd, parts, count));
    return pwritev64v2(fd, parts, count, -1, 0);
}

EXPORT ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
    if (!WATCHING || !is_regular(out))
        return checked(raw(SYS_sendfile, out, in, L(at), L(size), 0, 0));
    ON_FD("sendfile", out, 0, size, 1, raw(SYS_sendfile, out, in, L(at), L(allowed(&call, size)), 0, 0));
}

EXPORT ssize_t sendfile(int out, int in, off_t *at, size_t size) { return sendfile64(out, in, at, size); }

EXPORT ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned int flags) {
    ON_FD("copy_file_range", out, flags, size, 1,
          raw(SYS_copy_file_range, in, L(from), out, L(to), L(allowed(&call, size)), flags));
}

EXPORT ssize_t splice(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned int flags) {
    if (!WATCHING || !is_regular(out))
        return checked(raw(SYS_splice, in, L(from), out, L(to), L(size), flags));
    ON_FD("splice", out, flags, size, 1, raw(SYS_splice, in, L(from), out, L(to), L(allowed(&call, size)), flags));
}

EXPORT int ftruncate64(int fd, off64_t size) { ON_FD("ftruncate", fd, size, 0, 1, RAW3(SYS_ftruncate, fd, size, 0)); }

EXPORT int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

EXPORT int truncate64(const char *path, off64_t size) {
    ON_NAME("truncate", AT_FDCWD, path, size, 1, RAW3(SYS_truncate, path, size, 0));
}

EXPORT int truncate(const char *path, off_t size) { return truncate64(path, size); }

EXPORT int fallocate64(int fd, int mode, off64_t at, off64_t size) {
    ON_FD("fallocate", fd, mode, 0, 1, raw(SYS_fallocate, fd, mode, at, size, 0, 0));
}

EXPORT int fallocate(int fd, int mode, off_t at, off_t size) { return fallocate64(fd, mode, at, size); }

EXPORT int posix_fallocate64(int fd, off64_t at, off64_t size) {
    int before = errno, result = fallocate64(fd, 0, at, size) < 0 ? errno : 0;
    errno = before;
    return result;
}

EXPORT int posix_fallocate(int fd, off_t at, off_t size) { return posix_fallocate64(fd, at, size); }

/* -- syncing ------------------------------------------------------------------------------------------------------- */

EXPORT int fsync(int fd) { ON_FD("fsync", fd, 0, 0, 0, RAW3(SYS_fsync, fd, 0, 0)); }

EXPORT int fdatasync(int fd) { ON_FD("fdatasync", fd, 0, 0, 0, RAW3(SYS_fdatasync, fd, 0, 0)); }

/* -- names --------------------------------------------------------------------------------------------------------- */

EXPORT int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned int flags) {
    ON_NAMES("rename", from_dir, from, to_dir, to, flags,
             raw(SYS_renameat2, from_dir, L(from), to_dir, L(to), flags, 0));
}

EXPORT int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return renameat2(from_dir, from, to_dir, to, 0);
}

EXPORT int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

EXPORT int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    ON_NAMES("link", from_dir, from, to_dir, to, flags, raw(SYS_linkat, from_dir, L(from), to_dir, L(to), flags, 0));
}

EXPORT int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

EXPORT int symlinkat(const char *target, int dir, const char *path) {
    ON_NAME("symlink", dir, path, 0, 1, RAW3(SYS_symlinkat, target, dir, path));
}

EXPORT int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

EXPORT int unlinkat(int dir, const char *path, int flags) {
    ON_NAME(flags & AT_REMOVEDIR ? "rmdir" : "unlink", dir, path, flags, 0, RAW3(SYS_unlinkat, dir, path, flags));
}

EXPORT int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

EXPORT int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

/* -- what belongs to a file ---------------------------------------------------------------------------------------- */

EXPORT int fchmod(int fd, mode_t mode) { ON_FD("chmod", fd, mode, 0, 0, RAW3(SYS_fchmod, fd, mode, 0)); }

EXPORT int fchmodat(int dir, const char *path, mode_t mode, int flags) {
    ON_NAME("chmod", dir, path, mode, 0,
            flags ? raw(452 /* fchmodat2, Linux 6.6 */, dir, L(path), mode, flags, 0, 0)
                  : RAW3(SYS_fchmodat, dir, path, mode));
}

EXPORT int chmod(const char *path, mode_t mode) { return fchmodat(AT_FDCWD, path, mode, 0); }

EXPORT int fchown(int fd, uid_t user, gid_t group) { ON_FD("chown", fd, 0, 0, 0, RAW3(SYS_fchown, fd, user, group)); }

EXPORT int fchownat(int dir, const char *path, uid_t user, gid_t group, int flags) {
    ON_NAME("chown", dir, path, flags, 0, raw(SYS_fchownat, dir, L(path), user, group, flags, 0));
}

EXPORT int chown(const char *path, uid_t user, gid_t group) { return fchownat(AT_FDCWD, path, user, group, 0); }

EXPORT int lchown(const char *path, uid_t user, gid_t group) {
    return fchownat(AT_FDCWD, path, user, group, AT_SYMLINK_NOFOLLOW);
}

EXPORT int utimensat(int dir, const char *path, const struct timespec times[2], int flags) {
    ON_NAME("utimes", dir, path, flags, 0, raw(SYS_utimensat, dir, L(path), L(times), flags, 0, 0));
}

EXPORT int futimens(int fd, const struct timespec times[2]) {
    ON_FD("utimes", fd, 0, 0, 0, raw(SYS_utimensat, fd, 0, L(times), 0, 0, 0));
}

EXPORT int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags) {
    ON_FD("setxattr", fd, flags, size, 1, raw(SYS_fsetxattr, fd, L(name), L(value), L(size), flags, 0));
}

EXPORT int setxattr(const char *path, const char *name, const void *value, size_t size, int flags) {
    ON_NAME("setxattr", AT_FDCWD, path, flags, 1, raw(SYS_setxattr, L(path), L(name), L(value), L(size), flags, 0));
}

EXPORT int lsetxattr(const char *path, const char *name, const void *value, size_t size, int flags) {
    ON_NAME("setxattr", AT_FDCWD, path, flags, 1, raw(SYS_lsetxattr, L(path), L(name), L(value), L(size), flags, 0));
}

/* -- raw calls ----------------------------------------------------------------------------------------------------- */

EXPORT long syscall(long number, ...) {
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long), d = va_arg(rest, long),
         e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    switch (number) {
    case SYS_renameat2:
        return renameat2((int)a, (const char *)b, (int)c, (const char *)d, (unsigned int)e);
    case SYS_copy_file_range:
        return copy_file_range((int)a, (off64_t *)b, (int)c, (off64_t *)d, (size_t)e, (unsigned int)f);
    case SYS_openat2: {
        const struct open_how *how = (const struct open_how *)c;
        if (!changes((int)how->flags))
            break;
        ON_NAME(word_for((int)a, (const char *)b, (int)how->flags), (int)a, (const char *)b, how->flags,
                (how->flags & O_CREAT) != 0, raw(SYS_openat2, a, b, c, d, 0, 0));
    }
    default:
        break;
    }
    return checked(raw(number, a, b, c, d, e, f));
}

/* -- from the environment ------------------------------------------------------------------------------------------ */

static int index_of(const char *word, const char *const *words, int count, int otherwise) {
    for (int i = 0; i < count; i++)
        if (strcmp(word, words[i]) == 0)
            return i;
    return otherwise;
}

static void read_plan(const char *text) {
    static const char *const verbs[] = {"record", "kill", "cut", "fail", "short"};
    static const char *const moments[] = {"before", "middle", "after", "once", "ever"};
    char verb[16] = "", when[16] = "";
    if (!text || sscanf(text, "%15s %15s %lu %d", verb, when, &plan.at, &plan.error) < 3)
        return;
    plan.verb = (enum verb)index_of(verb, verbs, 5, RECORD);
    plan.when = (enum when)index_of(when, moments, 5, ONCE);
}

/* When it is loaded; and in a process that was forked, not started, once its environment is its own (warm.py). */
EXPORT __attribute__((constructor)) void crash_start(void) {
    const char *shared = getenv("CRASH_CONTROL"), *scope = getenv("CRASH_SCOPE"), *first = getenv("CRASH_MAIN");
    watched = getenv("CRASH_PATHS");
    if (!shared || !watched)
        return;
    long fd = raw(SYS_openat, AT_FDCWD, L(shared), O_RDWR | O_CLOEXEC, 0, 0, 0);
    if (fd < 0)
        return;
    void *memory = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, 0);
    raw(SYS_close, fd, 0, 0, 0, 0, 0);
    trace_path = getenv("CRASH_TRACE");
    only = getenv("CRASH_ONLY");
    about = getenv("CRASH_ABOUT");
    mount_point = getenv("CRASH_MOUNT");
    main_process = first ? atoi(first) : 0;
    whole_tree = scope && strcmp(scope, "tree") == 0;
    read_plan(getenv("CRASH_PLAN"));
    if (memory != MAP_FAILED)
        control = memory;
}
