/* Does it fit? Asked before fresh pages are made, because in a memory cgroup every way of taking too
 * much (fallocate, populate, write, touch) ends in the OOM killer and not in an error.
 *
 * available = min( MemAvailable + SwapFree,
 *                  memory cgroup limit - usage + reclaimable file pages   (v1 and v2, all ancestors),
 *                  RLIMIT_AS - address space in use,
 *                  NDSHARE_MEMORY_LIMIT - what this process, or its pool, has )
 * and the reservations of the other processes of the pool (ledger.c) are subtracted.
 *
 * A reading costs up to 100 us; small requests live on the last one for 50 ms as long as they stay far
 * below it.
 */
#include "capacity.h"

#include "ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define PLENTY SIZE_MAX
#define MARGIN_MOST ((size_t)64 << 20)

static ssize_t
read_file(const char *path, char *buffer, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    ssize_t got = read(fd, buffer, size - 1);
    close(fd);
    buffer[got > 0 ? got : 0] = '\0';
    return got;
}

/* Value of `key` in a file of "key value" lines, in units of `unit` bytes; `missing` if not there. */
static size_t
field(const char *text, const char *key, size_t unit, size_t missing)
{
    size_t length = strlen(key);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, key, length) == 0 && (line[length] == ' ' || line[length] == ':')) {
            return (size_t)strtoull(line + length + 1, NULL, 10) * unit;
        }
        line = strchr(line, '\n');
        line = line ? line + 1 : NULL;
    }
    return missing;
}

static size_t
number_in(const char *directory, const char *name)
{
    char path[4352], text[64];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    if (read_file(path, text, sizeof text) <= 0 || text[0] < '0' || text[0] > '9') {
        return PLENTY;  /* "max", or not there */
    }
    return (size_t)strtoull(text, NULL, 10);
}

/* A little is left for everything that is not an array; at the very edge the killer comes anyway. */
static size_t
less_margin(size_t room, size_t limit)
{
    size_t margin = limit / 32 < MARGIN_MOST ? limit / 32 : MARGIN_MOST;
    return room > margin ? room - margin : 0;
}

static size_t
group_room(const char *directory, bool v2, size_t *limit_out)
{
    size_t limit = number_in(directory, v2 ? "memory.max" : "memory.limit_in_bytes");
    *limit_out = limit;
    if (limit >= (size_t)1 << 60) {
        return PLENTY;
    }
    size_t usage = number_in(directory, v2 ? "memory.current" : "memory.usage_in_bytes");
    if (usage == PLENTY) {
        return PLENTY;
    }
    char path[4352], text[8192];
    snprintf(path, sizeof path, "%s/memory.stat", directory);
    size_t reclaimable = 0;
    if (read_file(path, text, sizeof text) > 0) {
        reclaimable = field(text, v2 ? "inactive_file" : "total_inactive_file", 1, 0)
                    + field(text, v2 ? "active_file" : "total_active_file", 1, 0);
    }
    size_t room = limit > usage ? limit - usage : 0;
    return less_margin(room + reclaimable, limit);
}

/* The group and its ancestors: any of them may bind. In a container the path in /proc/self/cgroup may
 * be the host's; then the mount itself is the group. */
static size_t
walk_groups(const char *mount, const char *group, bool v2, size_t *limit_out)
{
    char directory[4096];
    size_t room = PLENTY, limit;
    snprintf(directory, sizeof directory, "%s%s", mount, group);
    size_t root = strlen(mount);
    if (access(directory, F_OK) != 0) {
        directory[root] = '\0';
    }
    for (;;) {
        size_t here = group_room(directory, v2, &limit);
        if (here < room) {
            room = here;
            *limit_out = limit;
        }
        char *slash = strrchr(directory, '/');
        if (strlen(directory) <= root || slash == NULL || (size_t)(slash - directory) < root) {
            return room;
        }
        *slash = '\0';
    }
}

static size_t
groups_room(size_t *limit)
{
    char text[8192], *rest = NULL;
    size_t room = PLENTY;
    if (read_file("/proc/self/cgroup", text, sizeof text) <= 0) {
        return room;
    }
    for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL) {
            continue;
        }
        *group++ = '\0';
        controllers++;
        size_t here = PLENTY, here_limit = PLENTY;
        if (*controllers == '\0') {
            bool unified = access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0;
            here = walk_groups(unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/unified", group, true, &here_limit);
        }
        else if (strstr(controllers, "memory") != NULL) {
            here = walk_groups("/sys/fs/cgroup/memory", group, false, &here_limit);
        }
        if (here < room) {
            room = here;
            *limit = here_limit;
        }
    }
    return room;
}

static size_t
system_room(size_t *total)
{
    char text[4096];
    if (read_file("/proc/meminfo", text, sizeof text) <= 0) {
        *total = PLENTY;
        return PLENTY;
    }
    *total = field(text, "MemTotal", 1024, PLENTY);
    size_t available = field(text, "MemAvailable", 1024, PLENTY);
    if (available == PLENTY) {
        return PLENTY;
    }
    return less_margin(available + field(text, "SwapFree", 1024, 0), *total);
}

static size_t
address_room(void)
{
    struct rlimit limit;
    char text[128];
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY
        || read_file("/proc/self/statm", text, sizeof text) <= 0) {
        return PLENTY;
    }
    size_t used = (size_t)strtoull(text, NULL, 10) * NDSHARE_PAGE;
    return limit.rlim_cur > used ? (size_t)limit.rlim_cur - used : 0;
}

static atomic_size_t chosen = PLENTY;   /* NDSHARE_MEMORY_LIMIT */

size_t
ndshare_capacity_choose(size_t nbytes)
{
    return atomic_exchange(&chosen, nbytes);
}

static size_t
chosen_room(void)
{
    size_t limit = atomic_load(&chosen);
    if (limit == PLENTY) {
        return PLENTY;
    }
    ndshare_heap_lock();
    size_t own = ndshare_heap.own_bytes;
    ndshare_heap_unlock();
    size_t used = ndshare_ledger_own_use(own);
    return limit > used ? limit - used : 0;
}

size_t
ndshare_capacity_available(const char **name)
{
    size_t total, group_limit = PLENTY, room = system_room(&total), here;
    *name = "memory of this machine";
    if ((here = groups_room(&group_limit)) < room) {
        room = here;
        *name = "memory limit of the control group (container)";
    }
    if ((here = address_room()) < room) {
        room = here;
        *name = "address space of the process (ulimit -v)";
    }
    if ((here = chosen_room()) < room) {
        room = here;
        *name = "NDSHARE_MEMORY_LIMIT";
    }
    return room;
}

size_t
ndshare_capacity_ram(void)
{
    size_t total, group_limit = PLENTY;
    system_room(&total);
    groups_room(&group_limit);
    return group_limit < total ? group_limit : total;
}

static int64_t
milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

size_t
ndshare_capacity_ordinary(void)
{
    static atomic_size_t known = 0;
    static atomic_llong read_at = -1000000;
    if (milliseconds() - atomic_load(&read_at) > 20) {
        char text[128];
        size_t pages = 0, of_files = 0;
        if (read_file("/proc/self/statm", text, sizeof text) > 0 && sscanf(text, "%*s %zu %zu", &pages, &of_files) == 2) {
            atomic_store(&known, (pages > of_files ? pages - of_files : 0) * NDSHARE_PAGE);
        }
        atomic_store(&read_at, milliseconds());
    }
    return atomic_load(&known);
}

size_t
ndshare_capacity_mappings(void)
{
    static atomic_size_t known = 0;
    size_t limit = atomic_load_explicit(&known, memory_order_relaxed);
    if (limit == 0) {
        size_t most = 65530;
        FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
        if (file != NULL) {
            if (fscanf(file, "%zu", &most) != 1) {
                most = 65530;
            }
            fclose(file);
        }
        limit = most;
        atomic_store_explicit(&known, limit, memory_order_relaxed);
    }
    return limit;
}

/* How many own segments there may be: each takes a descriptor and a mapping, and neither is ours alone. */
size_t
ndshare_capacity_segments(void)
{
    struct rlimit limit;
    size_t mappings = ndshare_capacity_mappings() / 4;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return mappings;
    }
    size_t descriptors = (size_t)limit.rlim_cur / 4;
    return descriptors < mappings ? descriptors : mappings;
}

/* 0: reserved, call ndshare_capacity_settle(nbytes) when the pages are there (or were not made). */
int
ndshare_capacity_reserve(size_t nbytes, ndshare_error *error)
{
    static atomic_size_t budget = 0;       /* of the last reading, for small requests */
    static atomic_llong read_at = -1000000;
    struct rlimit files;
    if (getrlimit(RLIMIT_FSIZE, &files) == 0 && files.rlim_cur != RLIM_INFINITY && nbytes > files.rlim_cur) {
        *error = (ndshare_error){.asked = nbytes, .available = (size_t)files.rlim_cur,
                                 .limit = "size of files (ulimit -f)"};
        return -1;
    }
    if (nbytes < ((size_t)4 << 20) && milliseconds() - atomic_load(&read_at) < 50) {
        size_t left = atomic_load(&budget);
        while (left > nbytes) {
            if (atomic_compare_exchange_weak(&budget, &left, left - nbytes)) {
                ndshare_ledger_reserve(nbytes);
                return 0;
            }
        }
    }
    const char *name;
    size_t others = ndshare_ledger_reserve(nbytes), room = ndshare_capacity_available(&name);
    room = room > others ? room - others : 0;
    if (nbytes > room) {
        ndshare_ledger_settle(nbytes);
        *error = (ndshare_error){.asked = nbytes, .available = room, .limit = name};
        return -1;
    }
    atomic_store(&budget, room > ((size_t)512 << 20) ? room / 64 : 0);
    atomic_store(&read_at, milliseconds());
    return 0;
}

void
ndshare_capacity_settle(size_t nbytes)
{
    ndshare_ledger_settle(nbytes);
}
