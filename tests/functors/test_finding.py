"""How the functor of an object is found, and how classes register."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import numpy as np
import pytest

from ndshare import functors
from ndshare.functors import Functor, count_items, find, gen_split_slices, values_of
from tests.functors.functor_tasks import entries

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("functor_types")]


class Numbers:
    """A collection that no library knows."""

    def __init__(self, n: int) -> None:
        self.n = n


# ---- finding


@pytest.mark.parametrize(
    ("obj", "kind"),
    [
        ([1, 2], functors.SequenceFunctor),
        ((), functors.SequenceFunctor),
        ("abc", functors.SequenceFunctor),
        (b"abc", functors.SequenceFunctor),
        (range(5), functors.SequenceFunctor),
        (deque([1]), functors.SequenceFunctor),
        (np.zeros(3), functors.NdarrayFunctor),
        (np.ma.zeros(3), functors.NdarrayFunctor),
        ((x for x in "ab"), functors.IteratorFunctor),
        (map(str, [1]), functors.IteratorFunctor),
        (zip([1], [2], strict=True), functors.IteratorFunctor),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_find_known_object_gives_its_functor(obj, kind):
    """Sequences, arrays and iterators are wrapped by themselves."""
    assert type(find(obj)) is kind
    assert type(Functor.try_wrap(obj)) is kind


@pytest.mark.parametrize("obj", [5, None, {"a": 1}, {1, 2}, object(), list, {}.keys()], ids=repr)
def test_find_unknown_object_is_refused_with_its_type(obj):
    """What has no order or no items is refused, and the message says what to do."""
    with pytest.raises(
        ValueError, match=re.escape(f"no default functor for {type(obj)}") + r".*pass (list|range)\("
    ):
        find(obj)


def test_find_functor_comes_back_as_it_is():
    """A functor is its own functor."""
    functor = functors.SequenceFunctor([1])
    assert find(functor) is functor
    assert Functor.try_wrap(functor) is functor


@pytest.mark.parametrize("hook", ["_ndshare_functor_", "_pasha_functor_"])
def test_find_hook_comes_before_registered_classes(hook):
    """What the object itself says comes first, by either name."""

    class Backwards(list):
        pass

    setattr(Backwards, hook, lambda self: functors.SequenceFunctor(self[::-1]))
    assert entries(find(Backwards([1, 2, 3]))) == [(0, 3), (1, 2), (2, 1)]


def test_find_own_hook_comes_before_pashas():
    """An object that serves both libraries gives ndshare's functor."""

    class Both:
        def _ndshare_functor_(self):
            return functors.SequenceFunctor("n")

        def _pasha_functor_(self):
            return functors.SequenceFunctor("p")

    assert entries(find(Both())) == [(0, "n")]


def test_find_functor_comes_before_its_hook():
    """An instance of Functor is not asked for another one."""

    class Odd(functors.SequenceFunctor):
        def _ndshare_functor_(self):
            raise AssertionError

    odd = Odd("ab")
    assert find(odd) is odd


def test_find_hook_returning_no_functor_is_refused():
    """The message names the method and what it returned."""

    class Wrong:
        def _pasha_functor_(self):
            return [1, 2]

    with pytest.raises(TypeError, match=r"Wrong\._pasha_functor_\(\) returned \[1, 2\] \(list\)"):
        find(Wrong())


def test_find_class_with_hook_is_no_instance():
    """The hook of a class is not called on the class itself."""

    class Hooked:
        def _pasha_functor_(self):
            raise AssertionError

    with pytest.raises(ValueError, match="no default functor"):
        find(Hooked)


def test_find_foreign_functor_is_recognised_by_its_methods():
    """Functors of pasha itself, or of a hook, need not derive from ndshare's class."""

    class Foreign:
        def split(self, num_workers):
            return range(num_workers)

        def iterate(self, share):
            yield share, share

    class Owner:
        def _pasha_functor_(self):
            return foreign

    foreign = Foreign()
    assert find(foreign) is foreign
    assert find(Owner()) is foreign
    assert count_items(foreign) is None
    assert values_of(foreign) is None


# ---- registration


def test_subclass_registers_itself():
    """Subclassing is registration."""

    class NumbersFunctor(Functor):
        def __init__(self, numbers):
            self.numbers = numbers

        @classmethod
        def wrap(cls, value):
            return cls(value) if isinstance(value, Numbers) else None

        def split(self, num_workers):
            return gen_split_slices(self.numbers.n, n_parts=num_workers)

        def iterate(self, share):
            yield from ((i, i, i) for i in range(share.start, share.stop))

    functor = find(Numbers(3))
    assert type(functor) is NumbersFunctor
    assert [list(functor.iterate(share)) for share in functor.split(2)] == [
        [(0, 0, 0)],
        [(1, 1, 1), (2, 2, 2)],
    ]
    assert count_items(functor) is None


def test_two_classes_for_one_object_are_ambiguous():
    """Two matches are refused, both named."""

    class MyStrings(functors.SequenceFunctor):
        @classmethod
        def wrap(cls, value):
            return cls(value) if isinstance(value, str) else None

    with pytest.raises(ValueError, match=r"default functor is ambiguous: SequenceFunctor and MyStrings"):
        find("abc")
    assert type(find(MyStrings("abc"))) is MyStrings
    assert type(find([1])) is functors.SequenceFunctor


def test_subclass_without_wrap_makes_nothing_ambiguous():
    """An inherited wrap is asked once, for the class it belongs to."""

    class Quiet(functors.SequenceFunctor):
        pass

    class Quieter(functors.NdarrayFunctor):
        pass

    assert type(find([1])) is functors.SequenceFunctor
    assert type(find(np.zeros(2))) is functors.NdarrayFunctor


def test_wrap_of_a_mixin_counts():
    """A wrap that comes from a class that is no functor is the subclass's own."""

    class Mixin:
        @classmethod
        def wrap(cls, value):
            return cls("xy") if isinstance(value, Numbers) else None

    class Mixed(Mixin, functors.SequenceFunctor):
        pass

    assert type(find(Numbers(1))) is Mixed


def test_class_defined_again_replaces_the_first():
    """Running a notebook cell twice leaves one class registered."""
    source = (
        "class CellFunctor(Functor):\n"
        "    @classmethod\n"
        "    def wrap(cls, value):\n"
        "        return cls() if type(value).__name__ == 'Numbers' else None\n"
    )
    namespace: dict[str, Any] = {"Functor": Functor, "__name__": "a_notebook"}
    exec(source, namespace)
    exec(source, namespace)
    assert type(find(Numbers(1))) is namespace["CellFunctor"]


def test_functor_class_of_a_script_works_in_workers(run_script):
    """A subclass that is defined in ``__main__`` travels, and iterates in a worker."""
    script = """
import ndshare
from ndshare import functors

class Squares(ndshare.Functor):
    def __init__(self, n):
        self.n = n
    @classmethod
    def wrap(cls, obj):
        return cls(obj) if isinstance(obj, int) else None
    def __len__(self):
        return self.n
    def iterate(self, share):
        yield from ((i, i * i) for i in range(share.start, share.stop))

class Twice(functors.SequenceFunctor):
    def iterate(self, share):
        yield from ((i, value, value) for i, value in super().iterate(share))

def look(functor, obj):
    found = functors.find(obj)
    return list(functor.iterate(slice(1, 3))), functors.count_items(functor), type(found) is type(functor)

with ndshare.ProcessPoolExecutor(1) as executor:
    for _ in range(2):
        print(executor.submit(look, functors.find(5), 3).result())
    print(executor.submit(look, Twice("abc"), "abc").result(), functors.values_of(Twice("abc")))
"""
    assert run_script(script).stdout.splitlines() == [
        "([(1, 1), (2, 4)], 5, True)",
        "([(1, 1), (2, 4)], 5, True)",
        "([(1, 'b', 'b'), (2, 'c', 'c')], 3, False) None",
    ]
