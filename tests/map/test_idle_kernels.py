"""A kernel of which nothing runs when it is called is refused: it would count as done."""

from __future__ import annotations

import functools
import types

import pytest

import ndshare
import ndshare.compat.pasha as psh

CONTEXTS = {
    "serial": ndshare.SerialContext,
    "threads": lambda: ndshare.ThreadContext(2),
    "pool": lambda: ndshare.ProcessContext(2),
    "fork": lambda: ndshare.ProcessContext(2, start="fork"),
    "pasha serial": psh.SerialContext,
    "pasha threads": lambda: psh.ThreadContext(2),
    "pasha processes": lambda: psh.ProcessContext(2),
}


def _generator(w, i, v):
    yield


async def _coroutine(w, i, v):
    pass


async def _async_generator(w, i, v):
    yield


@types.coroutine
def _old_coroutine(w, i, v):
    yield


class _Callable:
    def __call__(self, w, i, v):
        yield

    async def method(self, w, i, v):
        pass


class _Derived(_Callable):
    pass


OPEN = {
    "generator": _generator,
    "coroutine": _coroutine,
    "async generator": _async_generator,
    "coroutine of types": _old_coroutine,
    "object": _Callable(),
    "inherited": _Derived(),
    "method": _Callable().method,
    "partial": functools.partial(_generator),
    "partial of an object": functools.partial(_Callable()),
}
HIDDEN = {
    "generator": lambda w, i, v: _generator(w, i, v),
    "coroutine": lambda w, i, v: _coroutine(w, i, v),
    "async generator": lambda w, i, v: _async_generator(w, i, v),
}


@pytest.fixture(params=CONTEXTS, scope="module")
def context(request):
    """Every context there is."""
    return CONTEXTS[request.param]()


@pytest.mark.parametrize("kernel", OPEN.values(), ids=OPEN)
def test_kernel_that_is_no_plain_function_is_refused_before_the_first_item(context, kernel):
    """By kind, and also where there is nothing to do."""
    for items in (range(3), []):
        with pytest.raises(
            TypeError, match=r"^kernel is .*, (a|an) .*(generator|coroutine) function: .*nobody"
        ):
            context.map(kernel, items)


@pytest.mark.parametrize("kernel", HIDDEN.values(), ids=HIDDEN)
def test_kernel_that_returns_such_an_object_fails_at_its_item(context, kernel):
    """A decorator or a lambda hides what it calls."""
    with pytest.raises(TypeError, match=r"the kernel returned a.*nothing of it has run"):
        context.map(kernel, range(3))


def test_hidden_one_is_an_error_of_each_item():
    """With ``on_error="collect"`` none of them is done."""
    report = ndshare.SerialContext().map(HIDDEN["coroutine"], range(3), on_error="collect")
    assert len(report.errors) == 3
    assert not report.done.any()


class _Shares(ndshare.Functor):
    """Without a length: shares are run by a loop in Python."""

    def split(self, _):
        return [0, 1]

    def iterate(self, share):
        yield share, share


def test_hidden_one_in_shares_is_refused(context):
    """Also by pasha's own loop over a share."""
    with pytest.raises(TypeError, match=r"the kernel returned a generator"):
        context.map(HIDDEN["generator"], _Shares())


def test_initializer_and_progress_are_refused_alike():
    """Their results are dropped as well."""
    for kind in (_generator, _coroutine, _async_generator):
        with pytest.raises(TypeError, match="initializer is"):
            ndshare.ProcessPoolExecutor(1, initializer=kind)
        with pytest.raises(TypeError, match="progress is"):
            ndshare.SerialContext().map(print, [], progress=kind)


def test_kernels_that_return_other_things_are_fine(context):
    """What a kernel returns is dropped."""
    context.map(lambda w, i, v: [v], range(3))
    context.map(lambda w, i, v: iter([v]), range(3))
