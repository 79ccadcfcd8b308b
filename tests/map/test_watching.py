"""Lost writes: what a kernel wrote to is named, what it only read is not."""

from __future__ import annotations

import array as arrays
import collections
import dataclasses
import functools
import itertools
import pickle
import sys

import numpy as np
import pytest

import ndshare
from ndshare._map.watch.watching import MAPPED, Watch
from ndshare._memory import _heap
from ndshare._transport import transport

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("fresh_heap")]

MB = 1 << 20


def sent(obj):
    """Return an object as a worker of a map gets it: ordinary arrays copy-on-write."""
    parcel = transport.pack(obj).settle(broadcast=True)
    try:
        return transport.unpack(parcel.data, parcel.descriptors())
    finally:
        parcel.release()


def run(kernel, *items, functor=None, extra_globals=None):
    """Run a kernel as a worker does, and return what it wrote to."""
    kernel, functor = sent((kernel, functor))
    watch = Watch(kernel, functor, extra_globals)
    for index, value in enumerate(items or [1]):
        kernel(0, index, value)
    return watch.changes()


def as_array(shape, dtype="float64"):
    """Return how an array is described."""
    return f"array of shape {shape} and dtype {dtype}"


def test_watch_small_inline_array_written_is_named():
    """The classic: counts sent within the message, incremented by the kernel."""
    counts = np.zeros(10, int)

    def kernel(worker_id, index, value):
        counts[index] += 1

    assert run(kernel) == [("counts", as_array((10,), "int64"))]


@pytest.mark.parametrize("size", [10, 3000, 20_000, 300_000])
def test_watch_array_read_or_rewritten_with_equal_bytes_is_not_named(size):
    """Reading, and writing what is there already, loses nothing: NaN and -0.0 included."""
    data = np.full(size, np.nan)
    data[1] = -0.0

    def kernel(worker_id, index, value):
        data.sum()
        data[5] = data[5]
        data[:] = data.copy()

    assert run(kernel) == []


@pytest.mark.parametrize("size", [10, 3000, 20_000, 300_000])
@pytest.mark.parametrize("where", [0, 5, -1])
def test_watch_one_element_written_is_named(size, where):
    """One element is enough, wherever the array lies and whatever its size."""
    data = np.zeros(size)

    def kernel(worker_id, index, value):
        data[where] = -0.0  # equal, but other bytes

    assert run(kernel) == [("data", as_array((size,)))]


def test_watch_two_arrays_in_one_page_are_told_apart():
    """Of arrays that share a page only the one that was written to is named."""
    pages = [np.zeros(8192 + 5 + k) for k in range(6)]

    def kernel(worker_id, index, value, a=pages[0], b=pages[1], c=pages[2], d=pages[3]):
        b[-1] = 1
        c[0] = c[0]
        d[0] = 1

    copies = sent(kernel)
    assert [_heap.altered(a) for a in copies.__defaults__] == [False] * 4
    ends = [a.__array_interface__["data"][0] for a in copies.__defaults__]
    assert any(y - (x + 8192 * 8) < 4096 for x, y in itertools.pairwise(ends))
    assert [name for name, _ in run(kernel)] == ["b", "d"]


@pytest.mark.parametrize("order", ["C", "F"])
def test_watch_layouts_are_found(order):
    """Fortran order, transposed and strided views are watched like any other."""
    base = np.zeros((300, 40, 20), order=order)
    turned = base.transpose(1, 2, 0)
    strided = np.zeros((500, 500))[::2, ::3]

    def kernel(worker_id, index, value):
        turned[3, 4, 5] = 1
        strided[7, 8] = 1

    assert sorted(name for name, _ in run(kernel)) == ["strided", "turned"]


def test_watch_shared_arrays_are_not_named():
    """Writes to shared memory are seen by everybody; read-only arrays cannot be written to."""
    out, sealed = ndshare.zeros(10), ndshare.share(np.zeros(10), mode="r")
    part = out[2:]

    def kernel(worker_id, index, value):
        out[index] = sealed[0] + 1
        part[3] = 1

    assert run(kernel) == []
    assert out[0] == 1


@pytest.mark.parametrize("size", [10, 3000, 300_000])
def test_scratch_arrays_are_not_named(size):
    """What was marked as scratch memory stays plain, and nobody is warned about it or a view of it."""
    work, view = ndshare.scratch(np.zeros(size)), None
    view = work[2:]
    plain = np.zeros(size)

    def kernel(worker_id, index, value):
        assert type(work) is np.ndarray
        work[:] = value
        view[:] = value
        plain[0] = 1

    assert [name for name, _ in run(kernel)] == ["plain"]


def test_scratch_of_other_kinds_of_arrays():
    """Masked, object and empty arrays are marked and sent like any other; lists are refused."""
    masked = ndshare.scratch(np.ma.masked_array(np.zeros(3), [0, 1, 0]))
    objects = ndshare.scratch(np.array([[], None], object))
    matrix = ndshare.scratch(np.zeros((2, 2)).view(np.matrix))
    empty = ndshare.scratch(np.zeros(0))

    def kernel(worker_id, index, value):
        masked.data[:] = 1
        objects[1] = 2
        matrix[0, 0] = 1
        assert type(matrix) is np.matrix
        assert empty.size == 0

    assert run(kernel) == []
    with pytest.raises(TypeError, match=r"got list.*SilentWriteWarning"):
        ndshare.scratch([])


def test_scratch_mark_ends_with_the_array():
    """The note about an array goes with it, so that nothing else inherits it."""
    from ndshare._memory import is_scratch, marked

    before = len(marked)
    array = ndshare.scratch(np.zeros(3))
    assert len(marked) == before + 1
    assert ndshare.scratch(array) is array
    copy = pickle.loads(pickle.dumps(array))
    assert not is_scratch(copy)
    del array
    assert len(marked) == before


def test_watch_containers_filled_by_the_kernel_are_named():
    """Lists, dicts, sets and the like, nested ones by their place."""
    found, table, kinds, queue, raw, numbers = (
        [],
        {},
        set(),
        collections.deque(),
        bytearray(),
        arrays.array("d"),
    )
    nested, untouched = {"a": [], "b": {}}, [1, [2]]
    byname = collections.defaultdict(list)

    def kernel(worker_id, index, value):
        found.append(value)
        table[index] = value
        kinds.add(value)
        queue.append(value)
        raw.append(1)
        numbers.append(1.0)
        nested["a"].append(value)
        byname[3].append(1)
        untouched[1][0] += 0

    assert sorted(run(kernel)) == [
        ("byname", "defaultdict"),
        ("found", "list"),
        ("kinds", "set"),
        ("nested['a']", "list"),
        ("numbers", "array"),
        ("queue", "deque"),
        ("raw", "bytearray"),
        ("table", "dict"),
    ]


def test_watch_elements_replaced_by_equal_ones_are_not_named():
    """Equal numbers and arrays of equal bytes are no change; another number, or order, is."""
    nan = float("nan")
    same = [10**20, nan, np.zeros(3), "ab" * 3]
    other, order = [1.0, 2.0], {"a": 1, "b": 2}

    def kernel(worker_id, index, value):
        same[0] = 10**19 * 10
        same[1] = nan * 1.0
        same[2] = np.zeros(3)
        same[3] = "".join(["ab"] * 3)
        other[0] = 3.0
        order["a"] = order.pop("a")

    assert sorted(run(kernel)) == [("order", "dict"), ("other", "list")]


def test_watch_element_whose_comparison_raises_is_no_error():
    """A user's __eq__ that raises means: another element."""

    class Stubborn:
        def __eq__(self, other):
            raise RuntimeError("no")

        __hash__ = None

    items = [Stubborn(), Stubborn()]

    def kernel(worker_id, index, value):
        items[0] = Stubborn()

    assert run(kernel) == [("items", "list")]


def test_watch_arrays_inside_containers_are_named_by_their_place():
    """Dicts, lists, tuples, dataclasses and attributes, a few levels deep."""

    @dataclasses.dataclass
    class Result:
        counts: np.ndarray
        more: dict

    class Slotted:
        __slots__ = ("unset", "values")

        def __init__(self):
            self.values = np.zeros(4)

    results = {"a": np.zeros(3), "b": [np.zeros(2), (np.zeros(1),)], 7: np.zeros(1)}
    result, slotted = Result(np.zeros(5), {"x": np.zeros(2)}), Slotted()

    def kernel(worker_id, index, value):
        results["a"][0] = 1
        results["b"][1][0][0] = 1
        results[7].sum()
        result.counts[0] = 1
        result.more["x"][0] = 1
        slotted.values[2] = 1

    assert sorted(name for name, _ in run(kernel)) == [
        "result.counts",
        "result.more['x']",
        "results['a']",
        "results['b'][1][0]",
        "slotted.values",
    ]


def test_watch_cycles_and_large_containers_end():
    """A container that contains itself, and one of many elements, are no trouble."""
    loop = []
    loop.append(loop)
    many = [[] for _ in range(3000)]
    numbers = list(range(200_000))

    def kernel(worker_id, index, value):
        loop[0] is loop  # noqa: B015
        many[3].append(1)
        numbers[5] = 5

    assert run(kernel) == [("many[3]", "list")]


def test_watch_arguments_of_partial_and_defaults_are_named_by_parameter():
    """``functools.partial``, default values and keyword-only defaults."""

    def kernel(a, b, worker_id, index, value, c=np.zeros(3), *, d=np.zeros(3), e=None):  # noqa: B008
        for array in (a, b, c, d, e):
            array[0] = 1

    bound = functools.partial(kernel, np.zeros(1), np.zeros(2), e=np.zeros(4))
    assert [name for name, _ in run(bound)] == ["a", "b", "e", "c", "d"]


class Counter:
    """A kernel with state."""

    def __init__(self):
        self.counts = np.zeros(4)
        self.total = 0
        self.seen = []
        self._cache = {}

    def count(self, worker_id, index, value):
        """Write to everything."""
        self.counts[0] += 1
        self.total += 1
        self.seen.append(value)
        self._cache[index] = value

    __call__ = count


@pytest.mark.parametrize("kernel", [Counter().count, Counter()], ids=["bound method", "callable object"])
def test_watch_attributes_of_self_are_named(kernel):
    """Arrays, lists and counters of the kernel's own object; private dicts are taken for caches."""
    assert sorted(run(kernel)) == [
        ("self.counts", as_array((4,))),
        ("self.seen", "list"),
        ("self.total", "int"),
    ]


def test_watch_method_of_a_captured_list_is_named():
    """``append = found.append`` is a list all the same."""
    append = [].append

    def kernel(worker_id, index, value):
        append(value)

    assert run(kernel) == [("append", "list")]


def test_watch_functions_the_kernel_calls_are_followed():
    """A helper's closure is captured as well."""
    counts = np.zeros(3)

    def helper(index):
        counts[index] += 1

    def kernel(worker_id, index, value):
        helper(index)

    assert run(kernel) == [("counts", as_array((3,)))]


def test_watch_variables_bound_anew_are_named():
    """``total += value`` of a nonlocal number is lost; a cache that starts as None is not reported."""
    total, cache, sums, same = 0, None, np.zeros(3), 1.5

    def kernel(worker_id, index, value):
        nonlocal total, cache, sums, same
        total += value
        cache = cache or {}
        sums = sums + 1
        same = 1.5

    assert sorted(run(kernel, 5)) == [("sums", as_array((3,))), ("total", "int")]


counter = 0


def _count_globally(worker_id, index, value):
    global counter
    counter += 1


def test_watch_given_globals_are_named():
    """What the runner names as the kernel's globals is watched, by content and by name."""
    global counter
    counter = 0
    table = {}

    def kernel(worker_id, index, value):
        table["a"] = 1

    watch = Watch(_count_globally, None, {"counter": counter, "table": table})
    _count_globally(0, 0, 0)
    kernel(0, 0, 0)
    assert sorted(watch.changes()) == [("counter", "int"), ("table", "dict")]


@pytest.mark.parametrize("size", [5, 20_000])
def test_watch_writes_to_values_are_named_as_the_collection(size):
    """The value belongs to the worker: what is written there is lost, and said once."""

    class Rows:
        def __init__(self):
            self.values = [np.zeros(size) for _ in range(4)]

    def kernel(worker_id, index, value):
        value[0] = 1

    kernel, functor = sent((kernel, Rows()))
    watch = Watch(kernel, functor)
    for index, value in enumerate(functor.values):
        kernel(0, index, value)
    assert watch.changes() == [(MAPPED, as_array((size,)))]


def test_watch_wrapped_arrays_are_found():
    """Masked arrays, DataFrames and xarray objects hold arrays as well."""
    pd, xr = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    masked = np.ma.masked_array(np.zeros(3), [0, 1, 0])
    frame = pd.DataFrame({"a": np.zeros(3), "b": np.zeros(3)})
    untouched = pd.DataFrame({"a": np.zeros(3)})
    labelled = xr.DataArray(np.zeros((2, 2)), dims=["x", "y"])

    def kernel(worker_id, index, value):
        masked[0] = 5
        frame.loc[0, "a"] = 4.0
        untouched["a"].sum()
        labelled[0, 0] = labelled.sum() + 1

    names = {name for name, _ in run(kernel)}
    assert {"masked", "labelled"} <= names <= {"masked", "frame", "labelled"}


def test_watch_caches_of_libraries_are_not_named():
    """A logger, a lock-free queue or a module in the closure changes inside; nobody asked."""
    import logging

    log, module = logging.getLogger("ndshare.test"), collections

    def kernel(worker_id, index, value):
        log.debug("x")
        logging.getLogger("ndshare.test.other")
        module.OrderedDict()

    watch = Watch(kernel)
    kernel(0, 0, 0)
    assert watch.changes() == []


def test_watch_runs_no_code_of_what_it_looks_at():
    """Proxies, properties and containers with ideas of their own are looked at without asking them."""

    class Proxy:
        def __getattribute__(self, name):
            raise RuntimeError("hands off")

    class Odd(list):
        def __iter__(self):
            raise RuntimeError("hands off")

        __len__ = __iter__

    class Lazy:
        @property
        def values(self):
            raise RuntimeError("hands off")

    class Key:
        def __repr__(self):
            raise RuntimeError("hands off")

    proxy, odd, lazy, table = Proxy(), Odd([1]), Lazy(), {Key(): np.zeros(3)}

    def kernel(worker_id, index, value):
        list.append(odd, 2)
        for row in table.values():
            row[0] = 1
        return proxy, lazy

    watch = Watch(kernel, Lazy())
    kernel(0, 0, 0)
    assert watch.changes() == [("odd", "Odd"), ("table[...]", as_array((3,)))]


def test_watch_bookkeeping_of_a_functor_is_not_named():
    """Lists a functor fills while it iterates are its own affair; what is mapped is not."""

    class Batches:
        def __init__(self):
            self.seen, self._values, self.rows = [], [[1], [2]], np.zeros((2, 3))

    functor = Batches()
    watch = Watch(len, functor)
    functor.seen.append(1)
    assert watch.changes() == []
    functor._values[1].append(3)
    functor.rows[0] = 1
    assert watch.changes() == [(MAPPED, "list"), (MAPPED, as_array((2, 3)))]
    rows = [[1], [2]]
    watch = Watch(len, rows)
    rows[0] = 5
    assert watch.changes() == [(MAPPED, "list")]


def _watched(kernel):
    global made
    made = np.zeros(MB)  # large: from a segment, as all that is made in a worker
    watch = Watch(kernel, None, {"made": made})
    kernel(0, 3, 0)
    made[5] = 1
    return watch.changes(), kernel, made


def test_watch_in_a_worker_and_what_comes_back_is_whole():
    """Arguments and arrays made in a worker are watched; returned afterwards they have all their values."""
    data, small = np.zeros(MB), np.zeros(4)

    def kernel(worker_id, index, value):
        data[index] = 7
        small[index] = 7
        return data

    with ndshare.ProcessPoolExecutor(1) as pool:
        for _ in range(3):
            changes, back, made = pool.submit(_watched, kernel).result()
            assert [name for name, _ in changes] == ["data", "small", "made"]
            assert back(0, 0, 0)[3] == 7
            assert made.sum() == 1
    assert data.sum() == 0
    ndshare.shutdown()


def test_watch_large_array_received_by_value_is_watched_by_its_pages():
    """A global of 1 MiB and more lies in a segment of its own, which is mapped anew to be watched."""
    parcel = transport.pack(np.zeros(MB // 4)).settle()
    data = transport.unpack(parcel.data, parcel.descriptors())
    parcel.release()
    assert _heap.altered(data) is None
    for expected in ([], [("data", as_array((MB // 4,)))], []):
        watch = Watch(len, None, {"data": data})
        assert _heap.altered(data) is not None
        if expected:
            data[77] = 1
        assert watch.changes() == expected
    assert data[77] == 1
    assert data.sum() == 1


def test_watch_large_ordinary_array_is_watched_by_its_digest():
    """Memory that is in no segment and too large to be copied."""
    data, gaps = np.zeros(MB), np.zeros((1200, 600))[:, ::2]
    assert not _heap.detach(data)

    def kernel(worker_id, index, value):
        data[value] = 1

    watch = Watch(kernel, gaps)
    kernel(0, 0, MB - 1)
    assert watch.changes() == [("data", as_array((MB,)))]
    watch = Watch(kernel, gaps)
    gaps.base[:, 1] = 1
    data.sum()
    assert watch.changes() == []
    gaps[0, 0] = 1
    assert watch.changes() == [(MAPPED, as_array((1200, 300)))]


@pytest.mark.parametrize("size", [1, 7, 8, 31, 32, 33, 100, 4097])
def test_digest_changes_with_every_byte(size):
    """Any one byte, the length, and a swap of two words change the digest."""
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    before = _heap.digest(data)
    assert before == _heap.digest(data.copy())
    assert before != _heap.digest(np.append(data, np.uint8(0)))
    for where in range(0, size, max(1, size // 50)):
        data[where] ^= 1
        assert _heap.digest(data) != before
        data[where] ^= 1
    if size >= 64:
        data[:16] = np.roll(data[:16], 8)
        assert _heap.digest(data) != before


def test_altered_refuses_what_is_no_array():
    """The functions of the heap take arrays only."""
    for function in (_heap.altered, _heap.detach, _heap.digest):
        with pytest.raises(TypeError, match="takes an array"):
            function([])
    assert _heap.altered(np.zeros(3)) is None
    assert _heap.altered(ndshare.zeros(3)) is None
    assert not _heap.detach(ndshare.zeros(3))


def test_altered_without_pagemap_compares_everything(run_script):
    """A process that may not look at its own page tables finds the same."""
    run_script(
        """
import ctypes, os, numpy as np
from ndshare._memory import _heap
from ndshare._transport import transport
parcel = transport.pack((np.zeros(300_000), np.zeros(300_000))).settle(broadcast=True)
a, b = transport.unpack(parcel.data, parcel.descriptors())
parcel.release()
hidden = False
try:  # an empty file system over /proc/self/pagemap needs a mount namespace
    libc = ctypes.CDLL(None, use_errno=True)
    hidden = libc.unshare(0x10000000 | 0x00020000) == 0 and libc.mount(
        b"/dev/null", f"/proc/{os.getpid()}/pagemap".encode(), None, 4096, None) == 0
except OSError:
    pass
b[200_000] = 1
a[5] = a[5]
assert (_heap.altered(a), _heap.altered(b)) == (False, True), hidden
""",
        OPENBLAS_NUM_THREADS="1",  # a process with threads cannot leave its name spaces
    )


def test_silent_write_warning_says_what_was_lost_and_what_to_do():
    """Name, kind, reason and remedy, which is another one for lists."""
    text = str(ndshare.SilentWriteWarning("results['a']", as_array((3,))))
    assert "results['a'] (array of shape (3,) and dtype float64)" in text
    assert "ndshare.alloc" in text
    assert "ndshare.scratch" in text
    text = str(ndshare.SilentWriteWarning("found", "list"))
    assert "found (list)" in text
    assert "scratch" not in text


PADDED = np.dtype([("flag", "u1"), ("x", "f8"), ("inner", [("a", "u1"), ("b", "f4")], 2)], align=True)


@pytest.mark.parametrize("size", [5, 10_000, 100_000])
def test_watch_bytes_between_fields_are_nobody_s(size):
    """Structures with padding, views of one field and of several: read, and rewritten with equal values."""
    bits = np.random.default_rng(1).bytes(PADDED.itemsize * size)
    table = np.frombuffer(bits, PADDED).copy()
    one, several, other = table["x"], table[["flag", "inner"]], table[["x"]][::2]
    inner = table["inner"]["b"]

    def reads(worker_id, index, value):
        return table[index], table["x"].max(), one[index], several[index], other[index], inner[index]

    assert run(reads) == []

    def writes(worker_id, index, value):
        one[1] = 7.5

    assert [name for name, _ in run(writes)] == ["one"]


def test_watch_bound_again_to_an_equal_structure_is_not_named():
    """``table = table.copy()`` says nothing new."""
    table = np.frombuffer(np.random.default_rng(1).bytes(PADDED.itemsize * 3), PADDED).copy()

    def kernel(worker_id, index, value):
        nonlocal table
        table = table.copy()

    assert run(kernel) == []


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="this NumPy has no StringDType")
@pytest.mark.parametrize("size", [3, 1000])
def test_watch_text_of_any_length_is_compared_as_text(size):
    """The bytes of a StringDType array say where the text lies."""
    # Built in place of being sent: such arrays do not travel in memory that is shared.
    for text in ("a", "long enough to lie elsewhere" * 4):
        words = np.array([text, None] * size, np.dtypes.StringDType(na_object=None))

        def reads(worker_id, index, value, words=words):
            words[index], words.copy()
            words[0] = words[0]

        def writes(worker_id, index, value, words=words):
            words[1] = "now"

        for kernel, names in ((reads, []), (writes, ["words"])):
            watch = Watch(kernel)
            kernel(0, 0, 1)
            assert [name for name, _ in watch.changes()] == names


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library that was installed, with a decorator and objects that keep caches."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "cachinglib.py").write_text(
        "import functools, numpy as np\n"
        "class Compiled:\n"
        "    def __init__(self, function):\n"
        "        self.function, self.overloads, self.calls, self.data = function, {}, 0, np.zeros(3)\n"
        "    def __call__(self, *args):\n"
        "        self.overloads[tuple(map(type, args))] = 1\n"
        "        self.calls += 1\n"
        "        return self.function(*args)\n"
        "def remembered(function):\n"
        "    cache, calls = {}, 0\n"
        "    @functools.wraps(function)\n"
        "    def call(x):\n"
        "        nonlocal calls\n"
        "        calls += 1\n"
        "        if x not in cache:\n"
        "            cache[x] = function(x)\n"
        "        return cache[x]\n"
        "    return call\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    import cachinglib

    yield cachinglib
    del sys.modules["cachinglib"]


def test_watch_caches_of_libraries_are_no_data(library):
    """Objects that compile when they are called, decorators that remember; arrays of theirs are data."""
    compiled, seen = library.Compiled(lambda *args: args), []
    remembered = library.remembered(lambda x: x + 1)

    def uses(worker_id, index, value):
        compiled(index, 1.5)
        remembered(index)

    def run_here(kernel):
        watch = Watch(kernel)
        kernel(0, 0, 1)
        return [name for name, _ in watch.changes()]

    assert run_here(uses) == []
    assert run_here(compiled) == []
    assert run_here(lambda worker_id, index, value: seen.append(compiled(1))) == ["seen"]

    def writes(worker_id, index, value):
        compiled.data[0] = 1

    assert run_here(writes) == ["compiled.data"]


def test_watch_functions_of_numba_are_no_data():
    """What they compile for new types is theirs."""
    numba = pytest.importorskip("numba")

    @numba.njit
    def add(a, b):
        return a + b

    def kernel(worker_id, index, value):
        add(index, 1.5)

    watch = Watch(kernel)
    kernel(0, 0, 1)
    assert watch.changes() == []


_TABLE_WRITES = {
    "a new column": lambda df: df.__setitem__("b", 1),
    "a new column by rows": lambda df: df.loc.__setitem__((1, "b"), 1.5),
    "an element": lambda df: df.loc.__setitem__((1, "a"), 1.5),
    "a whole column": lambda df: df.__setitem__("a", 5.0),
    "a text": lambda df: df.at.__setitem__((1, "s"), "z"),
    "a date": lambda df: df.iloc.__setitem__((1, 4), df.iloc[3, 4]),
    "a category": lambda df: df.loc.__setitem__((1, "c"), "b"),
    "names of columns": lambda df: setattr(df, "columns", list("qisct")),
    "the name of the index": lambda df: setattr(df.index, "name", "k"),
    "the index": lambda df: setattr(df, "index", range(1, 7)),
    "one column less": lambda df: df.pop("a"),
    "one row more": lambda df: df.loc.__setitem__(99, df.loc[1]),
}


def _table(pandas):
    return pandas.DataFrame(
        {
            "a": np.zeros(6),
            "i": range(6),
            "s": list("abcdef"),
            "c": pandas.Categorical(list("aabbcc")),
            "t": pandas.date_range("2020", periods=6),
        }
    )


@pytest.mark.parametrize("write", _TABLE_WRITES.values(), ids=_TABLE_WRITES)
@pytest.mark.parametrize("travels", [True, False])
def test_watch_tables_written_are_named(write, travels):
    """Labels and whole columns count as elements do."""
    table = _table(pytest.importorskip("pandas"))

    def kernel(worker_id, index, value):
        write(table)

    if travels:
        kernel = sent(kernel)
    watch = Watch(kernel)
    kernel(0, 0, 1)
    assert {name for name, _ in watch.changes()} == {"table"}


def test_watch_tables_read_are_not_named():
    """Their columns may come to lie together meanwhile."""
    pandas = pytest.importorskip("pandas")
    table = _table(pandas)
    for name in "xyz":
        table[name] = 1.0
    series = pandas.Series(np.zeros(6), name="n")

    def kernel(worker_id, index, value):
        table.iloc[1], table.loc[1, "s"], table.values, table.describe(), table.T, str(table), series.sum()
        table.groupby("c", observed=True)["a"].sum(), table.sort_values("i"), table[table.a > 1], table.copy()
        (
            table.merge(table, on="i"),
            table.assign(z=1),
            table.eval("a + i"),
            table["t"].dt.year,
            series.rolling(2).mean(),
        )
        table._consolidate_inplace()

    assert run(kernel) == []
    assert run(lambda worker_id, index, value: setattr(series, "name", "k")) == [("series", "Series")]


@pytest.mark.parametrize("size", [6, 300_000])
def test_watch_mask_that_is_made_by_the_kernel(size):
    """A masked array has none at first."""
    masked = np.ma.zeros(size)

    def reads(worker_id, index, value):
        (
            masked.mean(),
            masked[0],
            np.ma.getmaskarray(masked),
            masked.filled(3),
            masked.shrink_mask(),
            masked + 1,
        )

    assert run(reads) == []
    assert [name for name, _ in run(lambda w, i, v: masked.__setitem__(1, np.ma.masked))] == ["masked"]
