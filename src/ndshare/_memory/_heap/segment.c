/* One segment: a memfd and its mapping. System calls only; nothing here needs the lock of the heap.
 *
 * Every memfd is sealed against shrinking and growing from birth, so that no peer can make another one
 * SIGBUS; pages are given back by punching holes. It is close-on-exec and, where the kernel knows it,
 * not executable. Pages are made at birth (MADV_POPULATE_WRITE reports failure; a touch would kill).
 */
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

size_t ndshare_segment_page = 4096;

void
ndshare_segment_start(void)
{
    ndshare_segment_page = (size_t)sysconf(_SC_PAGESIZE);
}

static int
fail(ndshare_error *error, const char *doing, size_t asked)
{
    *error = (ndshare_error){.number = errno ? errno : EIO, .doing = doing, .asked = asked};
    return -1;
}

static int
make_file(size_t size, ndshare_error *error)
{
    static atomic_bool noexec_unknown = false;
    int fd = -1;
    if (!atomic_load(&noexec_unknown)) {
        fd = memfd_create("ndshare", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
        if (fd < 0 && errno == EINVAL) {
            atomic_store(&noexec_unknown, true);
        }
    }
    if (fd < 0 && atomic_load(&noexec_unknown)) {
        fd = memfd_create("ndshare", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    }
    if (fd < 0) {
        return fail(error, "make a shared segment (memfd_create)", size);
    }
    if (ftruncate(fd, (off_t)size) != 0) {
        fail(error, "size a shared segment (ftruncate)", size);
        close(fd);
        return -1;
    }
    return fd;
}

static ndshare_segment *
describe(int fd, size_t size)
{
    struct stat status;
    ndshare_segment *segment = calloc(1, sizeof *segment);
    if (segment == NULL || fstat(fd, &status) != 0) {
        free(segment);
        return NULL;
    }
    segment->fd = fd;
    segment->size = size;
    segment->inode = status.st_ino;
    segment->size_class = -1;
    ndshare_link_init(&segment->by_class);
    ndshare_link_init(&segment->by_age);
    return segment;
}

/* A file of this process's own, not mapped yet. */
static ndshare_segment *
begin(size_t size, ndshare_error *error)
{
    int fd = make_file(size, error);
    if (fd < 0) {
        return NULL;
    }
    ndshare_segment *segment = describe(fd, size);
    if (segment == NULL) {
        fail(error, "describe a shared segment", size);
        close(fd);
        return NULL;
    }
    segment->origin = NDSHARE_OWN;
    segment->base = MAP_FAILED;
    return segment;
}

int
ndshare_segment_populate(ndshare_segment *segment, size_t offset, size_t nbytes, ndshare_error *error)
{
    size_t start = offset & ~(NDSHARE_PAGE - 1);
    size_t stop = (offset + nbytes + NDSHARE_PAGE - 1) & ~(NDSHARE_PAGE - 1);
    if (stop > segment->size) {
        stop = segment->size;
    }
    int result;
    do {
        result = madvise(segment->base + start, stop - start, MADV_POPULATE_WRITE);
    } while (result != 0 && (errno == EINTR || errno == EAGAIN));
    if (result != 0 && errno == EINVAL) {  /* before Linux 5.14 */
        result = fallocate(segment->fd, 0, (off_t)start, (off_t)(stop - start));
    }
    if (result != 0) {
        return fail(error, "give a shared segment its pages", nbytes);
    }
    return 0;
}

ndshare_segment *
ndshare_segment_make(size_t size, bool populate, ndshare_error *error)
{
    ndshare_segment *segment = begin(size, error);
    if (segment == NULL) {
        return NULL;
    }
    if (fcntl(segment->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        fail(error, "seal a shared segment", size);
        goto failed;
    }
    segment->base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, segment->fd, 0);
    if (segment->base == MAP_FAILED) {
        fail(error, "map a shared segment (mmap)", size);
        goto failed;
    }
    if (populate) {
        if (ndshare_segment_populate(segment, 0, size, error) < 0) {
            goto failed;
        }
        segment->resident = size;
    }
    return segment;
failed:
    ndshare_segment_destroy(segment);
    return NULL;
}

/* A mapping keeps the description it was made from, and with it its lock, alive: made from a hold it
 * would be in use for ever. So every mapping of a received or read-only segment has a description of
 * its own, without a lock. Opened read-only it can also never be made writable by mprotect. */
static char *
map_anew(int fd, size_t size, int protection, int flags)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int own = open(path, (protection & PROT_WRITE ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (own < 0) {
        return MAP_FAILED;
    }
    char *base = mmap(NULL, size, protection, flags, own, 0);
    int saved = errno;
    close(own);
    errno = saved;
    return base;
}

static int
write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t written = write(fd, data, size);
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            return -1;
        }
        data += written;
        size -= (size_t)written;
    }
    return 0;
}

/* Read-only for everybody, the maker included: filled by write(2), so that there never was a writable
 * mapping, sealed, and only then mapped. */
ndshare_segment *
ndshare_segment_seal(const char *data, size_t nbytes, size_t size, ndshare_error *error)
{
    ndshare_segment *segment = begin(size, error);
    if (segment == NULL) {
        return NULL;
    }
    segment->kind = NDSHARE_SEALED;
    segment->readonly = true;
    if (write_all(segment->fd, data, nbytes) != 0) {
        fail(error, "fill a read-only segment (write)", size);
        goto failed;
    }
    if (fcntl(segment->fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        fail(error, "seal a read-only segment", size);
        goto failed;
    }
    segment->base = map_anew(segment->fd, size, PROT_READ, MAP_SHARED | MAP_POPULATE);
    if (segment->base == MAP_FAILED) {
        fail(error, "map a read-only segment (mmap)", size);
        goto failed;
    }
    segment->resident = size;
    return segment;
failed:
    ndshare_segment_destroy(segment);
    return NULL;
}

/* Whether the descriptor is of a file that was opened by its name, which nobody can seal: who cuts it off while it
 * is mapped has processes that look there killed, as with every memory-mapped file. */
static bool
is_opened_file(int fd)
{
    char path[40], name[8] = "";
    struct stat status;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && readlink(path, name, sizeof name - 1) > 0
           && strcmp(name, "/memfd:") != 0;
}

/* A peer's segment. What it says about itself is not believed: size and seals come from the kernel. */
ndshare_segment *
ndshare_segment_map(int fd, uint64_t uid, size_t size, int kind, ndshare_error *error)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    int wanted = F_SEAL_SHRINK | (kind == NDSHARE_SEALED ? F_SEAL_WRITE : 0);
    bool sealed = seals >= 0 && (seals & wanted) == wanted;
    bool opened = !sealed && kind == NDSHARE_SHARED && is_opened_file(fd);
    if (fstat(fd, &status) != 0 || (!sealed && !opened)
        || (size_t)status.st_size < size || size == 0) {
        errno = EINVAL;
        fail(error, "map a received segment: the descriptor is not the segment the message names", size);
        return NULL;
    }
    int protection = kind == NDSHARE_SEALED ? PROT_READ : PROT_READ | PROT_WRITE;
    /* By-value segments have all their pages: mapping them at once costs 1 ms per 160 MB, taking the
     * faults one by one 11. A slab has holes that populating would fill. */
    int flags = kind == NDSHARE_COPY ? MAP_PRIVATE | MAP_NORESERVE
              : kind == NDSHARE_SHARED ? MAP_SHARED : MAP_SHARED | MAP_POPULATE;
    char *base = map_anew(fd, size, protection, flags);
    bool transient = base == MAP_FAILED && (errno == EMFILE || errno == ENFILE);
    if (transient) {  /* not one descriptor left: from the hold, and for as long as the hold */
        base = mmap(NULL, size, protection, flags, fd, 0);
    }
    if (base == MAP_FAILED) {
        fail(error, "map a received segment (mmap)", size);
        return NULL;
    }
    ndshare_segment *segment = describe(fd, size);
    if (segment == NULL) {
        fail(error, "describe a received segment", size);
        munmap(base, size);
        return NULL;
    }
    segment->uid = uid;
    segment->base = base;
    segment->kind = (uint8_t)kind;
    segment->origin = NDSHARE_RECEIVED;
    segment->transient = transient || opened;  /* a mapping that is kept for later would keep a deleted file */
    segment->readonly = kind == NDSHARE_SEALED;
    return segment;
}

/* `dup` would share the description and with it the lock: only opening anew makes a hold of its own.
 * The plain LOCK_SH waits for a prober at most; the caller holds the memory by another right. */
int
ndshare_segment_reopen(int fd, ndshare_error *error)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int hold = open(path, O_RDWR | O_CLOEXEC);
    if (hold < 0 && (errno == EACCES || errno == EPERM || errno == ETXTBSY)) {
        hold = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (hold < 0) {
        return fail(error, "lend a shared segment (open a descriptor of its own)", 0);
    }
    int locked;
    do {
        locked = flock(hold, LOCK_SH);
    } while (locked != 0 && errno == EINTR);
    if (locked != 0 && !is_opened_file(hold)) {  /* not all file systems have locks; these are never reused */
        fail(error, "lend a shared segment (flock)", 0);
        close(hold);
        return -1;
    }
    return hold;
}

bool
ndshare_segment_probe(int fd)
{
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        return false;
    }
    flock(fd, LOCK_UN);
    return true;
}

void
ndshare_segment_punch(ndshare_segment *segment, size_t offset, size_t nbytes)
{
    (void)!fallocate(segment->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)nbytes);
}

/* Nobody else sees what is written here from now on, and pagemap tells which pages were. */
void
ndshare_segment_detach(ndshare_segment *segment)
{
    char *base = mmap(segment->base, segment->size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, segment->fd, 0);
    segment->detached |= base != MAP_FAILED;
}

void
ndshare_segment_destroy(ndshare_segment *segment)
{
    if (segment->punch && segment->fd >= 0) {
        ndshare_segment_punch(segment, 0, segment->size);
    }
    if (segment->base != NULL && segment->base != MAP_FAILED) {
        munmap(segment->base, segment->size);
    }
    if (segment->fd >= 0) {
        close(segment->fd);
    }
    free(segment->slots);
    free(segment);
}
