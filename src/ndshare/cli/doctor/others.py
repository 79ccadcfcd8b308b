"""What is left of programs that have ended, and what those that run hold."""

from __future__ import annotations

from ndshare.cli.doctor.finding import Finding, readable
from ndshare.cli.processes import scan

_NAMED = 5  # processes and dicts that are named; of the others there is a number


def dicts() -> Finding:
    """Dicts that nobody uses any more."""
    from ndshare._dict import infos

    present = infos()
    stale = [info for info in present if not info.users and not info.persistent]
    kept = [info for info in present if not info.users and info.persistent]
    found = f"{len(present)} of this user, {readable(sum(info.nbytes for info in present))}"
    if kept:
        found += f"; {len(kept)} of them persistent and in use by nobody"
    if stale:
        names = ", ".join(info.name for info in stale[:_NAMED]) + (", …" if len(stale) > _NAMED else "")
        size = readable(sum(info.nbytes for info in stale))
        found += f"; {len(stale)} left over by programs that have ended, {size}: {names}"
        return Finding("SharedDicts", "warn", found, "Remove them: ndshare prune.")
    return Finding("SharedDicts", "ok", found if present else "none")


def processes() -> Finding:
    """Other processes of this user that use ndshare, and the memory they hold, each segment counted once."""
    present = scan()
    if not present:
        return Finding("other processes", "ok", "no other process of this user uses ndshare")
    segments: dict[tuple[int, int], int] = {}
    for process in present:
        segments |= {segment.key: segment.nbytes for segment in process.segments}
    largest = sorted(present, key=lambda process: -process.held)[:_NAMED]
    names = ", ".join(f"{process.pid} {process.program} {readable(process.held)}" for process in largest)
    count = f"{len(present)} process{'es' * (len(present) != 1)}"
    found = f"{count} with {readable(sum(segments.values()))} in segments: {names}"
    return Finding(
        "other processes", "ok", f"{found}{', …' if len(present) > _NAMED else ''}; see ndshare top"
    )
