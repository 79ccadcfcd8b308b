"""What a program's functions find in a worker's ``__main__``: tried with real scripts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Script = Callable[..., str]

_HEAD = "from tests.peer import Peer\nimport numpy as np\n"


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Return a function that runs source text as a program, and returns what it prints."""

    def run(source: str, *, command: bool = False, check: bool = True) -> str:
        text = _HEAD + textwrap.dedent(source)
        path = tmp_path / "program.py"
        path.write_text(text)
        arguments = ["-c", text] if command else [str(path)]
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            check=False,
        )
        if check and done.returncode:
            pytest.fail(done.stdout + done.stderr, pytrace=False)
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("command", [False, True], ids=["script", "python -c"])
def test_initializer_global_model_is_seen_by_later_tasks(script: Script, command: bool) -> None:
    """``global model`` in one function is there for the next one, and a cache in a global grows."""
    script(
        """
        model = None
        cache = []
        SCALE = 3

        def init(n):
            global model, late
            model = np.arange(n)
            late = "made in the worker"

        def task(x):
            cache.append(x)
            return int(model.sum()) * SCALE + x, late, len(cache)

        with Peer() as peer:
            peer.call(init, 4)
            assert peer.call(task, 1) == (19, "made in the worker", 1)
            assert peer.call(task, 2) == (20, "made in the worker", 2)
            assert model is None and cache == []
            assert peer.delivered == [{"init", "model", "np"}, {"task", "cache", "SCALE"}], peer.delivered
            SCALE = 4                      # a changed constant is sent, and nothing else
            assert peer.call(task, 0) == (24, "made in the worker", 3)
            assert peer.delivered[2:] == [{"SCALE"}]
            cache.append("caller")         # a changed list too
            assert peer.call(task, 0) == (24, "made in the worker", 2)
        """,
        command=command,
    )


def test_large_global_is_sent_once(script: Script) -> None:
    """An 8 MB global goes once per worker, in a segment, and is the worker's own."""
    script(
        """
        big = np.arange(1_000_000.0)

        def task(i):
            big[0] += 1
            return float(big[i]), float(big[0])

        with Peer() as peer:
            for i in range(1, 5):
                assert peer.call(task, i) == (i, i)
            assert len(peer.delivered) == 1
            assert big[0] == 0
            big = big * 2
            assert peer.call(task, 3) == (6, 1)
            assert len(peer.delivered) == 2
        """
    )


def test_class_attribute_changed_in_worker_stays_there(script: Script) -> None:
    """What a worker does to a class of the caller never shows in the caller."""
    script(
        """
        import dataclasses, enum

        class Base:
            level = 1
            def __init__(self): self.x = 0
            def up(self):
                type(self).level += 1
                self.x += OFFSET
                return self

        OFFSET = 10

        class Config(Base):
            def up(self):
                return super().up()
            class Inner:
                pass

        class Color(enum.Enum):
            RED = 1
            BLUE = "b"

        @dataclasses.dataclass
        class Point:
            x: int
            y: "np.ndarray"
            color: Color = Color.RED

        def local_class():
            class Local:
                level = 1
                def up(self):
                    type(self).level += 1
                    return self
            return Local

        Local = local_class()
        other = local_class()

        def task(config, point):
            config.up()
            point.x += 1
            assert isinstance(point, Point) and point.color is Color.RED
            return config, Point(point.x, point.y * 2, Color.BLUE), Config.Inner()

        with Peer() as peer:
            for n in (1, 2):
                config, point, inner = peer.call(task, Config(), Point(1, np.ones(3)))
                assert type(config) is Config and config.x == 10 and Config.level == 1
                assert type(point) is Point and point.x == 2 and point.color is Color.BLUE
                assert type(inner) is Config.Inner
                assert (point.y == 2).all()
            assert len(peer.delivered) == 1, peer.delivered
            back = peer.call(lambda obj: obj.up(), other())
            assert type(back) is other and other.level == 1
            back = peer.call(lambda: Local())
            assert type(back) is Local and Local.level == 1
        """
    )


def test_functions_without_a_name_share_the_namespace(script: Script) -> None:
    """Lambdas, closures, partials, methods, decorated and cached functions work on the same globals."""
    script(
        """
        import functools, typing
        state = {"n": 0}
        T = typing.TypeVar("T")
        UserId = typing.NewType("UserId", int)

        def bump(by: UserId = UserId(1)) -> T:
            state["n"] += by
            return state["n"]

        def outer(k):
            total = k
            def add(x):
                nonlocal total
                total += x
                return total
            def read():
                return total
            def fact(n):
                return 1 if n < 2 else n * fact(n - 1)
            return add, read, fact

        def logged(f):
            @functools.wraps(f)
            def wrapper(*args):
                bump()
                return f(*args)
            return wrapper

        @logged
        def decorated(x):
            return x, state["n"]

        @functools.lru_cache(maxsize=7)
        def cached(x):
            bump(100)
            return x

        @functools.singledispatch
        def kind(x): return "other"
        @kind.register
        def _(x: int): return "int"

        class Counter:
            def __init__(self): self.n = 5
            def plus(self, k): return self.n + k + bump(0) * 0
            @classmethod
            def make(cls): return cls()
            @staticmethod
            def const(): return 42
            @property
            def double(self): return 2 * self.n

        def both(fs, x):
            add, read, fact = fs
            add(x)
            return read(), fact(5)

        def recursive_pair(n): return n if n == 0 else partner(n - 1)
        def partner(n): return recursive_pair(n)

        async def coroutine(): return 1
        def generator(n): yield from range(n)

        with Peer() as peer:
            assert peer.call(lambda: bump()) == 1
            assert peer.call(functools.partial(bump, 2)) == 3
            assert peer.call(decorated, "x") == ("x", 4)
            assert peer.call(both, outer(10), 5) == (15, 120)
            assert peer.call(Counter().plus, 1) == 6
            assert type(peer.call(Counter.make)) is Counter
            assert peer.call(Counter.const) == 42
            assert peer.call(lambda c: c.double, Counter()) == 10
            assert peer.call(cached, 3) == 3
            assert peer.call(cached, 3) == 3
            assert peer.call(lambda: state["n"]) == 104
            assert peer.call(lambda: cached.cache_parameters()["maxsize"]) == 7
            assert peer.call(kind, 3) == "int" and peer.call(kind, "") == "other"
            assert peer.call(recursive_pair, 3) == 0
            assert peer.call(lambda: T.__name__) == "T"
            assert peer.call(lambda: UserId(3)) == 3
            assert peer.call(lambda: list(generator(3))) == [0, 1, 2]
            assert peer.call(lambda: (lambda: [bump.__module__ for _ in range(1)])()) == ["__main__"]
            f = peer.call(outer, 1)[0]
            assert f(1) == 2 and f.__globals__ is globals()
            assert state["n"] == 0
        """
    )


def test_modules_submodules_and_files_of_the_caller(script: Script, tmp_path: Path) -> None:
    """Modules go by import, with the submodules that are used; ``__file__`` is the caller's."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "deep.py").write_text("def f(): return 'deep'\n")
    out = script(
        """
        import sys
        import xml.etree.ElementTree
        import xml as markup
        import os.path as p
        import json

        def task():
            tag = markup.etree.ElementTree.fromstring("<a/>").tag
            return tag, p.basename(__file__), __name__, json.dumps([1])

        def package():
            import pkg.deep
            return pkg.deep.f()

        def closure():
            import xml.etree.ElementTree

            return lambda: xml.etree.ElementTree.fromstring("<b/>").tag

        with Peer(PYTHONPATH=":".join([*sys.path])) as peer:
            assert peer.call(task) == ("a", "program.py", "__main__", "[1]")
            assert peer.call(package) == "deep"
        with Peer(PYTHONPATH=":".join([*sys.path])) as peer:
            assert peer.call(closure()) == "b"
            assert peer.call(lambda m: m.__name__, json) == "json"
        print("done")
        """
    )
    assert out == "done\n"


def test_redefined_function_and_class_are_sent_again(script: Script) -> None:
    """As in a notebook: running a cell again replaces what the worker has."""
    script(
        """
        def f(): return 1
        class C:
            v = 1
        with Peer() as peer:
            old = C
            assert peer.call(f) == 1 and peer.call(lambda: C.v) == 1
            def f(): return 2
            class C:
                v = 2
            assert peer.call(f) == 2 and peer.call(lambda: C.v) == 2
            assert type(peer.call(lambda: C())) is C
            assert type(peer.call(lambda x: x, old())) is old
            def helper_user(): return helper()
            try:
                peer.call(helper_user)
            except NameError:
                pass
            def helper(): return 3
            assert peer.call(helper_user) == 3
        """
    )


def test_unsendable_global_names_itself_and_its_user(script: Script) -> None:
    """The error says which global, of what type, and who uses it."""
    script(
        """
        line = (n for n in range(3))
        def inner(): return next(line)
        def task(): return inner()
        with Peer() as peer:
            for _ in range(2):
                try:
                    peer.call(task)
                except TypeError as error:
                    assert "'line' (generator) of __main__, which 'inner' uses" in str(error), error
                else:
                    raise AssertionError
            line = None
            def inner(): return 2
            assert peer.call(task) == 2
        """
    )


def test_identity_within_one_delivery_is_kept(script: Script) -> None:
    """Two names of one object are two names of one object over there too."""
    script(
        """
        a = {"k": 1}
        b = a
        class Node:
            registry = []
        node = Node()
        Node.registry.append(node)
        def task():
            return a is b, Node.registry[0] is node, isinstance(node, Node)
        with Peer() as peer:
            assert peer.call(task) == (True, True, True)
        """
    )


def test_what_pickles_as_its_name_is_found(script: Script) -> None:
    """Objects whose ``__reduce__`` answers a name are taken apart where that name is defined, and only there."""
    script(
        """
        class _Sentinel:
            def __init__(self): self.text = "missing"
            def __reduce__(self): return "MISSING"
        MISSING = _Sentinel()
        table = {"a": MISSING}
        def task(x=None): return x is MISSING is table["a"] and x.text == "missing"
        with Peer() as peer:
            assert peer.call(task, MISSING)
            assert peer.call(lambda: MISSING) is MISSING
        """
    )


def test_spawned_main_program_is_served_too(script: Script) -> None:
    """Under multiprocessing's spawn the program is called ``__mp_main__``; classes come back as they were."""
    script(
        """
        import multiprocessing
        K = 5
        class Thing:
            pass
        def task(t):
            t.k = K
            return t
        def child(queue):
            with Peer() as peer:
                back = peer.call(task, Thing())
            queue.put((type(back) is Thing, back.k))
        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            process = context.Process(target=child, args=(queue,))
            process.start()
            assert queue.get(timeout=50) == (True, 5)
            process.join()
        """
    )


def test_cloudpickle_is_imported_only_when_needed(script: Script) -> None:
    """Plain functions, lambdas and closures of a program do without it."""
    script(
        """
        import sys
        K = 1
        def f(x): return x + K
        with Peer() as peer:
            assert peer.call(f, 1) == 2 and peer.call(lambda: f(2)) == 3
            assert "cloudpickle" not in sys.modules
            assert peer.call(lambda: "cloudpickle" in __import__("sys").modules) is False
        """
    )


def test_classes_of_all_kinds_come_back_as_they_were(script: Script) -> None:
    """Named tuples, slots, abstract and generic classes, enums, exceptions, decorated functions."""
    script(
        """
        import abc, collections, dataclasses, enum, functools, typing
        T = typing.TypeVar("T")
        Pair = collections.namedtuple("Pair", "a b")
        class Typed(typing.NamedTuple):
            x: int
            y: "Pair" = Pair(1, 2)
        class Shape(abc.ABC):
            @abc.abstractmethod
            def area(self): ...
        class Square(Shape):
            __slots__ = ("side",)
            def __init__(self, side): self.side = side
            def area(self): return self.side ** 2
        class Stack(typing.Generic[T]):
            def __init__(self, items: list[T]): self.items = items
        class Flag(enum.IntFlag):
            A = 1
            B = 2
        class Level(str, enum.Enum):
            LOW = "low"
            def shout(self): return self.value.upper()
        @dataclasses.dataclass(frozen=True, slots=True)
        class Frozen:
            n: int = 3
        @dataclasses.dataclass
        class Tree:
            value: int
            children: "list[Tree]" = dataclasses.field(default_factory=list)
            kind: typing.ClassVar[str] = "tree"
        class Problem(ValueError):
            def __init__(self, code, text):
                super().__init__(code, text)
                self.code = code
        class Meta(type):
            def __call__(cls, *args):
                obj = super().__call__(*args)
                obj.made = True
                return obj
        class Made(metaclass=Meta): pass
        class Unequal:
            def __eq__(self, other): return NotImplemented
            __hash__ = None

        @functools.wraps(np.sum)
        def total(x):
            counter["n"] += 1
            return float(np.add.reduce(x))
        counter = {"n": 0}

        def tree(n):
            return Tree(n, [tree(n - 1)] if n else [])
        def everything():
            total(np.ones(3))
            return [Pair(1, Typed(5)), Square(4), Stack([1]), Flag.A | Flag.B, Level.LOW, Frozen(5), tree(5),
                    Made(), Unequal(), [Tree], Square(3).area(), Level.LOW.shout(), counter["n"]]
        def fail():
            raise Problem(7, "no")

        with Peer() as peer:
            for n in (1, 2):
                got = peer.call(everything)
                here = everything()
                assert [type(x) for x in got] == [type(x) for x in here]
                assert got[0] == here[0] and type(got[0].b.y) is Pair and got[3] == 3 and got[4] is Level.LOW
                assert got[1].area() == 16 and got[5] == here[5] and got[6] == here[6] and got[7].made
                assert got[9] == [Tree] and got[10:] == [9, "LOW", n]
            assert peer.call(total, np.ones(4)) == 4
            assert peer.call(lambda: counter["n"]) == 3
            try:
                peer.call(fail)
            except Problem as error:
                assert error.code == 7
        """
    )


def test_rebound_globals_are_let_go(script: Script) -> None:
    """Neither lists nor arrays of earlier values are kept alive by what workers were sent."""
    script(
        """
        import gc, weakref
        class Item: pass
        data = [Item(), np.zeros(100_000)]
        array = np.zeros(100_000)
        seen = [weakref.ref(data[0]), weakref.ref(data[1]), weakref.ref(array)]
        def task(): return len(data), len(array)
        with Peer() as peer:
            assert peer.call(task) == (2, 100_000)
            data = array = ()
            assert peer.call(task) == (0, 0)
            gc.collect()
            assert [ref() for ref in seen] == [None] * 3
        """
    )


@pytest.mark.skipif(sys.version_info < (3, 12), reason="syntax of Python 3.12")
def test_type_parameters_and_aliases_are_sent(script: Script) -> None:
    """Generic functions, classes and type aliases in the new syntax."""
    script(
        """
        type Alias = list[int]
        type Nest = dict[str, Nest] | int
        def listed[T](x: T) -> Alias:
            return [x]
        class Box[T]:
            def __init__(self, x: T): self.x = x
            def get(self) -> T: return self.x
        with Peer() as peer:
            assert peer.call(listed, 1) == [1]
            box = peer.call(Box, 4)
            assert type(box) is Box and box.get() == 4
            assert peer.call(lambda: listed.__type_params__[0].__name__) == "T"
            assert peer.call(lambda: Alias.__value__) == list[int]
            assert peer.call(lambda: Nest) is Nest and peer.call(lambda: Nest.__value__) == Nest.__value__
        """
    )


def test_relative_import_in_a_function_works(tmp_path: Path) -> None:
    """Under ``python -m package.module`` too, in a worker that can import the package."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "other.py").write_text("value = 41\n")
    (package / "module.py").write_text(
        "import sys\nfrom tests.peer import Peer\n"
        "def task(x):\n    from .other import value\n    return value + x\n"
        "with Peer(PYTHONPATH=':'.join(sys.path)) as peer:\n    print(peer.call(task, 1))\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "package.module"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("42\n", "")
