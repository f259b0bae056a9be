/* Faults of the disk and of the clock, for LD_PRELOAD: the process is killed, or refused, at a chosen operation.

   Counted are operations that change files below FIELDPOST_FAULT_FOLDER, and, where FIELDPOST_FAULT_SENDS=1, sends on
   sockets. Nothing else is touched. Set by the environment when the process starts, or later by faults_arm().

     FIELDPOST_FAULT_FOLDER    the folder, as the kernel names it (no symbolic links)
     FIELDPOST_FAULT_AT        number of the operation that meets the fault, from 1; 0 for none
     FIELDPOST_FAULT_KIND      kill: SIGKILL before it is done; torn: half of a write is done, then SIGKILL;
                               or ENOSPC, EIO, EROFS: it fails
     FIELDPOST_FAULT_COUNT     so many operations fail in a row; 0: all from there on
     FIELDPOST_FAULT_LOG       a file that gets one line an operation (name, path, second path, offset, size), before
                               it is done; outside of the folder
     FIELDPOST_FAULT_CONTENTS  1: the line ends with the written bytes, in hexadecimal digits
     FIELDPOST_FAULT_CLOCK     a file "<seconds> synchronised|unsynchronised": what is added to CLOCK_REALTIME, and what
                               adjtimex says; read anew at every call

   Does not know reads, mmap, or what Python is. Linux, 64 bits. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum verdict { GO_ON, FAIL, TEAR };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX], kind[16];
static long fault_at, fault_count, operation_count, error_number;
static int log_descriptor = -1, logs_contents, counts_sends, clock_descriptor = -1;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) syscall(SYS_pause);
}

static long number_of(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

/* Sets the fault anew and counts from 1. */
void faults_arm(const char *new_folder, const char *new_kind, long at, long count) {
    snprintf(folder, sizeof folder, "%s", new_folder);
    snprintf(kind, sizeof kind, "%s", new_kind);
    error_number = !strcmp(kind, "ENOSPC") ? ENOSPC : !strcmp(kind, "EROFS") ? EROFS : EIO;
    fault_at = at;
    fault_count = count;
    operation_count = 0;
}

/* Writes the log to another file from now on. */
void faults_log_to(const char *path, int with_contents) {
    log_descriptor = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    logs_contents = with_contents;
}

/* A line of the program's own in the log: what it has promised between two operations. */
void faults_note(const char *text) {
    char line[4096];
    int size = snprintf(line, sizeof line, "note\t%s\n", text);
    if (log_descriptor >= 0) syscall(SYS_write, log_descriptor, line, size);
}

/* How many operations there have been. */
long faults_operation_count(void) { return operation_count; }

__attribute__((constructor)) static void read_environment(void) {
    const char *where = getenv("FIELDPOST_FAULT_FOLDER"), *what = getenv("FIELDPOST_FAULT_KIND");
    const char *log = getenv("FIELDPOST_FAULT_LOG"), *clock = getenv("FIELDPOST_FAULT_CLOCK");
    if (where) faults_arm(where, what ? what : "", number_of("FIELDPOST_FAULT_AT"), number_of("FIELDPOST_FAULT_COUNT"));
    if (log) faults_log_to(log, number_of("FIELDPOST_FAULT_CONTENTS"));
    if (clock) clock_descriptor = syscall(SYS_openat, AT_FDCWD, clock, O_RDONLY | O_CLOEXEC, 0);
    counts_sends = number_of("FIELDPOST_FAULT_SENDS");
}

/* --- which operations are counted, and what becomes of them --- */

/* The absolute path; empty where it cannot be told. */
static void absolute(int at, const char *path, char *result) {
    char base[PATH_MAX] = "";
    if (path[0] == '/') {
        snprintf(result, PATH_MAX, "%s", path);
        return;
    }
    if (at == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) base[0] = 0;
    } else {
        char link_name[64];
        snprintf(link_name, sizeof link_name, "/proc/self/fd/%d", at);
        ssize_t size = readlink(link_name, base, sizeof base - 1);
        base[size < 0 ? 0 : size] = 0;
    }
    if (snprintf(result, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) result[0] = 0;
}

static void path_of(int descriptor, char *result) {
    char link_name[64];
    snprintf(link_name, sizeof link_name, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link_name, result, PATH_MAX - 1);
    result[size < 0 ? 0 : size] = 0;
}

static int is_below(const char *path) {
    size_t size = strlen(folder);
    return size && !strncmp(path, folder, size) && (path[size] == '/' || !path[size]);
}

static void write_log(const char *name, const char *path, const char *other, long offset, const void *data, long size) {
    if (log_descriptor < 0) return;
    size_t skipped = is_below(path) ? strlen(folder) : 0, other_skipped = is_below(other) ? strlen(folder) : 0;
    size_t bound = 2 * PATH_MAX + 128 + (data && logs_contents ? 2 * size : 0);
    char *line = malloc(bound);
    int used = snprintf(line, bound, "%s\t%s\t%s\t%ld\t%ld\t", name, path + skipped, other + other_skipped, offset, size);
    if (data && logs_contents)
        for (long i = 0; i < size; i++) {
            line[used++] = "0123456789abcdef"[((const unsigned char *)data)[i] >> 4];
            line[used++] = "0123456789abcdef"[((const unsigned char *)data)[i] & 15];
        }
    line[used++] = '\n';
    syscall(SYS_write, log_descriptor, line, used);
    free(line);
}

/* Counts an operation, and says what is to become of it; errno is set where it is to fail. */
static enum verdict count(const char *name, const char *path, const char *other, long offset, const void *data, long size) {
    pthread_mutex_lock(&mutex);
    operation_count++;
    write_log(name, path, other, offset, data, size);
    enum verdict verdict = GO_ON;
    if (fault_at && operation_count >= fault_at) {
        if (!strcmp(kind, "kill")) die();
        if (!strcmp(kind, "torn")) {
            if (size < 2) die();
            verdict = TEAR;
        } else if (!fault_count || operation_count < fault_at + fault_count) {
            verdict = FAIL;
        }
    }
    pthread_mutex_unlock(&mutex);
    if (verdict == FAIL) errno = error_number;
    return verdict;
}

static enum verdict count_path(const char *name, int at, const char *path, int at_other, const char *other) {
    char first[PATH_MAX], second[PATH_MAX] = "";
    if (!folder[0] || !path) return GO_ON;
    absolute(at, path, first);
    if (other) absolute(at_other, other, second);
    if (!is_below(first) && !(other && is_below(second))) return GO_ON;
    return count(name, first, second, 0, NULL, 0);
}

static enum verdict count_descriptor(const char *name, int descriptor, long offset, const void *data, long size) {
    char path[PATH_MAX];
    int saved = errno;
    if (!folder[0]) return GO_ON;
    path_of(descriptor, path);
    errno = saved;
    if (is_below(path)) {
        if (offset < 0) offset = lseek(descriptor, 0, SEEK_CUR);
        return count(name, path, "", offset, data, size);
    }
    if (counts_sends && data && !strncmp(path, "socket:", 7)) return count("send", path, "", 0, data, size);
    return GO_ON;
}

/* --- files by their names --- */

static int open_counted(int at, const char *path, int flags, mode_t mode) {
    if (folder[0] && (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))) {
        char full[PATH_MAX];
        absolute(at, path, full);
        const char *name = access(full, F_OK) ? "create" : flags & O_TRUNC ? "empty" : "open";
        if (is_below(full) && count(name, full, "", 0, NULL, 0) == FAIL) return -1;
    }
    return syscall(SYS_openat, at, path, flags, mode);
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list arguments; \
        va_start(arguments, flags); \
        mode = va_arg(arguments, mode_t); \
        va_end(arguments); \
    }

int open(const char *path, int flags, ...) { MODE_OF(flags) return open_counted(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return open_counted(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE_OF(flags) return open_counted(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE_OF(flags) return open_counted(at, path, flags, mode); }

int rename(const char *from, const char *to) {
    REAL(rename);
    return count_path("rename", AT_FDCWD, from, AT_FDCWD, to) == FAIL ? -1 : real(from, to);
}

int renameat(int at_from, const char *from, int at_to, const char *to) {
    REAL(renameat);
    return count_path("rename", at_from, from, at_to, to) == FAIL ? -1 : real(at_from, from, at_to, to);
}

int renameat2(int at_from, const char *from, int at_to, const char *to, unsigned flags) {
    REAL(renameat2);
    return count_path("rename", at_from, from, at_to, to) == FAIL ? -1 : real(at_from, from, at_to, to, flags);
}

int link(const char *from, const char *to) {
    REAL(link);
    return count_path("link", AT_FDCWD, from, AT_FDCWD, to) == FAIL ? -1 : real(from, to);
}

int linkat(int at_from, const char *from, int at_to, const char *to, int flags) {
    REAL(linkat);
    return count_path("link", at_from, from, at_to, to) == FAIL ? -1 : real(at_from, from, at_to, to, flags);
}

int unlink(const char *path) {
    REAL(unlink);
    return count_path("unlink", AT_FDCWD, path, 0, NULL) == FAIL ? -1 : real(path);
}

int unlinkat(int at, const char *path, int flags) {
    REAL(unlinkat);
    return count_path("unlink", at, path, 0, NULL) == FAIL ? -1 : real(at, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    char full[PATH_MAX];
    absolute(AT_FDCWD, path, full);
    if (!access(full, F_OK)) return real(path, mode); /* It is there: this changes nothing. */
    return count_path("mkdir", AT_FDCWD, path, 0, NULL) == FAIL ? -1 : real(path, mode);
}

/* --- files by their descriptors --- */

/* Half of it is written, and the power is gone. */
static void tear(int descriptor, const void *data, size_t size, off_t offset) {
    if (offset < 0) syscall(SYS_write, descriptor, data, size / 2);
    else syscall(SYS_pwrite64, descriptor, data, size / 2, offset);
    die();
}

ssize_t write(int descriptor, const void *data, size_t size) {
    enum verdict verdict = count_descriptor("write", descriptor, -1, data, size);
    if (verdict == TEAR) tear(descriptor, data, size, -1);
    return verdict == FAIL ? -1 : syscall(SYS_write, descriptor, data, size);
}

static ssize_t pwrite_counted(int descriptor, const void *data, size_t size, off_t offset) {
    enum verdict verdict = count_descriptor("write", descriptor, offset, data, size);
    if (verdict == TEAR) tear(descriptor, data, size, offset);
    return verdict == FAIL ? -1 : syscall(SYS_pwrite64, descriptor, data, size, offset);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    return pwrite_counted(descriptor, data, size, offset);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    return pwrite_counted(descriptor, data, size, offset);
}

int fsync(int descriptor) {
    return count_descriptor("fsync", descriptor, 0, NULL, 0) == FAIL ? -1 : syscall(SYS_fsync, descriptor);
}

int fdatasync(int descriptor) {
    return count_descriptor("fdatasync", descriptor, 0, NULL, 0) == FAIL ? -1 : syscall(SYS_fdatasync, descriptor);
}

static int ftruncate_counted(int descriptor, off_t size) {
    enum verdict verdict = count_descriptor("truncate", descriptor, size, NULL, 0);
    return verdict == FAIL ? -1 : syscall(SYS_ftruncate, descriptor, size);
}

int ftruncate(int descriptor, off_t size) { return ftruncate_counted(descriptor, size); }
int ftruncate64(int descriptor, off64_t size) { return ftruncate_counted(descriptor, size); }

/* --- sockets --- */

static int is_send_failed(int descriptor, const void *data, size_t size) {
    if (!counts_sends) return 0;
    enum verdict verdict = count_descriptor("send", descriptor, 0, data, size);
    if (verdict == TEAR) {
        syscall(SYS_sendto, descriptor, data, size / 2, MSG_NOSIGNAL, NULL, 0);
        die();
    }
    return verdict == FAIL;
}

ssize_t send(int descriptor, const void *data, size_t size, int flags) {
    REAL(send);
    return is_send_failed(descriptor, data, size) ? -1 : real(descriptor, data, size, flags);
}

ssize_t sendto(int descriptor, const void *data, size_t size, int flags, __CONST_SOCKADDR_ARG to, socklen_t to_size) {
    REAL(sendto);
    return is_send_failed(descriptor, data, size) ? -1 : real(descriptor, data, size, flags, to, to_size);
}

ssize_t sendmsg(int descriptor, const struct msghdr *message, int flags) {
    REAL(sendmsg);
    const struct iovec *first = message->msg_iov;
    int is_failed = message->msg_iovlen && is_send_failed(descriptor, first->iov_base, first->iov_len);
    return is_failed ? -1 : real(descriptor, message, flags);
}

/* --- the clock --- */

/* The seconds that are added; *is_synchronised as the file says. */
static double clock_offset_s(int *is_synchronised) {
    char text[64] = "", word[32] = "";
    double offset_s = 0;
    ssize_t size = pread(clock_descriptor, text, sizeof text - 1, 0);
    text[size < 0 ? 0 : size] = 0;
    sscanf(text, "%lf %31s", &offset_s, word);
    if (is_synchronised) *is_synchronised = !strcmp(word, "synchronised");
    return offset_s;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (clock_descriptor >= 0 && !result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += (time_t)clock_offset_s(NULL);
    return result;
}

int gettimeofday(struct timeval *time, void *zone) {
    struct timespec now;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

int adjtimex(struct timex *timex) {
    int is_synchronised;
    REAL(adjtimex);
    int state = real(timex);
    if (clock_descriptor < 0) return state;
    clock_offset_s(&is_synchronised);
    return is_synchronised ? TIME_OK : TIME_ERROR;
}
