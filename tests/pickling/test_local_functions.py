"""Closures and lambdas of importable modules: they travel by their code."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare import functors
from ndshare._pickling import local_functions
from ndshare._transport import parcel
from tests.peer import to_oneself

_CONSTANT = 5


def max(*_numbers: int) -> str:  # noqa: A001 - a module may give a builtin's name to something of its own
    """Take a builtin's place."""
    return "the module's"


def test_closure_keeps_what_it_has() -> None:
    """Content of cells, defaults, attributes, names and annotations arrive."""
    factor = [3]

    def scale(x: int, /, y: int = 4, *, z: int = 5) -> tuple[int, ...]:
        """Say it."""
        return x * factor[0], y, z

    scale.unit = "mm"
    assert local_functions.is_plain_local(scale)
    arrived = to_oneself(scale)
    assert arrived is not scale
    assert arrived(2) == (6, 4, 5)
    assert arrived.unit == "mm"
    assert (arrived.__name__, arrived.__qualname__, arrived.__module__, arrived.__doc__) == (
        scale.__name__, scale.__qualname__, scale.__module__, scale.__doc__,
    )  # fmt: skip
    assert arrived.__annotations__ == scale.__annotations__


def test_closure_may_contain_itself_and_share_cells() -> None:
    """A recursive closure calls its own copy, and two of one scope see the same variable."""

    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return count

    def read() -> int:
        return count

    assert to_oneself(factorial)(6) == 720
    step2, read2 = to_oneself((step, read))
    assert (step2(), step2(), read2(), read()) == (1, 2, 2, 0)


def test_closures_that_name_globals_share_cells_with_those_that_do_not() -> None:
    """Each has its cells filled, and the same ones, whichever of the two ways it goes."""
    count = _CONSTANT

    def read(n: int) -> int:
        return _CONSTANT + count + (step(n - 1) if n else 0)

    def step(n: int) -> int:
        nonlocal count
        count += 1
        return read(n)

    assert local_functions.is_plain_local(step)
    assert not local_functions.is_plain_local(read)
    assert to_oneself(step)(1) == step(1) == 23
    read2, step2 = to_oneself((read, step))
    assert (step2(0), read2(0), step(0)) == (13, 13, 13)


def test_names_that_the_module_does_not_have_yet() -> None:
    """One function makes a global for another one, or a workspace does for both, with a builtin's name too."""

    def make() -> None:
        global _made
        _made = _CONSTANT

    def read() -> int:
        make()
        return _made + _CONSTANT  # type: ignore[name-defined, no-any-return]

    assert to_oneself(read)() == 10

    def total() -> Any:
        return table.sum() + input.sum()  # type: ignore[name-defined, attr-defined] # noqa: F821

    def shifted() -> Any:
        return total() + _CONSTANT

    with ndshare.Workspace({"table": np.arange(4), "input": np.ones(2)}, 1) as workspace:
        call = workspace.register(shifted)
        call()
        call()
        assert workspace.evaluate() == [13, 13]


def test_builtins_name_that_a_function_gives_away_stays_with_its_message() -> None:
    """Closures that come later, and name the builtin, find it."""

    def replace() -> int:
        global sum
        sum = len  # noqa: A001
        return sum([4])  # type: ignore[no-any-return, operator, arg-type]

    def add() -> int:
        return sum([4])

    arrived = to_oneself(add)
    assert to_oneself(replace)() == 1
    assert (arrived(), to_oneself(add)()) == (4, 4)


def test_package_in_a_closure_has_its_submodules() -> None:
    """Those that the caller has imported and the function names, as everywhere."""

    def make() -> Callable[[], str]:
        import xml.etree.ElementTree  # noqa: ICN001 - the attributes of `xml` matter

        def tag() -> str:
            return xml.etree.ElementTree.fromstring("<tag/>").tag

        return tag

    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(make()).result() == "tag"


def test_generators_lambdas_and_nested_functions() -> None:
    """Whatever its code does by itself."""

    def squares(n: int) -> Iterator[int]:
        def square(i: int) -> int:
            return i * i

        yield from (square(i) for i in range(n))

    assert list(to_oneself(squares)(4)) == [0, 1, 4, 9]
    assert to_oneself(lambda x, y=2: sum([x, y]))(1) == 3


def test_function_that_names_globals_has_them() -> None:
    """A constant of its module, and a builtin's name that the module has given away, mean what they mean here."""

    def constant() -> int:
        return _CONSTANT

    def shadowed() -> Any:
        return max(1, 2)

    for function in (constant, shadowed):
        assert not local_functions.is_plain_local(function)
        assert to_oneself(function)() == function()


def test_import_inside_starts_from_its_package() -> None:
    """A relative import in a function finds what it would find at home."""
    namespace = {"__name__": "ndshare._transport._made_up", "__package__": "ndshare._transport"}
    exec(
        "def make():\n    def look():\n        from . import parcel\n        return parcel.INLINE_MAX\n    return look",
        namespace,
    )
    look = namespace["make"]()  # type: ignore[operator]
    assert local_functions.is_plain_local(look)
    assert to_oneself(look)() == parcel.INLINE_MAX


def test_arrays_in_a_closure_are_shared_or_copied_as_everywhere() -> None:
    """Shared ones by reference, in a map and in a task; ordinary ones are the receiver's own."""
    out = ndshare.zeros(20)
    table = np.arange(20.0)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        out[index] = table[value] + 1

    ndshare.ProcessContext(2).map(kernel, range(20))
    assert out.tolist() == list(range(1, 21))

    def write() -> None:
        out[0] = -1
        table[0] = -1

    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(write).result()
    assert out[0] == -1
    assert table[0] == 0


@pytest.mark.parametrize("made", [lambda: lambda x: x + 1], ids=["lambda"])
def test_function_that_a_task_returns(made: Callable[[], Callable[[int], int]]) -> None:
    """The way back is the same."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(made).result()(1) == 2


_FACTORY = """
def make(out):
    def kernel(worker_id, index, value):
        out[index] = 3 * value
    return kernel
"""
_PROGRAM = """
import sys
import factory, ndshare
out = ndshare.zeros(100)
ndshare.ProcessContext(2).map(factory.make(out), range(100))
assert out.sum() == 3 * sum(range(100))
print("cloudpickle" in sys.modules)
"""


def test_closure_does_without_cloudpickle(tmp_path: Path) -> None:
    """Kernels are mostly such closures; the general way takes five times as long for them."""
    (tmp_path / "factory.py").write_text(_FACTORY)
    (tmp_path / "program.py").write_text(_PROGRAM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr


def test_closure_over_data_is_taken_apart() -> None:
    """Put together again it has its names, and what it captured; an unassigned variable is one again."""
    factor, table = 3, np.arange(4)

    def kernel(_worker_id: int, index: int, value: int) -> int:
        """Say it."""
        return factor * int(table[index]) + value

    def early() -> object:
        return later

    facts = local_functions.apart(kernel)
    assert facts is not None
    made = local_functions.together(facts)
    assert made(0, 2, 1) == 7
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(made, name) == getattr(kernel, name)
    unassigned = local_functions.apart(early)
    assert unassigned is not None
    with pytest.raises(NameError):
        local_functions.together(unassigned)()
    later = 1
    assert early() == later


def test_what_else_refers_to_anything_is_not_taken_apart() -> None:
    """Defaults, attributes, functions, containers and objects may be shared with others of the message."""
    bag: list[int] = []

    def to_bag(value: int) -> None:
        bag.append(value)

    def calling(value: int) -> None:
        to_bag(value)

    def with_default(value: int = 1) -> int:
        return value

    def with_attribute() -> None: ...

    with_attribute.unit = "mm"  # type: ignore[attr-defined]
    objects = np.array([None])

    def over_objects() -> Any:
        return objects[0]

    others = (to_bag, calling, with_default, with_attribute, over_objects, max, len, "".join, named, int)
    assert [local_functions.apart(one) for one in others] == [None] * len(others)


def named() -> None:
    """Stand for a function of a module, which is found by its name."""
    assert _CONSTANT == 5


class Doubling(ndshare.SequenceFunctor):
    """Gives its items twice as large."""

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield entries."""
        for index, value in super().iterate(share):
            yield index, 2 * value


def test_collections_of_numbers_travel_alone() -> None:
    """An array that is captured as well arrives once; functors with more to them stay what they are."""
    array = np.arange(2000.0)
    out = ndshare.zeros(2000)
    same = ndshare.zeros(2000)

    def kernel(_worker_id: int, index: int, value: float) -> None:
        out[index] = value
        same[index] = array[index]

    context = ndshare.ProcessContext(2)
    for functor in (array, ndshare.SequenceFunctor(array), ndshare.NdarrayFunctor(array, axis=0)):
        out[:] = same[:] = 0
        report = context.map(kernel, functor)
        assert np.array_equal(out, array)
        assert np.array_equal(same, array)
        assert report.captured["the collection"].pickled or report.captured["the collection"].copied
    context.map(kernel, Doubling(array))
    assert np.array_equal(out, 2 * array)
    assert functors.numbers_of(Doubling(array)) is None
    assert functors.numbers_of(ndshare.SequenceFunctor(np.array([None]))) is None
    labelled = ndshare.SequenceFunctor(array)
    labelled.label = "x"  # type: ignore[attr-defined]
    assert functors.numbers_of(labelled) is None


class Halving(ndshare.NdarrayFunctor):
    """Travels in a way of its own."""

    def __reduce__(self) -> Any:
        """Send twice the values, for `_halved`."""
        return _halved, (2 * self.sequence,)


def _halved(array: Any) -> Halving:
    return Halving(array / 2)


def test_functors_of_others_pickle_in_their_own_way() -> None:
    """What they do on their way to a worker is done."""
    out = ndshare.zeros(4)

    def kernel(_worker_id: int, index: int, value: float) -> None:
        out[index] = value

    assert functors.numbers_of(Halving(np.arange(4.0))) is None
    ndshare.ProcessContext(2).map(kernel, Halving(np.arange(4)))
    assert out.tolist() == [0, 1, 2, 3]


def test_error_handler_and_kernel_see_the_same_variable() -> None:
    """A handler of floating-point errors goes with the map, and may share a cell with the kernel."""
    out = ndshare.zeros(4)
    count = 0

    def handler(_kind: str, _flag: int) -> None:
        nonlocal count
        count += 1

    def kernel(_worker_id: int, index: int, value: np.float64) -> None:
        _ = value / (value - value)
        out[index] = count

    with np.errstate(all="call", call=handler), pytest.warns(ndshare.SilentWriteWarning, match="count"):
        ndshare.ProcessContext(1).map(kernel, np.arange(1.0, 5.0))
    assert out.tolist() == [1, 2, 3, 4]


def test_two_names_of_one_variable_stay_one() -> None:
    """Which no compiler makes, but whoever makes functions by hand."""

    def both() -> Any:
        return first, second

    first = second = 0
    cell = types.CellType(5)
    strange = types.FunctionType(both.__code__, both.__globals__, "both", None, (cell, cell))
    assert local_functions.apart(strange) is None
    assert local_functions.apart(both) is not None
    assert to_oneself(strange)() == (5, 5)
