"""What every test gets: a check that it leaves nothing behind, seeds, and fresh interpreters."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import leaks

# Programs that tests start find the helpers of the tests.
_TOP = str(Path(__file__).parents[1])
_entries = [_TOP, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, dict.fromkeys(_entries)))

_FIXED_SEED = 20250917  # any number: the same on every run, so that a failure of it is a regression
_SCRIPT_TIMEOUT_S = 120
_COMMAND_TIMEOUT_S = 300

_outcome = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the long random tests."""
    group = parser.getgroup("ndshare")
    group.addoption(
        "--chaos-seed",
        type=int,
        action="append",
        help="seed of the random tests (may be repeated); default: one fixed and one fresh seed",
    )
    group.addoption(
        "--chaos-rounds",
        type=int,
        default=1,
        help="how many times longer the random tests run (scripts/chaos uses a large number)",
    )
    group.addoption("--chaos-fresh-seed", type=int, help="seed to use instead of a fresh one")


def pytest_configure(config: pytest.Config) -> None:
    """Draw the fresh seed once: pytest-xdist passes the options on to its workers."""
    if config.option.chaos_fresh_seed is None:
        config.option.chaos_fresh_seed = secrets.randbits(31)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "leaves(*names): resources that the test may leave behind, with a reason"
    )


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seeds where every run shows them."""
    return "chaos seeds: " + ", ".join(f"{name}={seed}" for name, seed in _seeds(config).items())


def _seeds(config: pytest.Config) -> dict[str, int]:
    given = config.option.chaos_seed
    if given:
        return {f"seed{number}": seed for number, seed in enumerate(given)}
    return {"fixed": _FIXED_SEED, "fresh": config.option.chaos_fresh_seed}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `chaos_seed` once per seed.

    The names, not the numbers, are the ids of the tests: every process of pytest-xdist has to
    collect the same ids.
    """
    if "chaos_seed" in metafunc.fixturenames:
        seeds = _seeds(metafunc.config)
        metafunc.parametrize("chaos_seed", list(seeds.values()), ids=list(seeds), indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Note whether the test itself passed: a traceback keeps its arrays alive."""
    report = yield
    if report.when == "call":
        item.stash[_outcome] = report.passed
    return report


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, thread, descriptor, mapping or /dev/shm entry."""
    before = leaks.pictures()
    yield
    if not request.node.stash.get(_outcome, False):
        leaks.clean_up(before)  # the failure is reported already; the next test starts clean
        return
    markers = request.node.iter_markers("leaves")
    left = leaks.left_behind(before, allowed=frozenset(name for marker in markers for name in marker.args))
    if left:
        lines = [f"  {name}: {text}" for name, texts in left.items() for text in texts]
        leaks.clean_up(before)
        pytest.fail("left behind by this test:\n" + "\n".join(lines), pytrace=False)


@pytest.fixture
def fresh_heap() -> Iterator[None]:
    """Let the test start and end without recycled memory."""
    from ndshare._memory import segments

    segments.trim()
    yield
    segments.trim()


@pytest.fixture
def functor_types() -> Iterator[None]:
    """Restore the list of registered functors."""
    from ndshare.functors import Functor

    before = list(Functor._functor_types)
    yield
    Functor._functor_types[:] = before


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest) -> int:
    """Return a seed, printed so that a failing run can be repeated with ``--chaos-seed``."""
    seed: int = request.param
    print(f"chaos seed: {seed} (repeat with --chaos-seed {seed})")
    return seed


@pytest.fixture
def chaos_rng(chaos_seed: int) -> random.Random:
    """Return a generator for the decisions of a random test."""
    return random.Random(chaos_seed)


@pytest.fixture
def chaos_rounds(request: pytest.FixtureRequest) -> int:
    """Return how many times longer than usual a random test should run."""
    rounds: int = request.config.option.chaos_rounds
    return rounds


def _completed(
    arguments: list[str], folder: Path, *, check: bool, timeout: float, **environment: str
) -> subprocess.CompletedProcess[str]:
    # Relative entries mean something else in the directory where the interpreter runs.
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    search_path = os.pathsep.join(os.path.abspath(entry) for entry in entries if entry)
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": search_path, **environment},
        check=False,
    )
    if check and done.returncode != 0:
        pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs source text as a script in a fresh interpreter.

    ``run_script(source, *argv, check=True, timeout=120, **environment)`` writes the text to a
    file without main guard, runs ``python file`` with warnings as they come and returns the
    completed process. Unless ``check=False``, a non-zero exit status fails the test.
    """
    number = iter(range(1_000_000))

    def run(
        source: str,
        *argv: str,
        check: bool = True,
        timeout: float = _SCRIPT_TIMEOUT_S,
        interpreter_args: tuple[str, ...] = (),
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        path = tmp_path / f"script_{next(number)}.py"
        path.write_text(source)
        command = [*interpreter_args, str(path), *argv]
        return _completed(command, tmp_path, check=check, timeout=timeout, **environment)

    return run


@pytest.fixture
def run_ndshare(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs ``python -m ndshare`` in a directory of its own.

    ``run_ndshare("bench map --json", path, interpreter_args=(), timeout=300, **environment)`` returns the
    completed process; a non-zero exit status fails the test.
    """

    def run(
        words: str,
        *more: object,
        timeout: float = _COMMAND_TIMEOUT_S,
        interpreter_args: tuple[str, ...] = (),
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        command = [*interpreter_args, "-m", "ndshare", *words.split(), *map(str, more)]
        return _completed(command, tmp_path, check=True, timeout=timeout, **environment)

    return run


@pytest.fixture
def run_module(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs ``python -m module *words`` in a fresh interpreter and returns what it prints."""

    def run(module: str, *words: str, timeout: float = 3600) -> str:
        return _completed(["-m", module, *words], tmp_path, check=True, timeout=timeout).stdout

    return run
