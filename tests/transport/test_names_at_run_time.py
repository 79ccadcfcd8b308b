"""Names of the script that a task makes up at run time: it finds what the caller has, as in a forked process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 90

_HEAD = """
import functools, pickle, sys, threading
import numpy as np, ndshare
from ndshare import ProcessPoolExecutor as Executor

LIMIT = 3
table = np.arange(300_000.0)
line = (n for n in ())  # it cannot be sent

def step(x): return x + LIMIT

class Base:
    scale = 2
class Model(Base):
    class Inner:
        value = 5
    def predict(self, x): return step(self.scale * x)
def unused(): return other() + 1
def other(): return 1
"""


def _check(run_script: RunScript, source: str) -> None:
    done = run_script(_HEAD + source + "\nprint('works')\n", timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


@pytest.mark.parametrize(
    "load",
    [
        "pickle.load(open('m.pkl', 'rb'))",
        "pickle.loads(open('m.pkl', 'rb').read())",
        "np.load('m.npy', allow_pickle=True)[0]",
        "__import__('joblib').load('m.joblib')",
        "__import__('loader').load('m.pkl')",
    ],
)
def test_pickles_of_objects_of_the_script_are_read(run_script: RunScript, load: str) -> None:
    """By whoever unpickles: the task itself, NumPy, joblib, a module of the user's."""
    if "joblib" in load:
        pytest.importorskip("joblib")
    _check(
        run_script,
        f"""
pickle.dump(Model(), open("m.pkl", "wb"))
np.save("m.npy", np.array([Model()], object))
try:
    import joblib
    joblib.dump(Model(), "m.joblib")
except ImportError:
    pass
open("loader.py", "w").write("import pickle\\ndef load(p):\\n    with open(p, 'rb') as f: return pickle.load(f)\\n")
import warnings
warnings.simplefilter("ignore", ResourceWarning)
def run(x):
    model = {load}
    assert isinstance(model, Base) and type(model).__module__ == "__main__" and model.Inner.value == 5
    return model.predict(x), model
with Executor(2) as executor:
    for value, model in executor.map(run, range(4)):
        assert type(model) is Model
    assert executor.submit(run, 4).result()[0] == 11
    LIMIT = 10
    Base.scale = 3
    assert executor.submit(run, 4).result()[0] == 22, "as they are now"
""",
    )


def test_names_are_found_in_globals_frames_and_source(run_script: RunScript) -> None:
    """By words in strings and, as far as they are not large, all others."""
    _check(
        run_script,
        """
import builtins, typing
names = {"f": "step"}
def in_globals(): return globals()["step"](1), globals()[names["f"]](2), "line" in globals()
def evaluated(): return eval("LIMIT"), eval("step(2)"), eval("table[5]"), eval(names["f"] + "(1)")
def executed():
    space = {}
    exec("found = LIMIT", globals(), space)
    return space["found"]
def in_vars(): return vars(sys.modules["__main__"])["step"](1)
def in_dict(): return sys.modules["__main__"].__dict__["step"](1)
def in_frame(): return look()["step"](3)
def look(): return sys._getframe(1).f_globals
def hinted(x: "Model") -> "Base": pass
def hints(): return {name: kind.__name__ for name, kind in typing.get_type_hints(hinted).items()}
def passed(name): return globals()[name](1)
with Executor(1) as executor:
    call = lambda f, *args: executor.submit(f, *args).result()
    assert call(in_globals)[:2] == (4, 5)
    assert call(evaluated) == (3, 5, 5.0, 4)
    assert call(executed) == 3
    assert call(in_vars) == 4 and call(in_dict) == 4 and call(in_frame) == 6
    assert call(hints) == {"x": "Model", "return": "Base"}
    assert call(passed, "step") == 4
    LIMIT = 8
    assert call(in_globals)[:2] == (9, 10) and call(evaluated)[0] == 8
    assert call(lambda: eval("step(1)")) == 9
    out = ndshare.alloc(2)
    def kernel(worker_id, index, value): out[index] = eval("step(1)") + globals()["LIMIT"]
    ndshare.ProcessContext(2).map(kernel, range(2))
    assert list(out) == [17, 17]
""",
    )


def test_names_in_queries_of_pandas(run_script: RunScript) -> None:
    """``@LIMIT`` is looked for in the frame of the task."""
    pytest.importorskip("pandas")
    _check(
        run_script,
        """
import pandas as pd
frame = pd.DataFrame({"a": [1, 2, 3, 4, 5]})
def run(frame): return len(frame.query("a > @LIMIT")), frame.eval("a + @LIMIT").sum()
with Executor(1) as executor:
    assert executor.submit(run, frame).result() == (2, 30)
    LIMIT = 4
    assert executor.submit(run, frame).result() == (1, 35)
""",
    )


def test_attributes_of_the_main_module(run_script: RunScript) -> None:
    """``getattr``, both forms of import, and `hasattr`, in threads of a task as well."""
    _check(
        run_script,
        """
import asyncio, concurrent.futures
def by_name(name, x): return getattr(sys.modules["__main__"], name)(x)
def imported(x):
    import __main__
    from __main__ import step as found
    return __main__.step(x), found(x), __main__.Model().predict(x), __main__.table[5]
def absent():
    main = sys.modules["__main__"]
    try: main.nothing
    except AttributeError as error: text = str(error)
    return hasattr(main, "nothing"), hasattr(main, "LIMIT"), hasattr(main, "__path__"), text
def in_thread(n):
    found = []
    threads = [threading.Thread(target=lambda: found.append(by_name("step", n))) for _ in range(4)]
    [t.start() for t in threads]; [t.join() for t in threads]
    return found
def unsendable():
    return getattr(sys.modules["__main__"], "li" + "ne")
def nested(x):
    with Executor(1) as inner:
        return inner.submit(by_name, "step", x).result()
def slow(x):
    import time
    time.sleep(0.002)
    return getattr(sys.modules["__main__"], "unused")() + x
with Executor(2) as executor:
    call = lambda f, *args: executor.submit(f, *args).result()
    assert call(by_name, "step", 1) == 4
    LIMIT = 5
    assert call(by_name, "step", 1) == 6, "as they are now"
    def step(x): return -x
    assert call(by_name, "step", 1) == -1
    assert call(imported, 2) == (-2, -2, -4, 5.0)
    assert call(absent)[:3] == (False, True, False) and "nothing" in call(absent)[3]
    nothing = 1
    assert call(hasattr, sys.modules["__main__"], "nothing")
    assert call(in_thread, 3) == [-3] * 4
    try: call(unsendable)
    except TypeError as error: assert "'line'" in str(error)
    else: raise AssertionError
    assert call(step, 1) == -1
    assert call(nested, 4) == -4
    futures = [executor.submit(slow, n) for n in range(300)]
    assert [f.result() for f in futures] == [n + 2 for n in range(300)]
    assert list(executor.map(functools.partial(by_name, "step"), range(200))) == [-n for n in range(200)]
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, by_name, "unused2", n) for n in range(20)))
    def unused2(n): return n
    assert asyncio.run(main()) == list(range(20))
def init():
    global ready
    ready = getattr(sys.modules["__main__"], "step")(1)
with Executor(1, initializer=init) as executor:
    assert executor.submit(lambda: ready).result() == -1
out = ndshare.alloc(3)
def kernel(worker_id, index, value): out[index] = by_name("step", index)
ndshare.ProcessContext(2).map(kernel, range(3))
assert list(out) == [0, -1, -2]
""",
    )


def test_what_a_script_has_is_listed(run_script: RunScript) -> None:
    """Subclasses that nobody names, and the members of the module."""
    _check(
        run_script,
        """
import inspect
class Left(Base): name = "left"
class Right(Base): name = "right"
class Lower(Right): name = "lower"
def below(cls): return [n for sub in cls.__subclasses__() for n in (sub.__name__, *below(sub))]
def classes(): return sorted(name for name, _ in inspect.getmembers(sys.modules[__name__], inspect.isclass))
def profiled():
    import contextlib, cProfile, io
    with contextlib.redirect_stdout(io.StringIO()) as text: cProfile.run("step(1)")
    return "function calls" in text.getvalue()
def listed(): return {"Left", "step", "LIMIT"} <= set(dir(sys.modules["__main__"]))
with Executor(1) as executor:
    assert sorted(executor.submit(below, Base).result()) == ["Left", "Lower", "Model", "Right"]
    assert {"Base", "Left", "Lower", "Right"} <= set(executor.submit(classes).result())
    assert executor.submit(listed).result() and executor.submit(profiled).result()
""",
    )


def test_what_a_script_has_of_its_own(run_script: RunScript) -> None:
    """Its file, text and annotations, and a function for attributes that it lacks."""
    _check(
        run_script,
        """
import dataclasses, inspect, sys
__doc__ = "what it is for"
count: int = 1
@dataclasses.dataclass
class Row:
    x: "Number" = 1
Number = int
def __getattr__(name):
    if name == "late": return LIMIT
    raise AttributeError(name)
def own(): return __doc__, __file__, sys.modules["__main__"].__annotations__
def named(): return __annotations__
def lazy():
    import __main__
    from __main__ import late
    return late, __main__.late, hasattr(__main__, "never")
def source(): return inspect.getsource(Row), sys.modules["__main__"].__file__
with Executor(1) as executor:
    assert executor.submit(own).result() == (__doc__, __file__, {"count": int})
with Executor(1) as executor:
    if sys.version_info < (3, 14):  # there it is a global only once somebody has looked at the module's
        assert executor.submit(named).result() == named() == {"count": int}
with Executor(1) as executor:
    assert executor.submit(lazy).result() == (LIMIT, LIMIT, False)
    text, file = executor.submit(source).result()
    assert text.startswith("@dataclasses.dataclass\\nclass Row") and file == __file__
""",
    )


def test_what_a_worker_is_not_told_of_is_not_sent(run_script: RunScript) -> None:
    """Code that makes up no names has nothing to do with the rest of the script."""
    _check(
        run_script,
        """
from ndshare._transport import mainspace
sent = set()
deliver = mainspace.deliver
def counting(*args, **options):
    draft = deliver(*args, **options)
    if draft is not None:
        sent.update(draft.delivers)
    return draft
mainspace.deliver = counting
def plain(x): return step(x)
def dynamic(): return eval("LIMIT")
with Executor(1) as executor:
    assert executor.submit(plain, 1).result() == 4
    assert sent == {"plain", "step", "LIMIT"}, sent
    assert executor.submit(dynamic).result() == 3
    assert "table" not in sent and "line" not in sent and {"Model", "other"} <= sent, sent
""",
    )


def test_names_are_found_under_joblib(run_script: RunScript) -> None:
    """Its workers ask as all others do."""
    pytest.importorskip("joblib")
    _check(
        run_script,
        """
import joblib
import ndshare.integrations.joblib as backend
backend.register()
pickle.dump(Model(), open("m.pkl", "wb"))
def run(x):
    with open("m.pkl", "rb") as file:
        return pickle.load(file).predict(x)
with joblib.parallel_config("ndshare", n_jobs=2):
    assert joblib.Parallel()(joblib.delayed(run)(x) for x in range(4)) == [3, 5, 7, 9]
""",
    )


def test_names_that_the_script_has_deleted_are_gone(run_script: RunScript) -> None:
    """Also where they had only come because they might be looked up."""
    _check(
        run_script,
        """
value, other = 1, [2]
def look(name):
    import __main__
    return name in globals(), getattr(__main__, name, None)
with Executor(1) as executor:
    assert executor.submit(look, "value").result() == (True, 1)
    value = 5
    assert executor.submit(look, "value").result() == (True, 5)
    del value
    assert executor.submit(look, "value").result() == (False, None)
    assert executor.submit(look, "other").result() == (True, [2])
    value = 6
    assert executor.submit(look, "value").result() == (True, 6)
""",
    )


def test_a_name_that_was_not_sent_is_told_from_one_that_nobody_has(run_script: RunScript) -> None:
    """A large array whose name comes as an argument; the error says what to do."""
    _check(
        run_script,
        """
def look(text): return eval(text)
with Executor(1) as executor:
    assert executor.submit(look, "LIMIT").result() == 3
    error = executor.submit(look, "table[1]").exception()
    assert isinstance(error, NameError) and "the script has 'table'" in error.__notes__[0], error.__notes__
    error = executor.submit(look, "nothing").exception()
    assert isinstance(error, NameError) and not hasattr(error, "__notes__")
    assert executor.submit(lambda: (table[1], look("table[1]"))).result() == (1.0, 1.0)
""",
    )


def test_kernels_look_names_up_beside_what_cannot_be_sent(run_script: RunScript) -> None:
    """Warm workers do: the context itself, locks and files among the globals are no reason to fork."""
    _check(
        run_script,
        """
import timeit
small, grown = np.arange(5.0), [1, 2]
file = open(__file__, "r+")
context = ndshare.ProcessContext(2)
out = ndshare.alloc(2)
def named(worker, index, x):
    out[index] = eval("LIMIT + small[1] + len(grown)") + globals()["step"](0)
def timed(worker, index, x):
    out[index] = timeit.timeit("step(1)", globals=globals(), number=3) >= 0
for wanted in 9, 20:
    report = context.map(named, range(2))
    assert (report.start_method, report.reason, out.tolist()) == ("pool", "", [wanted, wanted]), report
    LIMIT, small[1] = 6, 5
    grown.append(3)
report = context.map(timed, range(2))
assert (report.start_method, out.tolist()) == ("pool", [1, 1])
""",
    )
