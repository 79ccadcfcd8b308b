/* Owners of segments.
 *
 * A prefix is the pid of the process and nine bits of the time it started, so that whoever holds memory of it can
 * tell whether it lives, without a descriptor or a message. Two processes of one prefix (of different pid
 * namespaces, or one after the other) do no harm: the inode tells their segments apart (receive.c), and who looks
 * dead from here only has its segments mapped anew each time.
 */
#include "owners.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define START_BITS 9

/* State and time of start of a process; false if there is none. No malloc: used in a child of a fork, too. */
static bool
read_stat(pid_t pid, char *state, unsigned long long *start)
{
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) {
        close(fd);
    }
    if (got <= 0) {
        return false;
    }
    text[got] = '\0';
    const char *rest = strrchr(text, ')');  /* the name may contain anything */
    return rest != NULL && sscanf(rest, ") %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d "
                                        "%*d %llu", state, start) == 2;
}

void
ndshare_owners_draw_prefix(void)
{
    char state;
    unsigned long long start = 0;
    pid_t pid = getpid();
    read_stat(pid, &state, &start);
    ndshare_heap.prefix = (uint64_t)pid << START_BITS | (start & ((1u << START_BITS) - 1));
    ndshare_heap.counter = 0;
}

static ndshare_owner *
find(uint64_t prefix)
{
    for (size_t i = 0; i < ndshare_heap.n_owners; i++) {
        if (ndshare_heap.owners[i].prefix == prefix) {
            return &ndshare_heap.owners[i];
        }
    }
    return NULL;
}

/* A handful of entries, found by a plain search; there is one as long as a segment of the owner is mapped. */
void
ndshare_owners_count(const ndshare_segment *segment, int mapped, int live)
{
    ndshare_owner *owner = find(segment->uid >> 32);
    if (owner == NULL) {
        if (mapped <= 0) {
            return;
        }
        if (ndshare_heap.n_owners == ndshare_heap.cap_owners) {
            size_t cap = ndshare_heap.cap_owners ? ndshare_heap.cap_owners * 2 : 16;
            void *grown = realloc(ndshare_heap.owners, cap * sizeof *ndshare_heap.owners);
            if (grown == NULL) {
                return;  /* only the policy of what is copied and kept suffers */
            }
            ndshare_heap.owners = grown;
            ndshare_heap.cap_owners = cap;
        }
        owner = &ndshare_heap.owners[ndshare_heap.n_owners++];
        *owner = (ndshare_owner){.prefix = segment->uid >> 32};
    }
    owner->mapped += (uint32_t)mapped;
    owner->live += (uint32_t)live;
    if (owner->mapped == 0) {
        *owner = ndshare_heap.owners[--ndshare_heap.n_owners];
    }
}

void
ndshare_owners_recount(void)
{
    ndshare_heap.n_owners = 0;
    for (size_t i = 0; i < ndshare_heap.n_segments; i++) {
        const ndshare_segment *segment = ndshare_heap.by_address[i];
        if (segment->origin == NDSHARE_RECEIVED) {
            ndshare_owners_count(segment, 1, segment->kind == NDSHARE_VALUE);
        }
    }
}

uint32_t
ndshare_owners_live(uint64_t prefix)
{
    const ndshare_owner *owner = find(prefix);
    return owner != NULL ? owner->live : 0;
}

void
ndshare_owners_bury(uint64_t prefix)
{
    ndshare_owner *owner = find(prefix);
    if (owner != NULL) {
        owner->gone = true;
    }
}

bool
ndshare_owners_is_gone(uint64_t prefix)
{
    const ndshare_owner *owner = find(prefix);
    return (owner != NULL && owner->gone) || (kill((pid_t)(prefix >> START_BITS), 0) != 0 && errno == ESRCH);
}

bool
ndshare_owners_next_gone(size_t *from, uint64_t *prefix)
{
    for (; *from < ndshare_heap.n_owners; ++*from) {
        char state = 'R';
        unsigned long long start;
        *prefix = ndshare_heap.owners[*from].prefix;
        bool gone = ndshare_owners_is_gone(*prefix);
        if (!gone && read_stat((pid_t)(*prefix >> START_BITS), &state, &start)) {
            gone = state == 'Z' || state == 'X' || ((start ^ *prefix) & ((1u << START_BITS) - 1)) != 0;
        }
        if (gone) {
            ++*from;
            return true;
        }
    }
    return false;
}
