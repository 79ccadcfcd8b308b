"""Modules of the user's: what the caller has loaded decides which one a worker has.

::

    caller   Modules.generation()     goes up when a module was reloaded, replaced or thrown out
    worker   import x ── ASK ──►      Modules.facts("x")      its file; its source if that has changed
             Finder     ◄── MAIN ──   that file, or that source
    caller   is_outdated(sources)     whether a worker has another module than it would get

Python itself and installed packages are left alone: they do not change while a program runs.

Guarantees
----------
* A worker imports the file that the caller has loaded, as it was when workers were first used after that; or
  as it was when it was imported, if Python has kept its code in a ``.pyc``.
* A module that the caller has not loaded is imported as the caller would import it now.

Not guaranteed
--------------
* What a module has become by assignments of the program to its globals.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import marshal
import os
import struct
import sys
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_AUTORELOAD = "IPython.extensions.autoreload"
_OURS = ("ndshare", "__main__", "__mp_main__")
_HEAD = struct.Struct("<4sIII")  # of a .pyc
#: So many modules of a worker are looked at again.
_MOST = 1000

Source = tuple[str, str, int]
"""Name, file and time of its last change, in nanoseconds."""


def _is_user_file(path: object) -> bool:
    return (
        isinstance(path, str)
        and not path.startswith((sys.prefix, sys.base_prefix))
        and not any(place in path for place in _INSTALLED)
    )


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1


def _place(name: str) -> tuple[str, int]:
    """Return where a module is found that is not imported yet, and when that file was changed."""
    spec = importlib.machinery.PathFinder.find_spec(name)
    file = (spec and spec.origin) or ""
    return file, _changed(file)


class _Note(NamedTuple):
    """A module as it was when it was seen first; without a file if it is none of the user's."""

    module: types.ModuleType
    spec: Any
    file: str = ""
    changed: int = 0
    source: bytes | None = None  # or its code, marshalled, after the magic number
    places: tuple[str, ...] | None = None  # of a package


def _is_running(note: _Note) -> bool:
    """Tell whether a module of the user's has not come to its end, or was run otherwise than by an import."""
    if note.spec is not None:
        return bool(note.file) and getattr(note.spec, "_initializing", False)
    return _is_user_file(getattr(note.module, "__file__", None))


def _updated_in_place() -> dict[str, float]:
    """Return which modules IPython has brought up to date, and from files of which time."""
    try:
        shell = sys.modules["IPython"].get_ipython()
        reloader = shell.magics_manager.registry["AutoreloadMagics"]._reloader
        return {name: changed for name, changed in reloader.modules_mtimes.items() if name in sys.modules}
    except (KeyError, AttributeError, RuntimeError):
        return {}


def _compiled_before(module: types.ModuleType, spec: Any, file: str) -> tuple[int, bytes] | None:
    """Return time and code of what was imported, if the file was changed between that and now."""
    try:
        status = os.stat(file)
        with open(spec.cached, "rb") as opened:
            magic, flags, changed, size = _HEAD.unpack(opened.read(_HEAD.size))
            if magic != importlib.util.MAGIC_NUMBER or flags:
                return None
            if changed == int(status.st_mtime) & 0xFFFFFFFF and size == status.st_size & 0xFFFFFFFF:
                return None
            code = opened.read()
        known = {one for one in marshal.loads(code).co_consts if isinstance(one, types.CodeType)}
    except (OSError, TypeError, AttributeError, ValueError, EOFError, struct.error):
        return None
    own = [one for one in list(vars(module).values()) if type(one) is types.FunctionType]
    if all(one.__code__ in known for one in own if one.__code__.co_filename == file):
        return changed * 10**9, importlib.util.MAGIC_NUMBER + code
    return None  # it is older than what was imported: no code was written


def _last(modules: dict[str, types.ModuleType]) -> str:
    """Return the name that came last; other threads may import just then."""
    while True:
        try:  # not `contextlib.suppress`: this is done for each task
            return next(reversed(modules), "")
        except RuntimeError:  # the dict has changed its size
            pass


class Modules:
    """The modules that this process has loaded. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._notes: dict[str, _Note] = {}
        self._seen: tuple[int, str, Any] = (0, "", None)
        self._generation = 0
        #: What workers have imported and this process has not: where it is found on this `_path`.
        self._elsewhere: dict[str, tuple[str, int]] = {}
        self._path: list[str] = []

    def generation(self) -> int:
        """Return a number that is another one after a module of the user's was replaced.

        Whatever is imported, reloaded or put back comes last in `sys.modules`. What only workers have
        imported is replaced when it is imported here from elsewhere, or would be.
        """
        modules = sys.modules
        last = _last(modules)
        spec = getattr(modules.get(last), "__spec__", None)
        count, name, known = self._seen
        if known is not spec or name != last or count != len(modules):
            with self._lock:
                self._look()
                self._seen = len(modules), last, spec
        if self._elsewhere and self._path != sys.path:
            with self._lock:
                self._look_elsewhere()
        if _AUTORELOAD in modules:
            with self._lock:
                self._look_at_files()
        return self._generation

    def _look_at_files(self) -> None:
        """Note what a notebook has brought up to date in place, without loading it anew."""
        updated: dict[str, float] | None = None
        for name, note in list(self._notes.items()):
            if not note.file or _changed(note.file) in (note.changed, -1):
                continue
            if updated is None:
                updated = _updated_in_place()
            with contextlib.suppress(OSError):
                if updated.get(name) == os.stat(note.file).st_mtime:
                    with open(note.file, "rb") as opened:
                        new = note._replace(changed=_changed(note.file), source=opened.read())
                    self._notes[name] = new
                    self._generation += 1

    def _look_elsewhere(self) -> None:
        self._path = list(sys.path)
        for name, place in list(self._elsewhere.items()):
            if _place(name) != place:
                del self._elsewhere[name]
                self._generation += 1

    def _look(self) -> None:
        for name, module in list(sys.modules.items()):
            note = self._notes.get(name)
            spec = getattr(module, "__spec__", None)
            if note is not None and note.module is module and note.spec is spec:
                continue
            if note is not None and note.file:
                self._generation += 1
            self._notes[name] = note = self._note(name, module, spec)
            if note.file and self._elsewhere.pop(name, note[2:4]) != note[2:4]:
                self._generation += 1
        # Only what is under the lock is gone through: other threads import meanwhile.
        for name in [name for name in self._notes if name not in sys.modules]:
            if self._notes.pop(name).file:
                self._generation += 1

    def _note(self, name: str, module: types.ModuleType, spec: Any) -> _Note:
        file = getattr(module, "__file__", None)
        if not _is_user_file(file) or name.partition(".")[0] in _OURS or spec is None:
            return _Note(module, spec)
        assert isinstance(file, str)
        changed = _changed(file)
        places = getattr(module, "__path__", None)
        places = None if places is None else tuple(places)
        if not file.endswith(".py"):
            return _Note(module, spec, file, changed, None, places)
        if (compiled := _compiled_before(module, spec, file)) is not None:
            return _Note(module, spec, file, *compiled, places)
        try:
            with open(file, "rb") as opened:
                return _Note(module, spec, file, changed, opened.read(), places)
        except OSError:
            return _Note(module, spec)

    def facts(self, name: str) -> tuple[str, int, bytes | None, tuple[str, ...] | None] | tuple[()] | None:
        """Return how a worker imports a module as it is here; None if it is not, or none of the user's.

        Nothing is in the answer if it must not: the module is a program that runs at this moment, and would
        run in the worker, too.
        """
        self.generation()
        note = self._notes.get(name)
        if note is not None and _is_running(note):
            return ()
        if note is None or not note.file:
            if note is None and "." not in name:
                with self._lock:
                    if not self._elsewhere:
                        self._path = list(sys.path)
                    self._elsewhere.setdefault(name, _place(name))
            return None
        same = _changed(note.file) == note.changed
        return note.file, note.changed, None if same else note.source, note.places

    def is_outdated(self, sources: Sequence[Source]) -> bool:
        """Tell whether a worker that has imported these would get others now."""
        self.generation()
        for name, file, changed in sources:
            note = self._notes.get(name)
            if note is not None and note.file:
                expected = note.file, note.changed
            else:
                expected = _place(name) if "." not in name else (file, _changed(file))
            if expected != (file, changed):
                return True
        return False


loaded = Modules()
"""Those of this process."""


# ---------------------------------------------------------------------- the worker's side


class _AsItWas(importlib.machinery.SourceFileLoader):
    """Loads a module from the source that the caller had of it."""

    def __init__(self, name: str, file: str, source: bytes) -> None:
        super().__init__(name, file)
        self._source = source

    def get_code(self, _fullname: str) -> types.CodeType:
        """Compile the source; nothing is written beside the file, which is another one by now."""
        code: types.CodeType
        if self._source.startswith(magic := importlib.util.MAGIC_NUMBER):
            code = marshal.loads(self._source[len(magic) :])
        else:
            code = compile(self._source, self.path, "exec", dont_inherit=True)
        return code


class Finder:
    """Asks the caller which file a module of the user's is, whenever one is imported here.

    Parameters
    ----------
    ask : callable
        Returns `Modules.facts` of a name.
    """

    def __init__(self, ask: Callable[[str], Any]) -> None:
        self._ask = ask
        self._installed = len(sys.modules)
        self._noted = set(sys.modules)  # modules that are nobody's to change
        self._changed: dict[str, tuple[str, int]] = {}
        self._as_here: dict[str, int] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        root = name.partition(".")[0]
        if root in sys.stdlib_module_names or root in _OURS:
            return None
        if path is not None and not any(map(_is_user_file, path)):
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is not None and found.origin is not None and not _is_user_file(found.origin):
            return None
        facts = self._ask(name)
        if facts is None:
            return found
        if not facts:
            raise ModuleNotFoundError(f"No module named {name!r}: its caller is still running it", name=name)
        file, changed, source, places = facts
        self._as_here[name] = changed
        if source is None and found is not None and found.origin == file:
            return found
        loader = None if source is None else _AsItWas(name, file, source)
        return importlib.util.spec_from_file_location(
            name, file, loader=loader, submodule_search_locations=None if places is None else list(places)
        )

    def note(self) -> None:
        """Look at the files of newly imported modules at once: they may change once the result is out."""
        if len(sys.modules) == self._installed:
            return
        for name in sys.modules.keys() - self._noted:
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and _is_user_file(file) and name not in _OURS:
                self._changed[name] = file, self._as_here.get(name) or _changed(file)
        self._noted.update(sys.modules)
        self._installed = len(sys.modules)

    def sources(self) -> list[Source]:
        """Return the modules of the user's that are loaded here."""
        return [(name, *facts) for name, facts in self._changed.items()][:_MOST]
