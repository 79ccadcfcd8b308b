/* One segment: a memfd and its mapping, what is noted about it, and what can go wrong with it.
 *
 * A *segment* is one memfd, mapped once (twice at most: shared and copy-on-write) in a process.
 * A *block* is the unit that is handed out: a whole segment, or one slot of a segment that is a slab.
 *
 *   origin      OWN        made here; only here it is recycled
 *               RECEIVED   of another process; `fd` is the hold (own description, LOCK_SH) while it is used
 *               INHERITED  was OWN before a fork and this is the child: used, lent, never recycled
 *
 *   state       LIVE       somebody in this process uses it (or, for a slab, may)
 *               IDLE       own, free, its pages kept warm         lists: idle[class], idle_lru
 *               AWAY       own, free here, lent and not yet known to be back   lists: away[class], away_lru
 *               CACHED     received, no hold, only the mapping is kept         list: cache_lru
 *
 * The functions are system calls only and need no lock.
 */
#ifndef NDSHARE_SEGMENT_H
#define NDSHARE_SEGMENT_H

#include "extension.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { NDSHARE_VALUE = 0, NDSHARE_SHARED = 1, NDSHARE_SEALED = 2, NDSHARE_COPY = 3 };
enum { NDSHARE_OWN, NDSHARE_RECEIVED, NDSHARE_INHERITED };
enum { NDSHARE_LIVE, NDSHARE_IDLE, NDSHARE_AWAY, NDSHARE_CACHED };

/* Bytes of a page of this machine: 4, 16 or 64 KiB. */
extern size_t ndshare_segment_page;
#define NDSHARE_PAGE ndshare_segment_page

typedef struct ndshare_link {
    struct ndshare_link *prev, *next;
} ndshare_link;

typedef struct {
    uint32_t users, handles;
} ndshare_counts;

enum { NDSHARE_SLOT_USED = 1, NDSHARE_SLOT_LENT = 2, NDSHARE_SLOT_PENDING = 4, NDSHARE_SLOT_FORKED = 8,
       NDSHARE_SLOT_DIRTY = 16 };

typedef struct {
    ndshare_counts counts;
    uint32_t next;   /* next free slot of the slab */
    uint32_t flags;
    uint32_t pages;  /* how many of its pages were made, from its start; slots of a page and more */
} ndshare_slot;

typedef struct ndshare_segment {
    uint64_t uid;
    size_t size;
    char *base;
    int fd;                  /* own: the memfd; received: the hold or -1 */
    ino_t inode;
    uint8_t kind, origin, state;
    bool lent;               /* whole segment (slabs: any slot) went out since the last good probe */
    bool staged;             /* made to be filled and lent: a fork does not detach it */
    bool detached;
    bool copied;             /* received, and copied out because too much is held already */
    bool transient;          /* mapped from its hold: the mapping goes with it */
    bool readonly;
    bool punch;              /* doomed: give the pages back even if a peer keeps a mapping */
    int size_class;
    uint64_t fork_epoch;     /* last fork at which it was alive; 0: none */
    size_t resident;         /* bytes of pages this process has brought into being */
    size_t shared;           /* of these, counted in `shared_bytes` of the heap */
    ndshare_counts counts;   /* slabs: handles on the whole segment only */
    ndshare_link by_class;   /* idle[class], away[class]; slabs: slabs[class] */
    ndshare_link by_age;     /* idle_lru, away_lru, cache_lru */
    struct ndshare_segment *next_doomed;
    /* slabs */
    ndshare_slot *slots;
    uint32_t n_slots, n_used, n_pending, first_free;
    size_t free_bytes;       /* pages of free slots: kept warm, and capped like whole idle segments */
    int slot_shift;
} ndshare_segment;

#define NDSHARE_OF(link, field) ((ndshare_segment *)((char *)(link) - offsetof(ndshare_segment, field)))

static inline void
ndshare_link_init(ndshare_link *link)
{
    link->prev = link->next = link;
}

static inline void
ndshare_link_remove(ndshare_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    ndshare_link_init(link);
}

static inline void
ndshare_link_push(ndshare_link *head, ndshare_link *link)
{
    link->next = head->next;
    link->prev = head;
    head->next->prev = link;
    head->next = link;
}

/* What could not be done, kept as plain facts so that it can be found out without the GIL. */
typedef struct {
    int number;              /* errno; 0 for a capacity error */
    const char *doing;
    size_t asked, available;
    const char *limit;       /* name of the limit that binds; set for capacity errors */
} ndshare_error;

void ndshare_segment_start(void);
ndshare_segment *ndshare_segment_make(size_t size, bool populate, ndshare_error *error);
ndshare_segment *ndshare_segment_map(int fd, uint64_t uid, size_t size, int kind, ndshare_error *error);
ndshare_segment *ndshare_segment_seal(const char *data, size_t nbytes, size_t size, ndshare_error *error);
int ndshare_segment_populate(ndshare_segment *segment, size_t offset, size_t nbytes, ndshare_error *error);
int ndshare_segment_reopen(int fd, ndshare_error *error);   /* own description, LOCK_SH */
bool ndshare_segment_probe(int fd);
void ndshare_segment_punch(ndshare_segment *segment, size_t offset, size_t nbytes);
void ndshare_segment_detach(ndshare_segment *segment);      /* remap copy-on-write, in place */
void ndshare_segment_destroy(ndshare_segment *segment);

#endif
