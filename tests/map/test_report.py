"""What a map tells about itself: text, table, plot, trace file; and that it can be sent."""

from __future__ import annotations

import copy
import functools
import html.parser
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._map.job import WorkerReport

pytestmark = pytest.mark.once

_CONTEXTS: dict[str, Callable[[], ndshare.MapContext]] = {
    "serial": ndshare.SerialContext,
    "threads": lambda: ndshare.ThreadContext(2),
    "pool": lambda: ndshare.ProcessContext(2),
    "fork": lambda: ndshare.ProcessContext(2, start="fork"),
}


@pytest.fixture(params=_CONTEXTS)
def context(request: pytest.FixtureRequest) -> ndshare.MapContext:
    """One of each kind."""
    return _CONTEXTS[request.param]()


@pytest.fixture(scope="module")
def pyplot() -> Any:
    """Return pyplot without windows, which has opened the files of its fonts already; they stay open."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.figure().text(0, 0, "a").figure.canvas.draw()
    plt.close("all")
    return plt


@pytest.fixture
def agg(pyplot: Any) -> Iterator[Any]:
    """Return pyplot; no figure stays open."""
    yield pyplot
    pyplot.close("all")


def _report(**fields: Any) -> ndshare.MapReport:
    """A report made by hand."""
    given = {
        "items": 10, "elapsed": 0.5, "done": np.ones(10, bool), "errors": [], "workers": [],
        "context": "ProcessContext", "start_method": "pool", "num_workers": 8, **fields,
    }  # fmt: skip
    return ndshare.MapReport(**given)


def _fail_at(*bad: int) -> Callable[[int, int, int], None]:
    def kernel(_worker_id: int, index: int, _value: int) -> None:
        time.sleep(0.0005)
        if index in bad:
            raise ValueError(f"<b>no {index}</b> & so on")

    return kernel


# ---------------------------------------------------------------------- text


def test_repr_says_what_where_and_who(context: ndshare.MapContext) -> None:
    """Several lines: items, time, context, workers, what is done."""
    report = context.map(_fail_at(), range(40))
    first, *lines = repr(report).splitlines()
    assert first.startswith("<MapReport: 40 items in ")
    assert first.endswith(" per second")
    assert lines[-1].endswith(">")
    text = "\n".join(lines)
    assert f"{type(context).__name__}, in " in text
    assert "done" in text
    assert "all" in text
    for worker in report.workers:
        assert any(line.split()[:2] == [str(worker.worker_id), str(worker.pid)] for line in lines)
    assert report.speed == pytest.approx(40 / report.elapsed)


def test_repr_shows_the_first_errors_in_one_line_each() -> None:
    """Three of them, without line breaks, shortened."""
    errors = [(n, ValueError("bad\nluck " * 100)) for n in range(5)]
    text = repr(_report(errors=errors, done=np.arange(10) > 4))
    assert text.count("ValueError: bad luck bad luck") == 3
    assert "2 more" in text
    assert "5 of 10" in text
    assert max(map(len, text.splitlines())) < 200


def test_repr_survives_errors_that_cannot_be_printed() -> None:
    """A class of the user whose text raises."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert "Mute: <its text could not be had: RuntimeError>" in repr(_report(errors=[(3, Mute())]))


def test_repr_of_many_workers_is_short() -> None:
    """The first 16."""
    workers = [WorkerReport(n, 1000 + n, items=1, busy=0.1) for n in range(100)]
    text = repr(_report(workers=workers, num_workers=100))
    assert "84 more workers" in text
    assert len(text.splitlines()) < 25


def test_repr_says_how_variables_travel() -> None:
    """By reference, copied, pickled."""
    context = ndshare.ProcessContext(2)
    table, out, words = np.ones(500_000), context.alloc(10), ["some", "words"]

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        out[index] = table[index] + len(words)

    lines = {line.split()[0]: line for line in repr(context.map(kernel, range(10))).splitlines()}
    assert "4 MB copied once" in lines["table"]
    assert "80 B by reference" in lines["out"]
    assert "pickled" in lines["words"]
    assert "warm workers" in lines["context"]


_TABLE = np.ones(400_000)


class _Kernel:
    """An object whose call uses a global of its module."""

    def __init__(self) -> None:
        self.offsets = np.ones(300_000)

    def __call__(self, _worker_id: int, index: int, _value: int) -> float:
        return float(self.offsets[index])


def test_variables_of_functions_that_a_kernel_uses_are_counted() -> None:
    """Of helpers that go along with it, of globals of a local function, of objects that are called."""
    inner, context = np.ones(500_000), ndshare.ProcessContext(2)

    def helper(index: int) -> float:
        return float(inner[index] + _TABLE[index])

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        assert helper(index) == 2

    sent = context.map(kernel, range(10)).captured
    assert {name for name in sent if sent[name].copied} == {"inner", "_TABLE"}
    sent = context.map(functools.partial(lambda table, *_: table, inner), range(10)).captured
    assert sent["argument 1 of the partial"].copied == inner.nbytes
    assert context.map(_Kernel(), range(10)).captured["_Kernel.offsets"].copied == 300_000 * 8


def test_repr_says_why_workers_were_forked() -> None:
    """The reason names the variable."""
    lock = threading.Lock()
    report = ndshare.ProcessContext(2).map(lambda *_: lock.locked(), range(10))
    assert "in workers forked for this map: the variable 'lock'" in repr(report)


def test_repr_names_deaths_and_lost_writes() -> None:
    """Who died at which item; what was written in vain."""
    counts = np.zeros(3)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        counts[0] += 1

    with pytest.warns(ndshare.SilentWriteWarning):
        report = ndshare.ProcessContext(2).map(kernel, range(30), on_error="collect")
    assert "1 worker, at item 7" in repr(report)
    assert "counts (array of shape (3,) and dtype float64)" in repr(report)
    ((death,)) = report.deaths
    assert death.index == 7
    assert death.pid not in {worker.pid for worker in report.workers}


class _Tags(html.parser.HTMLParser):
    """Checks that what is opened is closed, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_html_is_a_table_and_escaped(context: ndshare.MapContext) -> None:
    """What kernels say does not become markup."""
    report = context.map(_fail_at(3), range(20), on_error="collect")
    tags = _Tags()
    tags.feed(report._repr_html_())
    assert not tags.open
    assert "table" in tags.tags
    assert tags.tags <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert "<b>no 3</b> & so on" in tags.text
    assert "<b>no" not in report._repr_html_()
    assert str(report.workers[0].pid) in tags.text


def test_html_without_workers_is_well_formed() -> None:
    """Nothing to do."""
    tags = _Tags()
    tags.feed(ndshare.SerialContext().map(_fail_at(), iter(()))._repr_html_())
    assert not tags.open


# ---------------------------------------------------------------------- numbers


def test_imbalance_counts_workers_that_were_started() -> None:
    """Eight are allowed, two were started: 3 s and 1 s are half as much again as their mean."""
    workers = [WorkerReport(0, 1, busy=3.0), WorkerReport(1, 2, busy=1.0)]
    assert _report(workers=workers).imbalance == pytest.approx(0.5)
    assert _report(workers=workers[:1]).imbalance == 0
    later = WorkerReport(1, 3, busy=2.0)  # in the place of one that died
    assert _report(workers=[*workers, later]).imbalance == 0
    assert "2 of 8, the busiest 0% above" in repr(_report(workers=[*workers, later]))
    assert _report().imbalance == 0


def test_a_tiny_map_is_not_out_of_balance() -> None:
    """The second worker is not started for it."""
    context = ndshare.ProcessContext(2)

    def kernel(*_entry: object) -> None:
        pass

    context.map(kernel, range(100))
    report = context.map(kernel, range(100))
    if len(report.workers) == 1:
        assert report.imbalance == 0


@pytest.mark.parametrize("start", ["pool", "fork"])
def test_errors_of_a_worker_that_died_later_are_not_lost(start: str) -> None:
    """Its report dies with it; that the items failed does not."""
    context = ndshare.ProcessContext(1, start=start)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        if index in (3, 5):
            raise ValueError(index)
        if index == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    report = context.map(kernel, range(30), on_error="collect")
    assert np.flatnonzero(~report.done).tolist() == [3, 5, 9]
    assert [index for index, _ in report.errors] == [3, 5, 9]
    first, _, last = [error for _, error in report.errors]
    assert isinstance(last, ndshare.WorkerDiedError)
    assert isinstance(first, ndshare.RemoteError)
    assert first.__cause__ is last


def test_indices_of_a_stream_are_those_of_the_whole(context: ndshare.MapContext) -> None:
    """In errors of workers and in the timeline too."""
    report = context.map(_fail_at(31), iter(range(40)), on_error="collect", trace=True)
    assert [index for index, _ in report.errors] == [31]
    assert [index for worker in report.workers for index, *_ in worker.errors] == [31]
    assert [index for worker in report.workers for index, _ in worker.failures] == [31]
    shares = sorted(share[:2] for worker in report.workers for share in worker.timeline)
    assert [index for start, end in shares for index in range(start, end)] == list(range(40))
    keys = [(worker.worker_id, worker.pid) for worker in report.workers]
    assert len(keys) == len(set(keys))


def test_time_limits_in_a_stream_name_the_item_of_the_whole() -> None:
    """In the text of the error, and where the worker died."""

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        if index == 30:
            time.sleep(60)

    report = ndshare.ProcessContext(2).map(kernel, iter(range(40)), timeout=0.3, on_error="collect")
    ((index, error),) = report.errors
    assert index == 30
    assert str(error).startswith("item 30 took longer than 0.3 s")
    assert [death.index for death in report.deaths] == [30]


# ---------------------------------------------------------------------- timeline


def test_timelines_need_a_trace(tmp_path: Path) -> None:
    """They say what to do."""
    report = ndshare.SerialContext().map(_fail_at(), range(3))
    with pytest.raises(ValueError, match=r"plot.*trace=True"):
        report.plot()
    with pytest.raises(ValueError, match=r"to_chrome_trace.*trace=True"):
        report.to_chrome_trace(tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())


def test_plot_has_a_bar_per_share(context: ndshare.MapContext, agg: Any) -> None:
    """A row per worker, a cross per error, on the axes that are returned."""
    report = context.map(_fail_at(3, 4), range(60), shares=12, on_error="collect", trace=True)
    axes = report.plot()
    bars = [path for collection in axes.collections for path in collection.get_paths()]
    assert len(bars) == sum(worker.shares for worker in report.workers) == 12
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        f"worker {number}" for number in sorted({worker.worker_id for worker in report.workers})
    ]
    (crosses,) = axes.lines
    assert len(crosses.get_xdata()) == 2
    axes.figure.canvas.draw()


def test_plot_draws_on_given_axes(agg: Any) -> None:
    """No other figure is made."""
    report = ndshare.SerialContext().map(_fail_at(), range(3), trace=True)
    _, given = agg.subplots()
    assert report.plot(ax=given) is given
    assert len(agg.get_fignums()) == 1
    ndshare.SerialContext().map(_fail_at(), range(0), trace=True).plot().figure.canvas.draw()


def test_chrome_trace_has_a_track_per_worker(context: ndshare.MapContext, tmp_path: Path) -> None:
    """One slice per share with its items, none over another; an instant per error."""
    report = context.map(_fail_at(7), range(50), shares=10, on_error="collect", trace=True)
    path = tmp_path / "trace.json"
    report.to_chrome_trace(path)
    trace = json.loads(path.read_text())
    events = trace["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert set(names.values()) == {f"worker {worker.worker_id}" for worker in report.workers}
    slices = [event for event in events if event["ph"] == "X"]
    assert sum(event["args"]["items"] for event in slices) == 50
    for track in names:
        ends = 0.0
        for event in sorted((e for e in slices if e["tid"] == track), key=lambda e: e["ts"]):
            assert event["ts"] >= ends - 0.01
            ends = event["ts"] + event["dur"]
            assert ends <= report.elapsed * 1e6
    (instant,) = [event for event in events if event["ph"] == "i"]
    assert instant["args"] == {"item": 7, "error": "ValueError: <b>no 7</b> & so on"}
    (around,) = [e for e in slices if e["args"]["first"] <= 7 <= e["args"]["last"]]
    assert around["tid"] == instant["tid"]
    assert around["ts"] <= instant["ts"] <= around["ts"] + around["dur"]


def test_chrome_trace_shows_deaths(tmp_path: Path) -> None:
    """On the track of the worker that died."""

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        if index == 5:
            os._exit(3)

    report = ndshare.ProcessContext(2).map(kernel, range(20), on_error="collect", trace=True)
    report.to_chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    (instant,) = [event for event in events if event["ph"] == "i"]
    assert instant["name"] == "died at item 5"
    assert instant["args"]["error"].startswith("WorkerDiedError: ")
    assert instant["tid"] in {event["tid"] for event in events if event["name"] == "thread_name"}


def test_reports_do_not_import_matplotlib(run_script) -> None:
    """It is imported by `plot`."""
    run_script("""
import sys, ndshare
report = ndshare.SerialContext().map(lambda *_: None, range(3), trace=True)
repr(report), report._repr_html_()
assert not {"matplotlib", "tqdm"} & set(sys.modules)
report.plot()
assert "matplotlib" in sys.modules
""")


# ---------------------------------------------------------------------- pickles


def test_report_survives_pickle_and_copy(context: ndshare.MapContext) -> None:
    """With its errors, their tracebacks, the mask and the timeline."""
    report = context.map(_fail_at(3), range(20), on_error="collect", trace=True)
    for again in (pickle.loads(pickle.dumps(report)), copy.copy(report), copy.deepcopy(report)):
        assert type(again) is ndshare.MapReport
        assert repr(again) == repr(report)
        assert np.array_equal(again.done, report.done)
        assert again.workers[0].timeline == report.workers[0].timeline
        ((index, error),) = again.errors
        assert (index, type(error), error.args) == (3, ValueError, report.errors[0][1].args)
        assert any(error is other for worker in again.workers for _, other, _ in worker.errors)
        assert str(error.__cause__) == str(report.errors[0][1].__cause__)


def test_report_with_errors_that_cannot_be_pickled_survives() -> None:
    """A local class goes by value; what holds a lock is replaced by what it said. The original is untouched."""

    class Local(Exception):
        pass

    class Locked(Exception):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self.lock = threading.Lock()

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        raise (Local if index == 0 else Locked)(f"at {index}")

    report = ndshare.SerialContext().map(kernel, range(2), on_error="collect")
    (_, local), (_, locked) = pickle.loads(pickle.dumps(report)).errors
    assert type(local).__name__ == "Local"
    assert local.args == ("at 0",)
    assert isinstance(locked, ndshare.RemoteError)
    assert str(locked).startswith(
        "test_report_with_errors_that_cannot_be_pickled_survives.<locals>.Locked: at 1"
    )
    assert type(report.errors[1][1]) is Locked
    assert report.errors[1][1].__traceback__ is not None


def test_report_comes_back_from_a_worker() -> None:
    """A task that maps may return its report."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        report = executor.submit(
            lambda: ndshare.SerialContext().map(lambda *_: None, range(5), trace=True)
        ).result()
    assert report.items == 5
    assert report.done.all()
