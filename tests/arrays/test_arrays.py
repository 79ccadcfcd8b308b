"""Shared arrays: the constructors agree with NumPy's, and being shared is a property of the memory."""

from __future__ import annotations

import contextvars
import gc
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ndshare
from ndshare import _arrays
from ndshare._memory import segments

pytestmark = pytest.mark.usefixtures("fresh_heap")

SHAPES = [(), (0,), (0, 5), (7,), (3, 4), (2, 0, 3), (5, 1, 4), 6]
DTYPES = [
    "?", "i1", "u8", "f2", "f4", ">f8", "c16", "g", "M8[ns]", "m8[s]", "S5", "U7", "V3", "S0",
    [("a", "<i2"), ("b", ">f8", (2, 2))],
    np.dtype([("x", "u1"), ("y", "f8")], align=True),
    np.dtype({"names": ["a"], "formats": ["f4"], "titles": ["title"], "offsets": [4], "itemsize": 16}),
    ("f4", (2, 3)),
]  # fmt: skip


def same(ours, theirs):
    """Equal as arrays and in memory layout."""
    assert type(ours) is np.ndarray
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.flags.c_contiguous == theirs.flags.c_contiguous
    assert ours.flags.f_contiguous == theirs.flags.f_contiguous
    assert ours.flags.writeable
    assert ours.flags.aligned
    if theirs.size:
        assert ours.strides == theirs.strides
    assert ndshare.is_shared(ours)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_constructors_of_any_dtype_and_shape_agree_with_numpy(shape, dtype, order):
    """`empty` and `zeros` give what NumPy gives, in shared memory."""
    same(_arrays.empty(shape, dtype, order), np.empty(shape, dtype, order))
    ours, theirs = _arrays.zeros(shape, dtype, order), np.zeros(shape, dtype, order)
    same(ours, theirs)
    assert (ours == theirs).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_filled_constructors_agree_with_numpy(shape):
    """`ones` and `full` give what NumPy gives."""
    same(_arrays.ones(shape, "i4"), np.ones(shape, "i4"))
    assert (_arrays.ones(shape) == 1).all()
    same(_arrays.full(shape, 2.5), np.full(shape, 2.5))
    assert (_arrays.full(shape, 7, "u1") == np.full(shape, 7, "u1")).all()
    assert _arrays.full(shape, 7).dtype == np.full(shape, 7).dtype
    assert _arrays.full((3, 2), [1, 2]).tolist() == [[1, 2]] * 3


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_like_constructors_keep_the_layout_numpy_would(data):
    """*_like agree with NumPy on any view, for every order."""
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    base = np.arange(int(np.prod(shape)), dtype="i4").reshape(shape)
    base = base.transpose(data.draw(st.permutations(range(base.ndim)))) if base.ndim else base
    if base.ndim and base.size:
        base = base[data.draw(hnp.basic_indices(base.shape, allow_ellipsis=False))]
    base = np.asarray(base)
    order = data.draw(st.sampled_from(["K", "A", "C", "F"]))
    for name in ("empty_like", "zeros_like", "ones_like"):
        ours, theirs = getattr(_arrays, name)(base, order=order), getattr(np, name)(base, order=order)
        same(ours, theirs)
    same(_arrays.full_like(base, 3, order=order), np.full_like(base, 3, order=order))
    copied = _arrays.array(base, order=order)
    same(copied, np.array(base, order=order))
    assert (copied == base).all()


def test_like_constructors_with_another_dtype_and_shape():
    """Another dtype or shape overrides that of the prototype."""
    a = np.ones((3, 4), order="F")
    same(_arrays.empty_like(a, dtype="i2"), np.empty_like(a, dtype="i2"))
    same(_arrays.zeros_like(a, shape=(2, 5, 2)), np.zeros_like(a, shape=(2, 5, 2)))
    same(_arrays.zeros_like(a, shape=(2, 5)), np.zeros_like(a, shape=(2, 5)))
    assert type(_arrays.ones_like(np.ma.masked_array([1]))) is np.ndarray


def test_array_takes_whatever_numpy_takes():
    """Lists, scalars and arrays become shared arrays."""
    assert _arrays.array([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    assert _arrays.array(5.0).shape == ()
    assert _arrays.array([1, 2], dtype="f4").dtype == np.float32
    source = _arrays.array([1.0, 2.0])
    copied = _arrays.array(source)
    assert not np.shares_memory(source, copied)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _arrays.empty(3, object),
        lambda: _arrays.zeros(3, [("a", "O")]),
        lambda: _arrays.array([None]),
        lambda: _arrays.full(2, None),
        lambda: _arrays.empty_like(np.array([None])),
        lambda: _arrays.share_array(np.array([None])),
        lambda: _arrays.share_array(np.array([None]), "r"),
        lambda: _arrays.empty(2, np.dtypes.StringDType()),
    ],
)
def test_object_dtypes_are_refused_at_once(make):
    """Pointers of one process mean nothing in another."""
    with pytest.raises(TypeError, match="cannot be shared"):
        make()


def test_bad_arguments_are_refused_with_what_is_allowed():
    """Errors name the value and the choices."""
    with pytest.raises(ValueError, match="order is 'X'; allowed are 'C' and 'F'"):
        _arrays.empty(3, order="X")
    with pytest.raises(ValueError, match="negative"):
        _arrays.empty((2, -1))
    with pytest.raises(TypeError):
        _arrays.empty("three")
    with pytest.raises(TypeError):
        _arrays.empty(2.5)
    with pytest.raises(ValueError, match="mode is 'w'"):
        _arrays.share_array(np.ones(2), "w")
    with pytest.raises(TypeError, match="list"):
        _arrays.share_array([1])


def test_views_of_a_shared_array_are_shared_and_copies_are_not():
    """Being shared follows the memory."""
    a = _arrays.zeros((20, 30))
    for view in (
        a.T,
        a[3],
        a[::-1, ::2],
        a.reshape(600),
        a[2:4][:, 3:],
        a[5:5],
        a[20:],
        a.real,
        a.view("u1"),
        a[..., None],
    ):
        assert ndshare.is_shared(view)
    assert ndshare.is_shared(np.broadcast_to(a, (3, 20, 30)))
    assert not ndshare.is_shared(a.copy())
    assert not ndshare.is_shared(a + 1)
    assert not ndshare.is_shared(np.ones(3))
    assert not ndshare.is_shared([1, 2])
    assert not ndshare.is_shared(None)


def test_empty_view_at_the_end_belongs_to_its_own_array():
    """The end of one block is the start of its neighbour."""
    kept = [_arrays.zeros(64, np.uint8) for _ in range(4)]
    for a in kept:
        block, offset = segments.block_of(a[64:])
        assert (block.uid, block.offset) == (segments.block_of(a)[0].uid, segments.block_of(a)[0].offset)
        assert 0 <= offset <= block.nbytes


def test_arrays_own_their_data_and_can_be_resized():
    """A shared array is as good as one of NumPy's own."""
    a = _arrays.array(np.arange(10))
    assert a.flags.owndata
    assert a.base is None
    for n in (1000, 10, 300_000, 5, 2_000_000, 0, 3):
        a.resize(n)
        assert ndshare.is_shared(a)
    a = _arrays.array(np.arange(1000))
    a.resize(200_000)
    assert (a[:1000] == np.arange(1000)).all()
    assert not a[1000:].any()
    a.resize(7)
    assert a.tolist() == list(range(7))


def test_resize_of_a_view_from_elsewhere_does_not_grow_over_the_rest():
    """Growing in place would overwrite what others have in the same block."""
    block = segments.allocate(8000, zero=True)
    whole = block.array("f8", (1000,))
    part = block.array("f8", (10,))
    whole[:] = 5
    part.resize(20)
    assert part.tolist() == [5] * 10 + [0] * 10
    assert (whole == 5).all()


def test_shared_array_pickled_outside_of_ndshare_is_an_ordinary_copy():
    """pickle.dumps makes plain bytes of it."""
    a = _arrays.ones(5)
    b = pickle.loads(pickle.dumps(a))
    assert not ndshare.is_shared(b)
    b[0] = 3
    assert a[0] == 1


def test_share_array_returns_what_is_shared_already():
    """Sharing twice costs nothing; another mode makes a copy."""
    plain = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    a = _arrays.share_array(plain)
    assert a is not plain
    same(a, plain)
    assert _arrays.share_array(a) is a
    view = a[1:]
    assert _arrays.share_array(view) is view
    sealed = _arrays.share_array(a, "r")
    assert not np.shares_memory(sealed, a)
    assert sealed.flags.f_contiguous
    assert _arrays.share_array(sealed, "r") is sealed
    again = _arrays.share_array(sealed)
    assert again.flags.writeable
    assert (again == plain).all()


@pytest.mark.parametrize(
    "a",
    [
        np.array(5),
        np.zeros((0, 3)),
        np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(9)[::-2],
        np.array(["a"]),
    ],
    ids=str,
)
def test_share_array_read_only_keeps_content_and_layout(a):
    """Any array can be sealed."""
    sealed = _arrays.share_array(a, "r")
    assert sealed.dtype == a.dtype
    assert sealed.shape == a.shape
    assert (sealed == a).all()
    assert not sealed.flags.writeable
    assert ndshare.is_shared(sealed)
    if a.size:
        assert sealed.strides == a.copy(order="K").strides


def test_shared_memory_context_shares_whatever_makes_arrays():
    """Every array of any size, made by any code, and nothing after it."""
    with ndshare.shared_memory():
        made = [
            np.arange(3),
            np.ones((400, 400)) + 1,
            np.fromiter(range(1000), int),
            np.sort(np.arange(9)[::-1]),
        ]
        made.append(np.array([1, 2]).astype("f8").copy())
        odd = np.array([None, 1])
    assert all(map(ndshare.is_shared, made))
    assert odd.tolist() == [None, 1]
    assert not ndshare.is_shared(np.arange(3))
    with ndshare.shared_memory(), ndshare.shared_memory():
        pass
    assert not ndshare.is_shared(np.arange(3))


def test_shared_memory_context_left_by_an_exception_is_left():
    """The allocator is put back whatever happens."""
    with pytest.raises(KeyError), ndshare.shared_memory():
        raise KeyError
    assert not ndshare.is_shared(np.arange(3))


def test_shared_memory_context_object_is_used_once():
    """An object that was entered cannot be entered again."""
    context = ndshare.shared_memory()
    with context:
        pass
    with pytest.raises(RuntimeError, match="entered already"), context:
        pass


def test_shared_memory_left_out_of_order_raises_and_leaks_nothing():
    """Generators suspended inside `with` and closed in the order of creation."""

    def generator():
        with ndshare.shared_memory():
            yield np.ones(3)

    first, second = generator(), generator()
    next(first)
    next(second)
    with pytest.raises(RuntimeError, match="another context"):
        first.close()
    second.close()
    assert not ndshare.is_shared(np.ones(3))


def test_shared_memory_is_of_its_context():
    """Another thread does not take part; a copied context does, and cannot leave it for others."""
    said = {}

    def look(name):
        said[name] = ndshare.is_shared(np.ones(3))

    with ndshare.shared_memory():
        thread = threading.Thread(target=look, args=("thread",))
        thread.start()
        thread.join()
        contextvars.copy_context().run(look, "context")
    assert said == {"thread": False, "context": True}


def test_arrays_alive_at_interpreter_exit_are_freed_safely(run_script):
    """Whatever order modules and arrays die in."""
    done = run_script(
        """
import builtins, sys
import numpy as np
import ndshare
from ndshare import _arrays
from ndshare._memory import segments
segments.install_handler()
builtins.kept = [_arrays.ones(10), np.ones(1 << 20), _arrays.share_array(np.ones(9), "r"), segments.stage(100)]
kept.append(kept)
class Late:
    def __del__(self): print(self.a.sum(), self.b.sum())
sys.late = Late(); sys.late.a = _arrays.ones(1 << 20); sys.late.b = np.ones(1 << 18)
handler = ndshare.shared_memory(); handler.__enter__()
held = np.ones(100)
""",
        PYTHONMALLOC="debug",
    )
    assert done.stderr == ""


def test_arrays_in_reference_cycles_are_given_back():
    """The heap gets blocks back from the garbage collector."""
    gc.collect()
    before = segments.stats().shared_bytes

    class Node:
        pass

    node = Node()
    node.me, node.array = node, _arrays.ones(2 << 20)
    assert segments.stats().shared_bytes > before
    del node
    gc.collect()
    assert segments.stats().shared_bytes == before
