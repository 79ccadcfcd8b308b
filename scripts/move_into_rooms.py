"""Moves the files of `src/ndshare` and `tests` into rooms, and renames what imports them. Run once, at the top."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

SRC, TESTS = Path("src/ndshare"), Path("tests")

#: Room -> names of files; ``old=new`` where the name changes by more than the prefix that is given first.
ROOMS = {
    "_system": "_platform=platform cpus _board=board _callers=callers _arguments=arguments",
    "_memory": "segments copying layout _scratch=scratch",
    "_arrays": "arrays.creation=creation arrays.likes=likes arrays._making=making arrays.equals=equals",
    "_pickling": "pickling=pickler recording _session=session cloud codes cells functions"
    " _local_functions=local_functions named namespace reducers wrappers memmaps descriptors",
    "_transport": "transport parcel settling alone staging _inputs=inputs _freight=freight _chunks=chunks"
    " mainspace failures sharing",
    "_locks": "locks=lock",
    "_processes": "hub crew workers=worker_handle _worker=worker _zygote=zygote _launcher=launcher"
    " _frames=frames _surroundings=surroundings _sources=sources _caller_state=caller_state"
    " _errstate=errstate _records=records _placing=placing _injection=injection",
    "_pool": "executor pool tasks items_tasks futures _roster=roster _delivery=delivery _settings=settings"
    " _muster=muster _repeats=repeats _pool_deaths=deaths _pool_end=end _pool_interrupts=interrupts"
    " _pool_results=results _pool_errors=pool_errors",
    "_map": "mapping _runner=runner _driving=driving _job=job rows randomness reduction progress"
    " contexts.base=contexts.base contexts.processes=contexts.processes contexts.local=contexts.local"
    " contexts._layouts=contexts.layouts"
    " _map_workers=workers.base _local_workers=workers.local _pool_workers=workers.pooled"
    " _forked_workers=workers.forked report=report.report _report_text=report.text _timeline=report.timeline"
    " watching=watch.watching captured=watch.captured _own_state=watch.own_state"
    " _contents=watch.contents _differences=watch.differences",
    "_queue": "queues=queue _queue_asyncio=asynchronous _queue_backlog=backlog _queue_exit=exit"
    " _queue_getting=getting _queue_handle=handle _queue_line=line _queue_lines=lines _queue_memory=memory"
    " _queue_messages=messages _queue_opened=opened _queue_putting=putting _queue_slots=slots"
    " _queue_waiting=waiting _queue_wire=wire",
    "_dict": "shared_dict _dict_directory=directory _dict_file=file _dict_fork=fork _dict_layout=layout"
    " _dict_life=life _dict_list=listing _dict_locked=locked _dict_reading=reading _dict_snapshot=snapshot"
    " _dict_values=values _dict_writing=writing",
    "_workspace": "workspace _workspace_values=values _workspace_staff=staff _workspace_cluster=on_cluster"
    " _workspace_images=images _calls=calls _waiting=waiting",
    "_node": "_node=node _node_crew=crew _node_link=link _node_names=names _node_store=store"
    " _node_worker=worker _node_workspace=workspace _twins=twins _shares=shares",
    "_cluster": "cluster=context cluster_executor=executor _engines=engines _flights=flights"
    " _share_size=share_size _cluster_calls=calls _cluster_cargo=cargo _cluster_items=items"
    " _cluster_results=results _cluster_traffic=traffic _cluster_workers=workers",
    "cli": "cli=main _command_ls=ls _command_prune=prune",
}
#: C extension -> where it lies now.
EXTENSIONS = {
    "_wire": "_system._wire",
    "_heap": "_memory._heap",
    "_dict": "_dict._store",
    "_lock": "_locks._lock",
    "_loop": "_map._loop",
    "_twin": "_node._twin",
}
#: Packages that become a room, or a part of one, as they are: their door is imported by its new name.
PACKAGES = {"arrays": "_arrays", "contexts": "_map.contexts"}

MOVES: dict[str, str] = {}
for _room, _names in ROOMS.items():
    for _name in _names.split():
        _old, _, _new = _name.partition("=")
        MOVES[_old] = f"{_room}.{_new or _old}"

TEST_ROOMS = {
    "system": "test_platform test_spinning test_resting",
    "memory": "test_heap test_segments test_segment_chaos=test_chaos test_fork_memory test_fork_user fork_story"
    " fork_tasks test_copying test_limits",
    "arrays": "test_arrays",
    "pickling": "test_reducers test_wrappers wrapper_tasks test_wrapped_arrays test_wrapped_tables"
    " test_main_functions test_local_functions test_in_band",
    "transport": "test_transport test_alone test_sharing test_mainspace",
    "locks": "test_locks",
    "processes": "test_zygote test_starting test_worker_options test_caller_state test_records test_placing"
    " test_nothing_left test_leading",
    "pool": "test_executor test_executor_map test_executor_limits test_executor_shutdown test_failures test_hangs"
    " test_deadlocks hunt_deadlocks test_interrupts hunt_interrupts test_cut_short cut_short_story test_repeats"
    " test_asyncio test_semantics semantics_tasks test_any_array test_array_floods flood_tasks",
    "functors": "test_functors test_functors_arrays=test_arrays test_functors_files=test_files"
    " test_functors_finding=test_finding test_functors_labelled=test_labelled test_functors_trains=test_trains"
    " functor_tasks",
    "map": "test_map_conformance=test_conformance test_map_functors=test_functors test_map_hangs=test_hangs"
    " test_map_lost_writes=test_lost_writes test_map_messages=test_messages test_map_processes=test_processes"
    " test_map_values=test_values test_item_rng test_own_state test_progress test_reduction test_report"
    " test_watching",
    "queue": "test_queue test_queue_chaos=test_chaos queue_tasks",
    "dict": "test_shared_dict test_shared_dict_crash=test_crash test_shared_dict_layout=test_layout"
    " test_shared_dict_lending=test_lending test_shared_dict_life=test_life test_shared_dict_locks=test_locks"
    " test_shared_dict_model=test_model test_shared_dict_rings=test_rings test_shared_dict_snapshot=test_snapshot"
    " dict_tasks",
    "workspace": "test_workspace test_workspace_cluster=test_on_cluster test_workspace_failures=test_failures"
    " workspace_places workspace_tasks",
    "node": "test_node_link=test_link test_node_store=test_store test_twins",
    "cluster": "test_cluster test_cluster_conformance=test_conformance test_cluster_dask=test_dask"
    " test_cluster_hosts=test_hosts test_share_size cluster_suite two_hosts dask_cluster engine_processes",
    "cli": "test_cli",
    "integrations": "test_integration_joblib=test_joblib test_integration_joblib_backend=test_joblib_backend"
    " test_integration_multiprocessing=test_multiprocessing joblib_tasks mp_tasks",
    "compat": "test_compat test_compat_SHMArrays=test_SHMArrays test_compat_contextshare=test_contextshare"
    " test_compat_npshmex=test_npshmex test_compat_npshmex_gone=test_npshmex_gone test_compat_pasha=test_pasha"
    " test_compat_pasha_gone=test_pasha_gone test_compat_shared_numpy=test_shared_numpy pasha_user snp_tasks",
    "demo": "test_demo test_demo_camera=test_camera test_demo_images=test_images"
    " test_demo_workspace=test_workspace",
    "bench": "test_bench test_bench_compat=test_compat test_bench_map=test_map test_bench_plan=test_plan"
    " test_bench_queue=test_queue",
}
TEST_MOVES: dict[str, str] = {}
for _room, _names in TEST_ROOMS.items():
    for _name in _names.split():
        _old, _, _new = _name.partition("=")
        TEST_MOVES[_old] = f"{_room}.{_new or _old}"
#: Helpers of several rooms stay where they are.
SHARED_HELPERS = ("array_tasks", "jobs", "leaks", "misdeeds", "peer", "peers", "processes", "seed_programs")

_FROM_NDSHARE = re.compile(
    r"(?P<indent>^[ \t]*)?from ndshare import "
    r"(?P<names>\(\s*(?:\w+(?: as \w+)?,\s*)+\)|\w+(?: as \w+)?(?:, \w+(?: as \w+)?)*)",
    re.MULTILINE,
)
_FROM_PACKAGE = re.compile(
    r"(?P<indent>^[ \t]*)?from ndshare\.(?P<package>arrays|contexts) import (?P<names>\w+(?:, \w+)*)$",
    re.MULTILINE,
)


def _where(name: str) -> tuple[str, str] | None:
    """Return the package and the name that a module of the corridor has now."""
    dotted = EXTENSIONS.get(name) or MOVES.get(name) or PACKAGES.get(name)
    if dotted is None:
        return None
    package, _, last = f"ndshare.{dotted}".rpartition(".")
    return package, last


def renamed_imports(text: str) -> str:
    """Rewrite ``from ndshare import module``; a module whose name changed is used by its new name."""
    aliases: dict[str, str] = {}
    taken = set(re.findall(r"\b[A-Za-z_]\w*\b", _FROM_NDSHARE.sub("", text)))

    def rewritten(match: re.Match[str]) -> str:
        groups: dict[str, list[str]] = {}
        for name in re.findall(r"\w+(?: as \w+)?", match["names"]):
            real, _, alias = name.partition(" as ")
            package, last = _where(real) or ("ndshare", real)
            if alias:
                last = last if alias == last else f"{last} as {alias}"
            elif last != real:
                if last in taken:
                    last = f"{last} as {real}"
                else:
                    aliases[real] = last
            groups.setdefault(package, []).append(last)
        indent = match["indent"]
        lines = []
        for package, names in sorted(groups.items()):
            line = f"from {package} import {', '.join(sorted(names))}"
            if len(line) > 104:
                line = f"from {package} import (" + ", ".join(sorted(names)) + ")"
            lines.append((indent or "") + line)
        return ("; " if indent is None else "\n").join(lines)

    text = _FROM_NDSHARE.sub(rewritten, text)
    for old, new in aliases.items():
        text = re.sub(rf"(?<![\w.\"'/]){old}(?=\.|\b(?! import))(?!\w)", new, text)
    return text


def renamed_dotted(text: str) -> str:
    """Rewrite ``ndshare.module`` wherever it stands."""
    known = {**{old: new for old, new in MOVES.items()}, **EXTENSIONS, **PACKAGES}
    # Commands and the public room keep their name; the room of an extension is no module of its own here.
    del known["cli"]
    for old in sorted(known, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.])ndshare\.{re.escape(old)}(?![\w])", f"ndshare.\0{known[old]}", text)
    return text.replace("\0", "")


def renamed_helpers(text: str, room: str) -> str:
    """Rewrite imports of helpers and test modules: the tests are a package."""
    for old in [*TEST_MOVES, *SHARED_HELPERS]:
        package, _, last = f"tests.{TEST_MOVES.get(old, old)}".rpartition(".")
        suffix = "" if last == old else f" as {old}"
        text = re.sub(
            rf"(?m)(^[ \t]*|[;\"'] ?|\\n)from {old} import ", lambda m: f"{m[1]}from {package}.{last} import ", text
        )
        text = re.sub(
            rf"(?m)(^[ \t]*|[;\"'] ?|\\n)import {old}(?=\s*$|\s*;|\s*#|\\n|[\"'])",
            lambda m: f"{m[1]}from {package} import {last}{suffix}",
            text,
        )
    return text


def move(old: Path, new: Path) -> None:
    """Move a file or a folder that git knows."""
    new.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "mv", str(old), str(new)], check=True)


def main() -> None:
    """Move everything, then rewrite every text."""
    texts = [
        *SRC.rglob("*.py"), *SRC.rglob("*.pyi"), *SRC.rglob("*.c"), *SRC.rglob("*.h"), *TESTS.rglob("*.py"),
        *Path("docs").rglob("*.md"), Path("README.md"), *Path("benchmarks").rglob("*.md"),
    ]  # fmt: skip
    for path in texts:
        before = text = path.read_text()
        text = renamed_imports(renamed_dotted(_FROM_PACKAGE.sub(_package_import, text)))
        if path.parts[0] == "tests":
            text = renamed_helpers(text, path.stem)
        if text != before:
            path.write_text(text)
    for name in ("_dict", "_lock"):  # their names are those of rooms, or of what is in them
        move(SRC / name, SRC / f"{name}.c")
        move(SRC / f"{name}.pyi", SRC / f"{name}.c.pyi")
    for old, new in EXTENSIONS.items():
        source = SRC / (f"{old}.c" if old in ("_dict", "_lock") else old)
        move(source, SRC / new.replace(".", "/"))
        move(source.with_name(source.name + ".pyi"), SRC / (new.replace(".", "/") + ".pyi"))
    move(SRC / "arrays/__init__.py", SRC / "_arrays/__init__.py")
    move(SRC / "contexts/__init__.py", SRC / "_map/contexts/__init__.py")
    move(SRC / "cli.py", SRC / "cli.move")
    move(SRC / "report.py", SRC / "report.move")
    for old, new in MOVES.items():
        suffix = ".move" if old in ("cli", "report") else ".py"
        move(SRC / (old.replace(".", "/") + suffix), SRC / (new.replace(".", "/") + ".py"))
    for old, new in TEST_MOVES.items():
        move(TESTS / f"{old}.py", TESTS / (new.replace(".", "/") + ".py"))
    for folder in {path.parent for path in (*SRC.rglob("*.py"), *TESTS.rglob("*.py"))}:
        init = folder / "__init__.py"
        if not init.exists():
            init.write_text("")
            subprocess.run(["git", "add", str(init)], check=True)
    for path in list(SRC.rglob("meson.build")):
        subprocess.run(["git", "rm", "-q", str(path)], check=True)


def _package_import(match: re.Match[str]) -> str:
    """``from ndshare.contexts import base`` -> its new name; classes come from the door as before."""
    package = match["package"]
    indent = match["indent"] or ""
    moved = [name for name in match["names"].split(", ") if f"{package}.{name}" in MOVES]
    lines = []
    for name in moved:
        parent, _, last = MOVES[f"{package}.{name}"].rpartition(".")
        lines.append(f"{indent}from ndshare.{parent} import {last}" + ("" if last == name else f" as {name}"))
    rest = [name for name in match["names"].split(", ") if name not in moved]
    if rest:
        lines.append(f"{indent}from ndshare.{PACKAGES[package]} import {', '.join(rest)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
