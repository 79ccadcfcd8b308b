"""Memory and what limits it, /dev/shm, descriptors, mappings, pages, /proc."""

from __future__ import annotations

import mmap
import os
import resource
import stat

from ndshare.cli.doctor.finding import Finding, number_of, readable, text_of

_SHM = "/dev/shm"
_SMALL_SHM = 256 << 20
_LITTLE_MEMORY = 512 << 20
_FEW_DESCRIPTORS = 256
_DESCRIPTORS_EACH = 8  # of a worker, in its caller
_FEW_MAPPINGS = 16384
_LIMITS = {
    "ulimit -v (RLIMIT_AS)": resource.RLIMIT_AS,
    "ulimit -d (RLIMIT_DATA)": resource.RLIMIT_DATA,
    "ulimit -f (RLIMIT_FSIZE)": resource.RLIMIT_FSIZE,
}


def kernel() -> Finding:
    """The system itself."""
    system = os.uname()
    found = f"{system.sysname} {system.release}, {system.machine}"
    if system.sysname != "Linux":
        return Finding("system", "fail", found, "ndshare works on Linux only.")
    return Finding("system", "ok", found)


def proc() -> Finding:
    """``/proc``, without which memory cannot be lent."""
    remedy = "Mount it (mount -t proc proc /proc); in a container or jail, do not hide it."
    if not os.path.exists("/proc/self/fd"):
        return Finding("/proc", "fail", "not mounted: there is no /proc/self/fd", remedy)
    try:
        number = int(os.readlink("/proc/self"))
    except (OSError, ValueError):
        number = 0
    if number != os.getpid():
        found = f"that of another process namespace: this process is {number} there and {os.getpid()} here"
        return Finding("/proc", "fail", found, remedy)
    files = ("meminfo", "locks", "self/maps", "self/stat", "self/fdinfo", "self/smaps_rollup", "self/pagemap")
    missing = [f"/proc/{name}" for name in files if not os.access(f"/proc/{name}", os.R_OK)]
    if missing:
        return Finding("/proc", "warn", f"mounted, but not to be read: {', '.join(missing)}", remedy)
    return Finding("/proc", "ok", "mounted, readable")


def memory() -> Finding:
    """How much fits, and which limit binds."""
    from ndshare._memory import available

    room, limit = available()
    lines = dict(line.split(":", 1) for line in text_of("/proc/meminfo").splitlines() if ":" in line)
    total = int(lines["MemTotal"].split()[0]) * 1024 if "MemTotal" in lines else 0
    found = f"{readable(total)} in the machine, room for {readable(room)}; the limit that binds: {limit}"
    if text_of("/proc/sys/vm/overcommit_memory") == "2":
        found += "; the kernel does not overcommit (vm.overcommit_memory is 2)"
    if room < _LITTLE_MEMORY:
        remedy = "Free memory, or raise that limit (docker run --memory, NDSHARE_MEMORY_LIMIT, ulimit -v)."
        return Finding("memory", "warn", found, remedy)
    return Finding("memory", "ok", found)


def process_limits() -> Finding:
    """Limits of the process that end in errors at unexpected places."""
    low = []
    for name, which in _LIMITS.items():
        soft, _ = resource.getrlimit(which)
        if soft != resource.RLIM_INFINITY:
            low.append(f"{name} {readable(soft)}")
    if low:
        remedy = (
            "Arrays beyond are refused with MemoryError: raise them (ulimit -v unlimited), or keep below."
        )
        return Finding("limits of the process", "warn", "; ".join(low), remedy)
    return Finding("limits of the process", "ok", "address space, data and file size are unlimited")


def dev_shm() -> Finding:
    """``/dev/shm``, where `SharedDict` lives (arrays, queues and maps do not)."""
    remedy = (
        "Enlarge it (docker run --shm-size=2g; mount -o remount,size=2g /dev/shm): each SharedDict must fit."
    )
    try:
        status, room = os.stat(_SHM), os.statvfs(_SHM)
    except OSError as error:
        return Finding(_SHM, "warn", f"cannot be used: {error.strerror}; no SharedDict works", remedy)
    size, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    if not stat.S_ISDIR(status.st_mode) or not os.access(_SHM, os.W_OK | os.X_OK):
        found = f"not writable for this user ({stat.filemode(status.st_mode)}); no SharedDict works"
        return Finding(_SHM, "warn", found, "Make it writable: chmod 1777 /dev/shm.")
    found = f"{readable(size)}, {readable(free)} free"
    if size and free < _SMALL_SHM:
        return Finding(_SHM, "warn", f"{found}; limits SharedDict only, arrays do not lie there", remedy)
    return Finding(_SHM, "ok", found if size else "as large as memory")


def descriptors(workers: int) -> Finding:
    """Open files: a few for each worker, queue and dict, and one for each segment of memory in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd")) - 1 if os.path.isdir("/proc/self/fd") else 0
    found = f"ulimit -n is {soft}" + (f", at most {hard}" if hard != soft else "") + f"; {opened} open here"
    wanted = max(_FEW_DESCRIPTORS, _DESCRIPTORS_EACH * workers)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = "a higher value" if hard != resource.RLIM_INFINITY and hard < wanted else "ulimit -n 4096"
        where = "" if most.startswith("ulimit") else " of the administrator (/etc/security/limits.conf)"
        remedy = f"Ask for {most}{where}: with few, arrays are copied, and queues and dicts may be refused."
        return Finding("open files", "warn", found, remedy)
    return Finding("open files", "ok", found)


def mappings() -> Finding:
    """Mappings of memory: one for each segment in use."""
    most = number_of("/proc/sys/vm/max_map_count")
    used = len(text_of("/proc/self/maps").splitlines())
    if most is None:
        return Finding("mappings", "ok", f"{used} here; how many there may be is not known")
    found = f"{used} here, at most {most}"
    if most < _FEW_MAPPINGS:
        return Finding("mappings", "warn", found, "Raise it: sysctl vm.max_map_count=65530.")
    return Finding("mappings", "ok", found)


def pages() -> Finding:
    """Page size, and huge pages for shared memory."""
    chosen = text_of("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    huge = chosen.partition("[")[2].partition("]")[0] or "not known"
    ordinary = text_of("/sys/kernel/mm/transparent_hugepage/enabled").partition("[")[2].partition("]")[0]
    found = (
        f"{mmap.PAGESIZE} bytes; huge pages in shared memory: {huge}, elsewhere: {ordinary or 'not known'}"
    )
    return Finding("pages", "ok", found)
