"""The hint that a large array is copied again and again comes when it is true, and once."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest

import ndshare
from tests.array_tasks import echo

pytestmark = pytest.mark.once


def _shape(a: np.ndarray) -> tuple[int, ...]:
    return a.shape


@pytest.fixture
def executor():
    """Return an executor with one worker."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        yield executor


@pytest.mark.parametrize(
    "send",
    [
        lambda executor, a: executor.submit(_shape, a).result(),
        lambda executor, a: executor.submit(_shape, a=a).result(),
        lambda executor, a: executor.submit(functools.partial(_shape, a)).result(),
        lambda executor, a: executor.submit(_shape, a[5:]).result(),
        lambda executor, a: list(executor.map(_shape, [a])),
    ],
)
def test_hint_third_time_names_shape_bytes_and_remedy(executor, send):
    """The third sending of the same array warns where it was sent; the fourth is silent."""
    a = np.ones((1000, 200))
    send(executor, a)
    send(executor, a)
    with pytest.warns(
        ndshare.RepeatedCopyWarning, match=r"shape \(.*4,\d\d\d,\d\d\d bytes.*ndshare\.share"
    ) as told:
        send(executor, a)
    assert told[0].filename == __file__
    send(executor, a)


def test_hint_is_not_given_for_what_is_not_the_same(executor):
    """Temporaries, refilled buffers, small, shared, mapped and object arrays are sent in silence."""
    buffer = np.zeros(300_000)
    shared = ndshare.zeros(300_000)
    small = np.zeros(1000)
    objects = np.full(200_000, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(5):
            executor.submit(_shape, np.zeros(300_000)).result()
            list(executor.map(_shape, (np.zeros(300_000) for _ in range(2))))
            buffer[:] = i
            executor.submit(_shape, buffer).result()
            for a in (shared, shared[1:], small, objects):
                executor.submit(_shape, a).result()


def test_hint_is_not_given_for_mapped_files(executor, tmp_path):
    """A memory-mapped file is not copied, however often it is sent."""
    np.save(tmp_path / "a.npy", np.zeros(300_000))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for a in (mapped, mapped[1:], np.asarray(mapped)):
        for _ in range(4):
            executor.submit(_shape, a).result()


def test_hint_does_not_hold_on_to_arrays(executor):
    """An array that was sent can be resized, and is gone when the caller drops it."""
    a = np.ones(300_000)
    executor.submit(echo, a).result()
    a.resize(10, refcheck=False)
    assert a.sum() == 10


class _Holder:
    def __init__(self) -> None:
        self.a = np.ones(300_000)


@pytest.mark.parametrize(
    ("keep", "take"),
    [
        (lambda: [np.ones(300_000)], lambda kept: kept[0]),
        (lambda: {"a": np.ones(300_000)}, lambda kept: kept["a"]),
        (_Holder, lambda kept: kept.a),
    ],
    ids=["list", "dict", "object"],
)
def test_hint_is_given_for_what_an_object_keeps(executor, keep, take):
    """Whoever keeps the array: a list, a dict, an object; no reference is counted."""
    kept = keep()

    def send():
        executor.submit(_shape, take(kept)).result()

    send()
    send()
    with pytest.warns(ndshare.RepeatedCopyWarning, match="third"):
        send()
