"""Classes of the user's program arrive as they are: one program states it, and fork is the measure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 90

_CLASSES = """
import abc, collections, copy, ctypes, dataclasses, enum, functools, pickle, typing

ran = collections.Counter()

# ---- dataclasses
@dataclasses.dataclass(slots=True)
class Slotted:
    x: int
    y: list = dataclasses.field(default_factory=list)

@dataclasses.dataclass(slots=True, frozen=True, order=True)
class Frozen:
    x: int = 3
    kind: typing.ClassVar[str] = "frozen"

@dataclasses.dataclass(slots=True)
class Longer(Slotted):
    z: float = dataclasses.field(default=2.0, metadata={"unit": "mm"}, kw_only=True)
    seed: dataclasses.InitVar[int] = 0
    def __post_init__(self, seed):
        self.y = [*self.y, seed]
    def base(self):
        return Slotted.__repr__(self)

@dataclasses.dataclass(slots=True, weakref_slot=True)
class Weak:
    x: int = 0

# ---- enumerations
class Limit(enum.Enum):
    LOW = (1, 10)
    HIGH = (2, 20)
    SMALL = (1, 10)
    def __init__(self, first, second):
        ran["Limit"] += 1
        self.second = second
    @property
    def both(self):
        return self.value[0] + self.second
    @classmethod
    def least(cls):
        return cls.LOW

class Planet(bytes, enum.Enum):
    EARTH = (1, "blue")
    MARS = (2, "red")
    def __new__(cls, number, color):
        made = bytes.__new__(cls, [number])
        made._value_ = number
        made.color = color
        return made

class Access(enum.IntFlag):
    R = 4
    W = 2
    X = 1
    RW = R | W

class Style(enum.Flag, boundary=enum.KEEP):
    BOLD = enum.auto()
    ITALIC = enum.auto()

class Word(enum.StrEnum):
    YES = enum.auto()
    NO = enum.auto()
    def opposite(self):
        return Word.NO if self is Word.YES else Word.YES

class Unhashable(enum.Enum):
    A = [1]
    B = {"k": 1}

class Number(enum.IntEnum):
    ONE = 1
    UNO = 1
    TWO = 2
    @classmethod
    def _missing_(cls, value):
        return cls.TWO

class Turn(enum.Enum):
    LEFT = 1
    RIGHT = 2
Turn.back = {Turn.LEFT: Turn.RIGHT, Turn.RIGHT: Turn.LEFT}

# ---- properties, descriptors
class Lazy:
    @functools.cached_property
    def square(self):
        return 4
    @functools.singledispatchmethod
    def kind(self, x): return "other"
    @kind.register
    def _(self, x: int): return "int"
    def power(self, n, k): return n ** k
    cube = functools.partialmethod(power, k=3)
    @functools.lru_cache
    def cached(self, x): return x + 1

class Named:
    def __set_name__(self, owner, name):
        ran["set_name"] += 1
        self.name = name
    def __get__(self, obj, owner=None):
        return self if obj is None else obj.__dict__.get(self.name, f"no {self.name}")
    def __set__(self, obj, value):
        obj.__dict__[self.name] = value

class Described:
    width = Named()
    height = Named()

# ---- making of classes
class Tagged:
    tags = {}
    def __init_subclass__(cls, *, tag, **rest):
        super().__init_subclass__(**rest)
        ran["init_subclass"] += 1
        cls.tag = tag
        Tagged.tags[tag] = cls

class First(Tagged, tag="one"): pass
class Second(First, tag="two"):
    def up(self): return super().tag

class Registering(type):
    known = {}
    def __new__(mcs, name, bases, namespace, **rest):
        ran["meta"] += 1
        cls = super().__new__(mcs, name, bases, namespace)
        mcs.known[name] = cls
        return cls
    def __init__(cls, name, bases, namespace, *, level=0):
        super().__init__(name, bases, namespace)
        cls.level = level
    def __call__(cls, *args):
        made = super().__call__(*args)
        made.made = True
        return made
    def __setattr__(cls, name, value):
        if name == "fixed" and "fixed" in vars(cls):
            raise AttributeError("fixed")
        super().__setattr__(name, value)
    def __len__(cls): return 7

class Plugin(metaclass=Registering, level=3):
    fixed = 1
class Sub(Plugin, level=4): pass

class Slots:
    __slots__ = ("a", "__private", "__weakref__")
    def __init__(self, a):
        self.a = a
        self.__private = a + 1
    def private(self): return self.__private
class MoreSlots(Slots):
    __slots__ = {"b": "what b is"}
class Open(Slots):
    __slots__ = ("__dict__",)
class Loose(Slots):
    pass

def registered(cls):
    ran["decorator"] += 1
    cls.registered = True
    return cls

@registered
class Decorated:
    class Inner:
        class Innermost:
            value = 5
    made_of = [1, 2]

class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
    @property
    @abc.abstractmethod
    def name(self): ...
    @staticmethod
    def unit(): return "m"
class Square(Shape):
    def __init__(self, side): self.side = side
    def area(self): return self.side ** 2
    name = "square"
@Shape.register
class Foreign: pass

T = typing.TypeVar("T")
class Stack(typing.Generic[T]):
    def __init__(self, items: "list[T]"): self.items = items
class Ints(Stack[int]): pass
@typing.runtime_checkable
class Sized(typing.Protocol):
    def size(self) -> int: ...
class Big:
    def size(self): return 1
class Movie(typing.TypedDict, total=False):
    name: str
class Pair(typing.NamedTuple):
    a: int
    b: str = "b"
    def both(self): return f"{self.a}{self.b}"
Old = collections.namedtuple("Old", "p q", defaults=(1,))

class Unequal:
    __hash__ = None
    def __eq__(self, other): return NotImplemented
class Trouble(Exception):
    def __init__(self, code): super().__init__(code); self.code = code
class Kind(dict):
    limit = 2
    def __missing__(self, key): return self.limit
class Subscripted:
    def __class_getitem__(cls, item): return (cls, item)

# ---- ctypes
class Point(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("tag", ctypes.c_char), ("x", ctypes.c_int), ("rows", ctypes.c_double * 3)]
    def total(self): return self.x + sum(self.rows)
class Node(ctypes.Structure):
    pass
Node._fields_ = [("value", ctypes.c_int), ("next", ctypes.POINTER(Node)), ("at", Point)]
class Either(ctypes.Union):
    _anonymous_ = ("p",)
    _fields_ = [("p", Point), ("whole", ctypes.c_longlong)]
class Bits(ctypes.BigEndianStructure):
    _fields_ = [("a", ctypes.c_uint32, 4), ("b", ctypes.c_uint32, 12)]
class Three(ctypes.c_int * 3):
    def last(self): return self[2]
"""

_PROGRAM = (
    _CLASSES
    + """
def dataclasses_there(slotted, frozen, longer):
    assert type(slotted) is Slotted and not hasattr(slotted, "__dict__") and slotted == Slotted(1, [2])
    assert Slotted.__slots__ == ("x", "y") and Slotted(1).y is not Slotted(1).y
    try: slotted.other = 1
    except AttributeError: pass
    else: raise AssertionError("slots are lost")
    try: frozen.x = 1
    except dataclasses.FrozenInstanceError: pass
    else: raise AssertionError
    assert sorted([Frozen(4), frozen])[0] is frozen and {frozen: 1}[Frozen()] == 1 and Frozen.kind == "frozen"
    assert longer == Longer(1, [2], seed=5, z=3.0) and longer.y == [2, 5] and isinstance(longer, Slotted)
    assert [f.name for f in dataclasses.fields(Longer)] == ["x", "y", "z"]
    assert dataclasses.fields(Longer)[2].metadata["unit"] == "mm"
    assert dataclasses.fields(Longer)[0].default is dataclasses.MISSING
    assert dataclasses.asdict(longer) == {"x": 1, "y": [2, 5], "z": 3.0}
    assert dataclasses.replace(frozen, x=9).x == 9 and "Longer(" in longer.base()
    import weakref
    assert weakref.ref(weak := Weak())() is weak
    @dataclasses.dataclass
    class Here(Slotted):
        w: int = 0
    assert Here(1, [2], 3).w == 3 and copy.deepcopy(slotted) == slotted
    return Slotted(7), Frozen(8), Longer(1, [], seed=1)

def enumerations_there(members):
    here = [Limit.LOW, Planet.MARS, Access.R | Access.X, Style.BOLD | Style.ITALIC, Word.NO, Unhashable.B, Number.UNO]
    assert all(type(a) is type(b) and a == b for a, b in zip(members, here))
    assert all(members[i] is here[i] for i in (0, 1, 4, 5, 6))
    assert Limit.SMALL is Limit.LOW and Limit((2, 20)) is Limit.HIGH and Limit.LOW.both == 11
    assert list(Limit) == [Limit.LOW, Limit.HIGH] and list(Limit.__members__) == ["LOW", "HIGH", "SMALL"]
    assert Limit.least() is Limit.LOW and Limit["SMALL"].name == "LOW"
    assert Planet(2) is Planet.MARS and Planet.MARS.color == "red" and Planet.EARTH == b"\\x01"
    assert Access.RW is Access.R | Access.W and Access.RW.name == "RW" and Access(5) == 5 and Access.R & Access.W == 0
    assert Style(8).value == 8 and Style.BOLD in Style.BOLD | Style.ITALIC
    assert Word.YES == "yes" and Word.YES.opposite() is Word.NO and Unhashable([1]) is Unhashable.A
    assert Number(5) is Number.TWO and Number.UNO is Number.ONE and Number.TWO + 1 == 3
    assert Turn.back[Turn.LEFT] is Turn.RIGHT
    assert pickle.loads(pickle.dumps(Limit.HIGH)) is Limit.HIGH
    return [Limit.SMALL, Planet.EARTH, Access.RW, Style.ITALIC, Word.YES, Unhashable.A, Number.TWO]

def properties_there(lazy, described):
    assert lazy.square == 4 and lazy.__dict__["square"] == 4 and Lazy().square == 4
    assert lazy.kind(1) == "int" and lazy.kind("") == "other" and lazy.cube(2) == 8 and lazy.cached(1) == 2
    assert described.width == 3 and described.height == "no height" and Described.width.name == "width"
    described.height = 5
    return lazy, described

def making_there(second, sub, slots):
    assert First.tag == "one" and second.tag == "two" and second.up() == "one"
    assert Tagged.tags == {"one": First, "two": Second}
    class Third(Tagged, tag="three"): pass
    assert Tagged.tags["three"] is Third and Third.tag == "three"
    assert Registering.known == {"Plugin": Plugin, "Sub": Sub} and (Plugin.level, Sub.level) == (3, 4)
    assert sub.made and type(sub) is Sub and len(Sub) == 7 and Sub().made and type(Sub) is Registering
    class More(Sub): pass
    assert Registering.known["More"] is More
    try: Plugin.fixed = 2
    except AttributeError: pass
    else: raise AssertionError
    assert slots.private() == 2 and slots.a == 1 and not hasattr(slots, "__dict__")
    assert MoreSlots.__slots__ == {"b": "what b is"} and not hasattr(MoreSlots(1), "__dict__")
    opened = Open(1); opened.new = 2
    loose = Loose(3); loose.new = 4
    assert Decorated.registered and Decorated.Inner.Innermost.value == 5
    more = MoreSlots(5); more.b = 6
    return Second(), Sub(), more, opened, loose, Decorated.Inner.Innermost()

def abstract_there(square, stack, pair, old):
    assert square.area() == 4 and isinstance(square, Shape) and issubclass(Foreign, Shape) and Shape.unit() == "m"
    assert not issubclass(Big, Shape)
    try: Shape()
    except TypeError: pass
    else: raise AssertionError
    assert stack.items == [1] and Stack[int] == Stack[int] and Ints([2]).items == [2]
    assert Stack.__parameters__ == (T,) and Ints.__orig_bases__ == (Stack[int],)
    assert isinstance(Big(), Sized) and not isinstance(1, Sized)
    assert Movie(name="x") == {"name": "x"} and Movie.__total__ is False
    assert pair.both() == "1b" and Pair(2)._replace(b="c").both() == "2c" and old == Old(0) and old.q == 1
    assert Kind()["x"] == 2 and Subscripted[1] == (Subscripted, 1)
    try: hash(Unequal())
    except TypeError: pass
    else: raise AssertionError
    return Square(3), Ints([1]), Pair(3, "d"), Old(1, 2), Kind(a=1), Unequal(), Sized, Movie(name="y")

def structures_there():
    point = Point(b"a", 1, (ctypes.c_double * 3)(1, 2, 3))
    assert point.total() == 7 and ctypes.sizeof(Point) == 29, ctypes.sizeof(Point)
    node = Node(1); other = Node(2, ctypes.pointer(node), point)
    assert other.next.contents.value == 1 and other.at.rows[2] == 3
    either = Either(); either.x = 6
    assert either.p.x == 6 and ctypes.sizeof(Either) >= 29
    bits = Bits(3, 9)
    assert (bits.a, bits.b) == (3, 9) and bytes(bits)[0] == 0x30
    assert Three(1, 2, 3).last() == 3
    return bytes(point)

def fails(code):
    raise Trouble(code)

def main():
    before = dict(ran)
    with Executor(1) as executor:
        call = lambda f, *args: executor.submit(f, *args).result(60)
        for _ in range(2):
            slotted, frozen, longer = call(
                dataclasses_there, Slotted(1, [2]), Frozen(), Longer(1, [2], seed=5, z=3.0)
            )
            assert slotted == Slotted(7) and type(frozen) is Frozen and frozen.x == 8 and longer.y == [1]
            members = [Limit.LOW, Planet.MARS, Access.R | Access.X, Style.BOLD | Style.ITALIC, Word.NO, Unhashable.B, Number.UNO]
            got = call(enumerations_there, members)
            assert all(a is b for a, b in zip(got, [Limit.LOW, Planet.EARTH, Access.RW, Style.ITALIC, Word.YES,
                                                    Unhashable.A, Number.TWO]))
            described = Described(); described.width = 3
            lazy, described = call(properties_there, Lazy(), described)
            assert type(lazy) is Lazy and lazy.__dict__ == {"square": 4} and described.height == 5
            got = call(abstract_there, Square(2), Stack([1]), Pair(1), Old(0))
            assert [type(x) for x in got] == [Square, Ints, Pair, Old, Kind, Unequal, type(Sized), dict]
            assert got[0].area() == 9 and got[4] == {"a": 1} and got[6] is Sized
            try: call(fails, 3)
            except Trouble as error: assert error.code == 3
            else: raise AssertionError
        assert call(structures_there)[:1] == b"a"
        assert call(lambda p: p.total(), Point(b"a", 1)) == 1
        assert type(call(lambda: Point(b"b", 2))) is Point
        second, sub, more, opened, loose, inner = call(making_there, Second(), Sub(), Slots(1))
        assert type(second) is Second and sub.made and (more.b, more.private()) == (6, 6)
        assert opened.new == 2 and loose.new == 4 and type(inner) is Decorated.Inner.Innermost
    assert dict(ran) == before, (ran, before)
    assert Tagged.tags == {"one": First, "two": Second} and Registering.known == {"Plugin": Plugin, "Sub": Sub}
"""
)

_REDEFINED = """
def more():
    # What a pool of the standard library sees only in workers that it forks later.
    global Limit, Slotted, Late
    with Executor(1) as executor:
        call = lambda f, *args: executor.submit(f, *args).result(60)
        old = Limit
        assert call(lambda m: m is Limit.LOW, Limit.LOW)
        class Limit(enum.Enum):
            LOW = 5
        assert call(lambda m: (m is Limit.LOW, m.value), Limit.LOW) == (True, 5)
        assert call(lambda m: m, old.LOW) is old.LOW
        assert call(lambda: Limit.LOW) is Limit.LOW
        @dataclasses.dataclass(slots=True)
        class Slotted:
            a: int
        assert call(Slotted, 4) == Slotted(4) and call(lambda: Slotted.__slots__) == ("a",)
        class Late(Tagged, tag="late"): pass
        assert call(lambda: Tagged.tags["late"] is Late and Late.tag == "late")
        del Tagged.tags["late"]
        assert call(lambda: sorted(Tagged.tags)) == ["one", "two"]
        Decorated.level = 1
        assert call(lambda: Decorated.level) == 1
        Decorated.level = 2
        assert call(lambda: Decorated.level) == 2
        Decorated.made_of.append(3)
        assert call(lambda: Decorated.made_of) == [1, 2, 3]
        del Decorated.level
        assert call(lambda: hasattr(Decorated, "level")) is False
        Slots.itself = Slots
        assert call(lambda: Slots.itself is Slots)
        Limit.LOW.note = "n"
        assert call(lambda: Limit.LOW.note) == "n"

        def local():
            @dataclasses.dataclass(slots=True)
            class Local:
                x: int
                class Color(enum.Enum):
                    RED = (1, 2)
                    def __init__(self, a, b): self.b = b
            return Local
        Local = local()
        assert call(lambda: Local(1)) == Local(1) and call(lambda: Local.Color.RED) is Local.Color.RED
        assert call(lambda v: v.x, Local(3)) == 3 and call(lambda: Local.Color.RED.b) == 2
"""

_NDSHARE = "from ndshare import ProcessPoolExecutor as Executor\n"
_STDLIB = """
import concurrent.futures, multiprocessing
def Executor(*args, **kwargs):
    context = multiprocessing.get_context("fork")
    return concurrent.futures.ProcessPoolExecutor(*args, mp_context=context, **kwargs)
"""


def test_program_states_what_fork_does(run_script: RunScript) -> None:
    """The measure is right: the same program, where the standard library forks."""
    program = _PROGRAM.replace('call(lambda p: p.total(), Point(b"a", 1))', "1").replace(
        'type(call(lambda: Point(b"b", 2)))', "Point"
    )
    done = run_script(_STDLIB + program + "main()\nprint('works')\n", timeout=_TIMEOUT_S)
    assert done.stdout == "works\n", done.stderr


def test_classes_arrive_as_they_are_in_a_script(run_script: RunScript) -> None:
    """Slots, members, descriptors and registers; nothing of their making runs again; redefinition counts."""
    source = _NDSHARE + _PROGRAM + _REDEFINED + "main()\nmore()\nprint('works')\n"
    done = run_script(source, timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_classes_arrive_as_they_are_in_a_notebook(run_script: RunScript, tmp_path: Path) -> None:
    """In cells."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from tests.processes.test_starting import _NOTEBOOK

    cells = [_NDSHARE, _PROGRAM, _REDEFINED, "main()\nmore()\nprint('works')"]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    assert run_script(_NOTEBOOK, timeout=_TIMEOUT_S).stdout == "works\n"


def test_classes_arrive_in_kernels_and_workspaces(run_script: RunScript) -> None:
    """In maps of processes, and by functions of a workspace."""
    done = run_script(
        "import ndshare, numpy as np\n"
        + _CLASSES
        + """
out = ndshare.alloc(4)
def kernel(worker_id, index, value):
    assert value.b == "b" and Limit.LOW.second == 10 and Slots(1).private() == 2
    out[index] = Lazy().square + Longer(index, seed=1).y[0] + First().tag.count("o")
ndshare.ProcessContext(2).map(kernel, [Pair(n) for n in range(4)])
assert list(out) == [6] * 4, out
if __name__ == "__main__":
    with ndshare.ProcessPoolExecutor(2) as executor:
        assert [m.name for m in executor.map(Limit, [(1, 10), (2, 20)])] == ["LOW", "HIGH"]
print("works")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("works\n", "")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="syntax of Python 3.12")
def test_generic_classes_of_the_new_syntax(run_script: RunScript) -> None:
    """Their type parameters arrive with them."""
    done = run_script(
        _NDSHARE
        + """
class Box[T]:
    def __init__(self, x: T): self.x = x
class Ints(Box[int]): pass
with Executor(1) as executor:
    made = executor.submit(Ints, 1).result()
    assert type(made) is Ints and made.x == 1
    assert executor.submit(lambda: Box.__type_params__[0].__name__).result() == "T"
print("works")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_methods_are_those_that_were_sent(run_script: RunScript) -> None:
    """Also where another has their name: of a base class, a private one, one that was put in its place."""
    source = """
import sys, types, ndshare
class Room:
    def size(self): return "room"
    def __own(self): return "own"
    def own(self): return self.__own
class Hall(Room):
    def size(self): return "hall"
    def plain(self): return super().size
if len(sys.argv) == 1:
    open("rooms.py", "w").write(open(sys.argv[0]).read().partition("if len")[0])
    sys.path.insert(0, ".")
    import rooms

    def outside(self): return "outside"
    class Cellar(rooms.Hall):
        def size(self): return "cellar"
        def above(self): return super().size
        @classmethod
        def name(cls): return cls.__name__
    Cellar.other = outside
    cellar = Cellar()
    cellar.held = types.MethodType(outside, cellar)
    changed = rooms.Hall()
    changed.size = lambda: "changed"
    methods = [cellar.size, cellar.above(), cellar.plain(), cellar.own(), cellar.other, cellar.held, Cellar.name,
               changed.size, types.MethodType(rooms.Hall.size, changed), Hall().plain(), Hall().own(), "abc".upper]
    queue = ndshare.Queue()
    with ndshare.ProcessPoolExecutor(1) as executor:
        for method in methods:
            assert executor.submit(method).result() == method(), method()
            assert executor.submit(lambda: [method]).result()[0]() == method(), method()
            queue.put(method)
            assert queue.get()() == method(), method()
    print("works")
"""
    done = run_script(source, timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_classes_stay_registered_with_abstract_classes_of_modules(run_script: RunScript) -> None:
    """Of Python and of the user, by every way to them: `isinstance` says in a worker what it says here."""
    source = """
import abc, collections.abc, numbers, sys, ndshare
open("shapes.py", "w").write("import abc\\nclass Shape(abc.ABC):\\n    @abc.abstractmethod\\n    def area(self): ...\\n")
sys.path.insert(0, ".")
import shapes
@collections.abc.Sequence.register
class Row: pass
@shapes.Shape.register
class Square: pass
class Wide(Square): pass
numbers.Number.register(Square)
abstract = collections.abc.Sequence, shapes.Shape, numbers.Number, collections.abc.Mapping
def kinds(made): return [isinstance(made, one) for one in abstract]
with ndshare.ProcessPoolExecutor(1) as executor:
    for cls in (Row, Square, Wide):
        assert executor.submit(kinds, cls()).result() == kinds(cls()), cls
    collections.abc.Mapping.register(Row)
    assert executor.submit(kinds, Row()).result() == [True, False, False, True]
    def local():
        @collections.abc.Mapping.register
        class Table: pass
        return Table
    Table = local()
    assert executor.submit(lambda: kinds(Table())).result() == [False, False, False, True]
    assert executor.submit(local).result().__name__ == "Table"
print("works")
"""
    done = run_script(source, timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_functions_of_modules_know_what_to_do_with_classes_of_the_script(run_script: RunScript) -> None:
    """Single dispatch, told by the script before and after a class was sent."""
    source = """
import functools, sys, ndshare
open("shown.py", "w").write(\"\"\"import functools
@functools.singledispatch
def show(x): return "object"
def many(*those): return [show(one) for one in those]
\"\"\")
sys.path.insert(0, ".")
import shown
class Row: pass
class Wide(Row): pass
def word(): return "row"
@shown.show.register
def _(x: Row): return word()
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(shown.many, Row(), Wide(), 1).result() == ["row", "row", "object"]
    shown.show.register(Wide, lambda x: "wide " + word())
    assert executor.submit(shown.many, Row(), Wide(), 1).result() == ["row", "wide row", "object"]
    @shown.show.register
    def _(x: Row): return "another " + word()
    assert executor.submit(lambda: shown.many(Row(), Wide())).result() == ["another row", "wide row"]
print("works")
"""
    done = run_script(source, timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_classes_keep_instances_of_their_own_and_their_methods(run_script: RunScript) -> None:
    """Constants such as ``Point.ORIGIN``, tables of bound methods: they need the class before it is all there."""
    done = run_script(
        """
import collections, dataclasses, functools, typing
import numpy as np, ndshare

class A:
    @classmethod
    def make(cls, v=1):
        made = cls()
        made.v = v
        return made
    def go(self): return self.v
A.registry, A.handlers, A.alias = {"make": A.make}, [A.make(3).go], A.make(4).go
def bound(): return A.registry["make"](2).v, A.handlers[0](), A.alias(), A.registry["make"].__self__ is A
@dataclasses.dataclass(frozen=True, slots=True)
class Point: x: int
Point.ORIGIN = Point(0)
def slotted(): return Point.ORIGIN.x, Point.ORIGIN == Point(0)
class Named(typing.NamedTuple):
    x: int
    y: int = 2
Named.ZERO = Named(0)
def named(): return Named.ZERO, Named.ZERO.y
class Reducing:
    def __init__(self, x): self.x = x
    def __reduce__(self): return Reducing, (self.x,)
Reducing.ONE = Reducing(1)
class Stating:
    def __init__(self, x): self.x = x
    def __getstate__(self): return [self.x]
    def __setstate__(self, state): self.x = state[0]
Stating.ONE = Stating(1)
def stated(): return Reducing.ONE.x, Stating.ONE.x
class Number(float):
    def __new__(cls, value, unit):
        made = super().__new__(cls, value)
        made.unit = unit
        return made
    def __getnewargs__(self): return float(self), self.unit
Number.PI = Number(3.0, "rad")
def number(): return Number.PI + 1, Number.PI.unit
class Key:
    def __hash__(self): return 5
    def __eq__(self, other): return isinstance(other, Key)
Key.index, Key.members = {Key(): 1}, {Key(), Key()}
def key(): return Key.index[Key()], len(Key.members), Key() in Key.members
class Single:
    one, made = None, 0
    def __new__(cls):
        if cls.one is None:
            cls.one = super().__new__(cls)
            cls.made += 1
        return cls.one
Single().tag = "t"
class Derived(Single): pass
Derived.mine = object.__new__(Derived)
def single(): return Single() is Single.one, Single.one.tag, Single.made, type(Derived.mine) is Derived
single_too = Single()
def by_name(): return single_too is Single.one
@functools.total_ordering
class Ordered:
    def __init__(self, v): self.v = v
    def __lt__(self, other): return self.v < other.v
    def __eq__(self, other): return self.v == other.v
Ordered.ALL, Ordered.KEY, Ordered.LESS = sorted([Ordered(2), Ordered(1)]), functools.partial(Ordered.__lt__, Ordered(1)), Ordered(1).__lt__
def ordered(): return [one.v for one in Ordered.ALL], Ordered.KEY(Ordered(2)), Ordered.LESS(Ordered(3))
@dataclasses.dataclass
class Config:
    a: int = 1
    DEFAULT: typing.ClassVar["Config"] = None
    def updated(self, **changes): return dataclasses.replace(self, **changes)
Config.DEFAULT = Config(5)
Config.make, Config.alias = staticmethod(Config.DEFAULT.updated), Config.DEFAULT.updated
def config(): return Config.DEFAULT.a, Config.make(a=3).a, Config.alias(a=4).a

for function in (bound, slotted, named, stated, number, key, single, by_name, ordered, config):
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(function).result(60) == function(), function
        assert executor.submit(function).result(60) == function(), function
out = ndshare.alloc(2)
ndshare.map(lambda worker_id, index, value: out.__setitem__(index, Number.PI + len(Key.members)), range(2))
assert list(out) == [4, 4]
print("fine")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
