"""Shared arrays by reference through multiprocessing: every channel, every start method, every death."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import ndshare
from ndshare.integrations import multiprocessing as integration
from tests import array_tasks
from tests.integrations import mp_tasks
from tests.integrations.mp_tasks import BIG
from tests.pool.test_any_array import _recipes

METHODS = ("fork", "forkserver", "spawn")
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"  # feeder threads of multiprocessing
)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register, and leave nothing of it."""
    integration.register()
    yield
    integration._deposits.sweep()
    integration.unregister()
    assert integration._state.family is None, "arrays were sent that nobody took"


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    """Return a context of multiprocessing."""
    return multiprocessing.get_context(request.param)


@pytest.fixture
def fork() -> Any:
    """Return the context of the fastest start method."""
    return multiprocessing.get_context("fork")


def _close(queue: Any) -> None:
    queue.close()
    if hasattr(queue, "join_thread"):
        queue.join_thread()


def _channels(context: Any, kind: str) -> tuple[Any, Any, Any, Any]:
    """Return inbox and outbox of a child, and ours."""
    if kind == "Pipe":
        (ours_in, theirs_out), (theirs_in, ours_out) = context.Pipe(False), context.Pipe(False)
        return theirs_in, theirs_out, ours_in, ours_out
    there, back = getattr(context, kind)(), getattr(context, kind)()
    return there, back, back, there


# ---- channels


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue", "Pipe"])
def test_channel_carries_shared_array_both_ways(context: Any, kind: str) -> None:
    """A child sees the memory of the parent and the parent that of the child."""
    if kind in ("SimpleQueue", "JoinableQueue") and context.get_start_method() != "fork":
        pytest.skip("the same code as Queue and Pipe")
    inbox, outbox, answers, questions = _channels(context, kind)
    child = context.Process(target=mp_tasks.serve, args=(inbox, outbox))
    child.start()
    shared = ndshare.share(np.arange(float(BIG)))
    for array in (shared, shared[10:20], shared[::-3], shared.reshape(300, -1).T, ndshare.zeros(3)):
        mp_tasks.send(questions, array)
        sight, back = mp_tasks.receive(answers)
        assert sight == array_tasks.Sight(
            array_tasks.fingerprint(array), array_tasks.layout(array), True, shared=True
        )
        assert np.shares_memory(back, array)
        assert back.strides == array.strides
    mp_tasks.send(questions, None)
    child.join()
    assert child.exitcode == 0
    for channel in {inbox, outbox, answers, questions}:
        _close(channel)


def test_process_arguments_are_the_same_memory(context: Any) -> None:
    """What a child writes into an argument is seen by the parent."""
    array = ndshare.zeros(BIG)
    child = context.Process(target=mp_tasks.add_to_first, args=(array,))
    child.start()
    child.join()
    assert array[0] == 1


def test_pool_carries_arguments_and_results(context: Any) -> None:
    """Pool: arguments by reference, results too, views as views."""
    arrays = [ndshare.zeros(BIG) for _ in range(3)]
    with context.Pool(2) as pool:
        pids = pool.map(mp_tasks.add_one, arrays, chunksize=1)
        made = pool.map(mp_tasks.make, [BIG, 5])
        pool.close()
        pool.join()
    assert all((array == 1).all() for array in arrays)
    assert os.getpid() not in pids
    assert all(ndshare.is_shared(array) for array in made)
    assert all((array == array[0]).all() for array in made)


def test_executor_of_the_standard_library_carries_arrays(context: Any) -> None:
    """`concurrent.futures.ProcessPoolExecutor` uses the same pickler."""
    array = ndshare.zeros(BIG)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(mp_tasks.add_one, array).result()
        made = executor.submit(mp_tasks.make, BIG).result()
    assert (array == 1).all()
    assert ndshare.is_shared(made)
    assert (made == made[0]).all()


def test_manager_carries_arrays(fork: Any) -> None:
    """What a manager keeps is the same memory."""
    array = ndshare.zeros(BIG)
    with fork.Manager() as manager:
        kept = manager.list([array])
        array[:] = 3
        assert (kept[0] == 3).all()
        assert np.shares_memory(kept[0], array)
        del kept


def test_listener_and_client_need_no_common_parent(fork: Any) -> None:
    """`multiprocessing.connection`: two processes that only share a user."""
    array = ndshare.ones(BIG)
    with multiprocessing.connection.Listener(family="AF_UNIX") as listener:
        answers: list[Any] = []

        def ask() -> None:
            with multiprocessing.connection.Client(listener.address) as client:
                answers.append(client.recv())

        thread = threading.Thread(target=ask)
        thread.start()
        with listener.accept() as connection:
            connection.send(array)
        thread.join()
    assert np.shares_memory(answers[0], array)


# ---- layouts and kinds


@settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(recipe=_recipes())
def test_any_shared_array_arrives_as_it_is(recipe: Any) -> None:
    """Every dtype, shape and view: content, strides, memory and writeability."""
    array, print_, layout = array_tasks.make(*recipe, shared=True)
    back = ForkingPickler.loads(ForkingPickler.dumps(array))
    assert array_tasks.fingerprint(back) == print_
    assert array_tasks.layout(back) == layout
    assert back.flags.writeable == array.flags.writeable
    assert ndshare.is_shared(back) == ndshare.is_shared(array)
    if array.size:
        assert back.ctypes.data == array.ctypes.data


def test_any_shared_array_goes_to_a_child_and_back(fork: Any) -> None:
    """The same through a queue to another process, which sees what was sent."""
    there, back = fork.Queue(), fork.Queue()
    child = fork.Process(target=mp_tasks.serve, args=(there, back))
    child.start()

    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    @given(recipe=_recipes())
    def send(recipe: Any) -> None:
        array, print_, layout = array_tasks.make(*recipe, shared=True)
        there.put(array)
        sight, returned = back.get()
        assert sight == array_tasks.Sight(print_, layout, array.flags.writeable, ndshare.is_shared(array))
        assert array_tasks.fingerprint(returned) == print_
        assert not array.size or np.shares_memory(returned, array, max_work=1)

    try:
        send()
    finally:
        there.put(None)
        child.join()
        _close(there)
        _close(back)


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(recipe=_recipes())
def test_any_ordinary_array_travels_as_without_ndshare(recipe: Any) -> None:
    """The message is that of plain pickle, but for the gaps of structures, which hold anything."""
    array, _, _ = array_tasks.make(*recipe, shared=False)
    data = bytes(ForkingPickler.dumps([array]))
    assert len(data) == len(pickle.dumps([array]))
    assert b"ndshare" not in data
    plain = pickle.loads(pickle.dumps([array]))[0]  # which changes some dtypes
    assert array_tasks.fingerprint(ForkingPickler.loads(data)[0]) == array_tasks.fingerprint(plain)


def test_sealed_array_stays_read_only() -> None:
    """A `share(mode="r")` array cannot be made writable by the receiver."""
    array = ndshare.share(np.arange(1000), mode="r")
    back = ForkingPickler.loads(ForkingPickler.dumps(array))
    assert np.shares_memory(back, array)
    with pytest.raises(ValueError, match="WRITEABLE"):
        back.flags.writeable = True


def test_wrapped_arrays_share_memory() -> None:
    """Masked arrays, DataFrames with times, sparse matrices: their shared arrays go by reference."""
    pd = pytest.importorskip("pandas")
    sparse = pytest.importorskip("scipy.sparse")
    integration.unregister()
    integration.register()  # pandas may have been imported only now
    frame = ndshare.share(
        pd.DataFrame({"x": np.arange(5000.0), "t": pd.date_range("2020", periods=5000, freq="s")})
    )
    masked = np.ma.masked_array(ndshare.ones(5000), ndshare.zeros(5000, bool))
    matrix = ndshare.share(sparse.random_array((500, 500), density=0.1, format="csr"))
    data = ForkingPickler.dumps([frame, masked, matrix])
    assert len(data) < 8000
    other_frame, other_masked, other_matrix = ForkingPickler.loads(data)
    pd.testing.assert_frame_equal(other_frame, frame)
    assert np.shares_memory(other_frame["x"].to_numpy(), frame["x"].to_numpy())
    assert np.shares_memory(other_frame["t"].array._ndarray, frame["t"].array._ndarray)
    assert np.shares_memory(other_masked.data, masked.data)
    assert np.shares_memory(other_matrix.data, matrix.data)
    plain = [pd.date_range("2020", periods=50), np.ma.masked_array([1, 2], [True, False]), np.float64(3)]
    assert bytes(ForkingPickler.dumps(plain)) == pickle.dumps(plain)


# ---- late receivers, early exits


def test_array_dropped_by_the_sender_is_there_for_a_late_get(fork: Any) -> None:
    """Memory under way is not reused, however much is allocated meanwhile."""
    queue = fork.Queue()
    for number in range(10):
        for n in (BIG, 50):
            array = ndshare.full(n, float(number))
            queue.put(array)
            del array
    junk = [ndshare.full(n, -1.0) for n in (BIG, 50) for _ in range(50)]
    for number in range(10):
        for n in (BIG, 50):
            array = queue.get()
            assert array.shape == (n,)
            assert (array == number).all()
    del junk, array
    _close(queue)


def test_memory_is_reused_after_it_was_taken() -> None:
    """A loop that sends and forgets needs two segments, not one per message."""
    one, other = multiprocessing.Pipe()
    ndshare.trim()
    before = ndshare.stats()
    for number in range(100):
        one.send(ndshare.full(BIG, float(number)))
        assert other.recv()[-1] == number
    gc.collect()
    after = ndshare.stats()
    assert after.fresh - before.fresh <= 3
    ndshare.trim()
    assert ndshare.stats().own_bytes <= before.own_bytes
    one.close()
    other.close()


def test_arrays_of_a_sender_that_exits_at_once_are_read_five_seconds_later() -> None:
    """A hundred arrays, shared and ordinary, through `multiprocessing.Queue` and through `ndshare.Queue`.

    The senders have nothing else to do, so they end as soon as they may: with `ndshare.Queue` before anybody
    reads, with the registration when all was taken.
    """
    sent = []
    for method, native in (("fork", False), ("spawn", False), ("fork", True), ("spawn", True)):
        context = multiprocessing.get_context(method)
        queue = ndshare.Queue() if native else context.Queue()
        child = context.Process(target=mp_tasks.produce_both_kinds, args=(queue, 100, 20_000))
        child.start()
        sent.append((queue, child, native))
    for _, child, native in sent:
        if native:
            child.join(60)
            assert child.exitcode == 0
    time.sleep(5)
    for queue, child, _ in sent:
        for number in range(100):
            array = queue.get(timeout=30)
            assert (array == number).all()
            assert ndshare.is_shared(array) == (number % 2 == 0)
            assert array.flags.writeable
        child.join(30)
        assert child.exitcode == 0
        array[:] = 5  # the memory outlives its maker
        assert (array == 5).all()
        _close(queue)


def test_killed_sender_gives_a_clear_error(fork: Any) -> None:
    """SIGKILL between send and receive: `SegmentGoneError`, and the connection goes on."""
    ours, theirs = fork.Pipe()
    child = fork.Process(target=mp_tasks.send_and_sleep, args=(theirs,))
    child.start()
    assert ours.poll(20)
    child.kill()
    child.join()
    with pytest.raises(ndshare.SegmentGoneError, match=rf"{child.pid}, which sent it, has ended"):
        ours.recv()
    theirs.send("go on")
    assert ours.recv() == "go on"
    ours.close()
    theirs.close()


def test_sender_killed_while_it_waits_gives_the_same_error(fork: Any) -> None:
    """The wait at the exit is no promise against SIGKILL."""
    queue = fork.SimpleQueue()
    child = fork.Process(target=mp_tasks.produce, args=(queue, 2, BIG))
    child.start()
    assert queue.get()[0] == 0
    child.join(0.3)
    assert child.exitcode is None  # it waits
    child.kill()
    child.join()
    with pytest.raises(ndshare.SegmentGoneError):
        queue.get()
    _close(queue)


def test_receiver_may_drop_and_die_with_the_memory(fork: Any) -> None:
    """A receiver that is killed holding an array gives its memory back."""
    array = ndshare.ones(BIG)
    ours, theirs = fork.Pipe()
    child = fork.Process(target=_hold, args=(theirs,))
    child.start()
    ours.send(array)
    assert ours.recv() == "held"
    child.kill()
    child.join()
    del array
    integration._deposits.sweep()
    gc.collect()
    before = ndshare.stats().fresh
    again = ndshare.ones(BIG)
    assert ndshare.stats().fresh == before
    del again
    ours.close()
    theirs.close()


def _hold(connection: Any) -> None:
    array = connection.recv()
    connection.send("held")
    time.sleep(60)
    del array


def test_message_is_good_for_one_receiver() -> None:
    """Reading the same bytes twice is refused, and harms nobody."""
    data = ForkingPickler.dumps(ndshare.ones(BIG))
    first = ForkingPickler.loads(data)
    with pytest.raises(ndshare.SegmentGoneError, match="can be read once"):
        ForkingPickler.loads(data)
    integration._deposits.sweep()
    with pytest.raises(ndshare.SegmentGoneError, match="can be read once"):
        ForkingPickler.loads(data)
    assert (first == 1).all()


def test_forked_child_passes_inherited_memory_on(fork: Any) -> None:
    """What a child lent on is not reused by the owner after the child has ended."""
    gc.collect()
    (there_in, there_out), (back_in, back_out) = fork.Pipe(False), fork.Pipe(False)
    holder = fork.Process(target=_check_later, args=(there_in, back_out, back_in))
    holder.start()  # it inherits no array: only the message gives it one
    array = ndshare.full(BIG, 7.0)
    child = fork.Process(target=mp_tasks.pass_on, args=(there_out, array))
    child.start()
    assert back_in.recv() == "held"
    child.join()
    holder_pid = holder.pid
    del array
    gc.collect()
    junk = [ndshare.full(BIG, -1.0) for _ in range(5)]
    os.kill(holder_pid, signal.SIGUSR1)
    assert back_in.recv() is True
    holder.join()
    del junk
    for end in (there_in, there_out, back_in, back_out):
        end.close()


def _check_later(inbox: Any, outbox: Any, unused: Any) -> None:
    asked = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: asked.set())
    array = inbox.recv()
    outbox.send("held")
    asked.wait(30)
    outbox.send(bool((array == 7).all()))


# ---- the wait at the exit

_PRODUCER = """
import multiprocessing, os, signal, sys, time
import ndshare
from ndshare.integrations import multiprocessing as integration

integration.register(linger={linger})
{body}
"""


def test_nobody_left_to_receive_ends_the_wait(run_script: Any) -> None:
    """A process alone with untaken messages ends after a second, and says so."""
    source = _PRODUCER.format(
        linger=1000, body="a, b = multiprocessing.Pipe()\na.send(ndshare.ones(9))\nprint('end', flush=True)"
    )
    start = time.monotonic()
    done = run_script(source, timeout=60)
    assert time.monotonic() - start >= 1
    assert "1 shared array that this process sent" in done.stderr
    assert "SegmentGoneError" in done.stderr


_WAITING_CHILD = """
def child(connection):
    connection.send(ndshare.ones(9))
    connection.send(os.getpid())

def alive(pid):
    return os.path.exists(f"/proc/{pid}") and open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"

context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
process = context.Process(target=child, args=(theirs,))
process.start()
time.sleep(1.5)
assert alive(process.pid), "did not wait"
"""


def test_wait_is_bounded_while_others_live(run_script: Any) -> None:
    """With `linger` seconds of patience a child ends although its parent lives and never reads."""
    done = run_script(_PRODUCER.format(linger=2, body=_WAITING_CHILD + "process.join()\nprint('joined')"))
    assert done.stdout == "joined\n"
    assert "register(linger=seconds)" in done.stderr


def test_wait_ends_with_the_parent(run_script: Any) -> None:
    """A child whose parent was killed does not wait for ever."""
    body = _WAITING_CHILD + "print(process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    done = run_script(_PRODUCER.format(linger="float('inf')", body=body), check=False)
    assert done.returncode == -signal.SIGKILL
    # `run_script` has read the output to its end, so the child, which held the pipe, is over.
    assert int(done.stdout) > 0


def test_wait_can_be_interrupted(run_script: Any) -> None:
    """Ctrl-C ends the wait, with a warning and not a traceback."""
    body = _WAITING_CHILD + "os.kill(process.pid, signal.SIGINT)\nprocess.join()\nprint(process.exitcode)"
    done = run_script(_PRODUCER.format(linger=1000, body=body))
    assert done.stdout == "0\n"
    assert "Traceback" not in done.stderr
    assert "had not been taken" in done.stderr


# ---- many, and limits


def test_five_thousand_arrays_under_way_need_few_descriptors(run_script: Any) -> None:
    """`ulimit -n 256`: small arrays share segments, and segments share a descriptor."""
    body = """
import resource, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
queue = multiprocessing.Queue()
for number in range(5000):
    queue.put(ndshare.full(40 + number % 200, float(number)))
for number in range(5000):
    array = queue.get()
    assert (array == number).all() and len(array) == 40 + number % 200
assert integration._deposits.sweep() == 0
queue.close(); queue.join_thread()
print("ok")
"""
    assert run_script(_PRODUCER.format(linger=1, body=body)).stdout == "ok\n"


def test_without_a_descriptor_nothing_is_sent(run_script: Any) -> None:
    """No descriptor to send with: an error, and not a copy that only looks like the shared array."""
    body = """
import resource
array = ndshare.ones(400_000)
a, b = multiprocessing.Pipe()
used = []
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
try:
    while True:
        used.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
try:
    a.send(array)
except ndshare.SegmentError as error:
    print("ulimit" in str(error))
while used:
    os.close(used.pop())
a.send(array)
assert b.recv().ctypes.data == array.ctypes.data
"""
    assert run_script(_PRODUCER.format(linger=0, body=body)).stdout == "True\n"


def test_without_a_descriptor_the_message_is_refused_clearly(run_script: Any) -> None:
    """No descriptor to receive with: an error that names the limit, not a crash or a hang."""
    body = """
import resource
a, b = multiprocessing.Pipe()
for number in range(2):
    a.send(ndshare.ones(400_000))
used = []
try:
    while True:
        used.append(os.open("/dev/null", os.O_RDONLY))
        if len(used) == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
except OSError:
    pass
try:
    b.recv()
except ndshare.SegmentError as error:
    print("ulimit" in str(error))
for fd in used:
    os.close(fd)
assert (b.recv() == 1).all()
"""
    assert run_script(_PRODUCER.format(linger=0, body=body)).stdout == "True\n"


@pytest.mark.chaos
def test_random_kills_leave_no_memory(chaos_rng: Any, chaos_rounds: int) -> None:
    """Producers that are killed at any time: what arrives is right, the rest is gone, nothing stays."""
    context = multiprocessing.get_context("fork")
    gc.collect()
    before = ndshare.stats().held_segments
    for _ in range(12 * chaos_rounds):
        ours, theirs = context.Pipe(False)
        child = context.Process(target=mp_tasks.produce, args=(_Sender(theirs), 10_000, 30_000))
        child.start()
        theirs.close()
        deadline = time.monotonic() + chaos_rng.random() * 0.2
        number = 0
        killed = False
        while True:
            if not killed and time.monotonic() > deadline:
                child.kill()
                killed = True
            try:
                array = ours.recv()
            except ndshare.SegmentGoneError:
                assert killed
                continue
            except (EOFError, OSError, pickle.UnpicklingError):
                break
            assert (array == number).all()
            number += 1
        assert killed
        child.join()
        ours.close()
        array = None
    assert ndshare.stats().held_segments == before


class _Sender:
    def __init__(self, connection: Any) -> None:
        self.put = connection.send


# ---- registration


def test_unregister_restores_plain_copies() -> None:
    """Afterwards pickler and children are as before, and nothing is left open."""
    integration.unregister()
    integration.unregister()
    array = ndshare.ones(10)
    assert bytes(ForkingPickler.dumps(array)) == pickle.dumps(array)
    assert np.ndarray not in ForkingPickler._extra_reducers
    assert not ndshare.is_shared(ForkingPickler.loads(ForkingPickler.dumps(array)))
    integration.register()


def test_unregister_keeps_what_is_under_way() -> None:
    """A message that was sent before can be read afterwards."""
    array = ndshare.ones(10)
    data = ForkingPickler.dumps(array)
    integration.unregister()
    assert np.shares_memory(ForkingPickler.loads(data), array)
    integration.register()


def test_reducer_of_another_library_is_put_back() -> None:
    """Whoever had registered arrays before is asked for ordinary ones, and is back after `unregister`."""
    integration.unregister()
    ForkingPickler.register(np.ndarray, lambda array: (str, ("theirs",)))
    try:
        integration.register()
        assert ForkingPickler.loads(ForkingPickler.dumps(np.ones(3))) == "theirs"
        assert ndshare.is_shared(ForkingPickler.loads(ForkingPickler.dumps(ndshare.ones(3))))
        integration.unregister()
        assert ForkingPickler.loads(ForkingPickler.dumps(ndshare.ones(3))) == "theirs"
    finally:
        ForkingPickler._extra_reducers.pop(np.ndarray, None)
        integration.register()


@pytest.mark.parametrize("linger", ["1", None, True])
def test_register_refuses_what_is_no_time(linger: Any) -> None:
    """`linger` is a number of seconds."""
    with pytest.raises(TypeError, match="linger must be a number of seconds"):
        integration.register(linger=linger)


def test_child_that_needs_no_arrays_does_not_import_numpy(run_script: Any) -> None:
    """The registration reaches a spawned child as a mark, which costs it nothing."""
    body = """
def child():
    import sys
    print(hasattr(multiprocessing, "_ndshare_registered"), "numpy" in sys.modules, flush=True)
"""
    source = f"""
import multiprocessing
{body}
if __name__ == "__main__":
    from ndshare.integrations import multiprocessing as integration
    integration.register()
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""
    assert run_script(source).stdout == "True False\n"


def test_children_of_a_server_that_has_imported_ndshare_are_registered(run_script: Any) -> None:
    """`set_forkserver_preload(["ndshare"])`: the mark comes too late for the import."""
    source = """
import multiprocessing

def child(queue):
    import ndshare
    queue.put(ndshare.ones(5))

if __name__ == "__main__":
    import ndshare
    from ndshare.integrations import multiprocessing as integration
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ndshare"])
    queue = context.SimpleQueue()
    first = context.Process(target=print, args=("started before",))
    first.start()
    first.join()
    integration.register()
    process = context.Process(target=child, args=(queue,))
    process.start()
    array = queue.get()
    process.join()
    print(ndshare.is_shared(array))
"""
    assert run_script(source).stdout == "started before\nTrue\n"


def test_key_of_the_children_stays_secret() -> None:
    """The reducer that carries the registration does not make the authentication key picklable."""
    with pytest.raises(TypeError, match="disallowed"):
        ForkingPickler.dumps(multiprocessing.current_process().authkey)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_other_users_are_kept_out(run_script: Any) -> None:
    """A receiver with another user id is refused by the kernel, and told so."""
    body = """
from multiprocessing.reduction import ForkingPickler
data = ForkingPickler.dumps(ndshare.ones(9))
pid = os.fork()
if pid == 0:
    os.setgid(65534); os.setuid(65534)
    try:
        ForkingPickler.loads(data)
    except ndshare.SegmentGoneError:
        os._exit(3)
    except ndshare.SegmentError as error:
        os._exit(0 if "EACCES" in str(error) else 4)
    os._exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_script(_PRODUCER.format(linger=0, body=body)).stdout == "0\n"
