"""``ndshare doctor``: every check, the self-test, and what to do."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence

from ndshare.cli.doctor import calls, limits, others, processors, python
from ndshare.cli.doctor.finding import VERDICTS, Finding, Verdict, worst

_SELF_TEST_S = 30.0  # two seconds on a machine with nothing else to do
_WIDTHS = (60, 110)
_COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


def main(argv: Sequence[str]) -> int:
    """Look at everything; return 0 if all is well, 1 with warnings, 2 if ndshare cannot work."""
    arguments = _parser().parse_args(argv)
    findings: list[Finding] = []
    for name, check in checks(arguments.workers).items():
        findings.append(_guarded(name, check))
        if not arguments.json:
            _print(findings[-1])
    if not arguments.no_self_test:
        findings.append(_guarded("self-test", lambda: self_test(_SELF_TEST_S)))
        if not arguments.json:
            _print(findings[-1])
    verdict = worst(findings)
    if arguments.json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"verdict": verdict, "checks": rows}, indent=2, ensure_ascii=False))
    else:
        print(f"\n{_summary(findings)}")
    return VERDICTS.index(verdict)


def checks(workers: int | None) -> dict[str, Callable[[], Finding]]:
    """Return the checks by name, each a function that returns what it finds."""
    return {
        "system": limits.kernel,
        "/proc": limits.proc,
        "system calls": calls.system_calls,
        "Python": python.interpreter,
        "packages": python.versions,
        "ndshare": python.package,
        "environment": python.variables,
        "start methods": python.start_methods,
        "memory": limits.memory,
        "/dev/shm": limits.dev_shm,
        "limits of the process": limits.process_limits,
        "open files": lambda: limits.descriptors(workers or processors.usable()),
        "mappings": limits.mappings,
        "pages": limits.pages,
        "processors": lambda: processors.cpus(workers),
        "BLAS": lambda: processors.threads(workers),
        "SharedDicts": others.dicts,
        "other processes": others.processes,
    }


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a doctor who faints helps nobody
        remedy = "Do first what is said about the failures above."
        return Finding(name, "warn", f"could not be looked at: {type(error).__name__}: {error}", remedy)


def self_test(patience_s: float) -> Finding:
    """Run the self-test in a process of its own, killed with all that it has started if it does not end."""
    steps: dict[str, tuple[float, str]] = {}
    at = "its start"
    process = subprocess.Popen(
        [sys.executable, "-m", "ndshare.cli.doctor.selftest"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    late = False
    try:
        out, err = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    for line in out.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            said = json.loads(line)
            at = said["step"]
            if "seconds" in said:
                steps[at] = said["seconds"], said["why"]
    found = ", ".join(
        f"{name} {why}" if why else f"{name} {seconds:.2f} s" for name, (seconds, why) in steps.items()
    )
    remedy = (
        "See the warnings above; if there is none, please report it with the output of ndshare doctor --json."
    )
    if late:
        found = f"not done after {patience_s:.0f} s, it was at {at}; {found}".rstrip("; ")
        return Finding("self-test", "fail", found, remedy)
    if process.returncode != 0 and not any(why for _, why in steps.values()):
        last = (err.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        return Finding("self-test", "fail", f"ended at {at}: {last}", remedy)
    if process.returncode != 0:
        return Finding("self-test", "fail", found, remedy)
    return Finding("self-test", "ok", found)


def _print(finding: Finding) -> None:
    width = min(max(shutil.get_terminal_size((80, 24)).columns, _WIDTHS[0]), _WIDTHS[1])
    name = f"{finding.name:<22}"
    mark = _coloured(finding.verdict)
    gap = " " * (6 + len(name))
    lines = _wrapped(finding.found, width - len(gap)) or [""]
    if finding.remedy:
        lines += _wrapped(f"→ {finding.remedy}", width - len(gap), "  ")
    print(f"{mark}{name}{lines[0]}", *(gap + line for line in lines[1:]), sep="\n", flush=True)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    # Options and file names stay in one piece, to be copied.
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _coloured(verdict: Verdict) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return f"{verdict:<6}"
    return f"\033[{_COLOURS[verdict]}m{verdict:<6}\033[0m"


def _summary(findings: list[Finding]) -> str:
    warned = sum(finding.verdict == "warn" for finding in findings)
    failed = sum(finding.verdict == "fail" for finding in findings)
    if failed:
        return f"ndshare does not work here: {_count(failed, 'failure')}, {_count(warned, 'warning')}."
    if warned:
        return f"ndshare works here, with {_count(warned, 'warning')}."
    return "All is well."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ndshare doctor",
        description="Say what this machine gives ndshare: memory, limits, processors, system calls, "
        "packages; what is wrong and what to do. Ends with a self-test. Nothing is changed.",
        epilog="Exit status: 0 all is well, 1 there are warnings, 2 ndshare cannot work. "
        "Example: ndshare doctor --workers 8",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--workers", type=_positive, metavar="N", help="how many workers you mean to use")
    parser.add_argument("--no-self-test", action="store_true", help="only look, run nothing")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, but at least 1 worker is needed")
    return number
