"""The messages between a process and its workers, as both ends read them.

::

    caller ──► worker   TASKS   records of (seq, kind, function, payload)
                        STATE   sys.path, working directory, environment, filters, threads, log levels
                        MAIN    names of the caller's __main__
                        FUNCTION  what later records of kind ITEMS and EACH call
                        FORGET  functions that are not needed any more
                        STREAMS descriptors that prints go to
                        PLACED  the processors that it may run on again (`Worker.bring_here`)
                        REST    its pool is over: put back what tasks have left
                        INITIALIZER, FDS, QUIT
    worker ──► caller   RESULT  seq, status, seconds, payload
                        INITIALIZED, FDS
                        RESTED  whether it is as new, and the source files of its modules
                        LOG     a log record
                        ASK     a name of __main__ that a task looks up at run time, or a module it imports
                        TRACKER asks for the resource tracker, with a descriptor for the answer

A message is one SOCK_SEQPACKET datagram. Its descriptors are those of its records, in order. More
descriptors than one message may carry (253) go ahead of it in FDS messages.

Beside the socket each worker has a row on a *board* in shared memory: the prefix of the segments it owns,
its process number, how many tasks it has looked at and when it began the last one, then one byte per task in
flight (`cell`): `PENDING` until the worker takes the task by
compare-and-swap (`STARTED`), or the caller takes it back the same way (`REVOKED`) or stops it
(`INTERRUPTED`). So a task runs exactly once, a batch can be given to somebody else while its head is slow,
Ctrl-C hits the task it was meant for, and after a death it is known which task was running. When it has the
answer, the worker says so (`ANSWERED`), unless the caller has claimed it for death before (`KILLED`): then
it ends, whether or not the signal has come. So who takes too long is killed at that task and at no other.

For ``ndshare top`` (`watching`) the worker also notes, once a message, how many tasks it has done with, and
the name of the function when that changes; behind the last row the caller notes the maps in its workers.
"""

from __future__ import annotations

import struct

# Kinds of messages, the first byte.
TASKS = 1
STATE = 2
MAIN = 3
FUNCTION = 4
FORGET = 5
INITIALIZER = 6
FDS = 7
QUIT = 8
REST = 9
RESULT = 10
INITIALIZED = 11
LOG = 12
PLACED = 13
ASK = 14
STREAMS = 15
RESTED = 16
TRACKER = 17

IMPORT = "import "  # before a module's name in an ASK

HEAD = struct.Struct("<BBHIf")  # kind, status, number of records, seq or token, seconds it took
RECORD = struct.Struct("<IIIHH")  # seq, payload length, function token, descriptors, kind of record

# What a process and its zygote tell each other: marshalled tuples, this first.
SPAWN = 1  # worker id, options; descriptors: WORKER_FDS, then those that prints go to
KILL = 2  # worker id, signal
READY = 3  # process number of the zygote
EXITED = 4  # worker id, process number, exit code, peak memory in bytes
FAILED = 5  # worker id, text of the error: it could not be forked

WORKER_FDS = 3  # socket, board, ledger

# Status of a STATE: whether its bytes are in a parcel, as they may be too many for one message.
PARCEL = 1

# Kinds of records.
CALL = 0  # payload: (function, args, kwargs)
ITEMS = 1  # payload: list of argument tuples for the function of that token
LAST_CALL = 2  # as CALL; what tasks have left in the process is put back after it
EACH = 3  # as ITEMS; stops at the first that raises, and the results before it travel all the same

# Status of a result, and of a MAIN that answers an ASK: it counts one record.
OK = 0
ERROR = 1  # payload: (exception, traceback text)
NO_MODULE = 2  # payload: the same; the worker lacks a module the payload names
NO_MAIN = 3  # payload: the same; a name of __main__ could not be rebuilt

# Bytes of a board row.
PENDING = 0
STARTED = 1
REVOKED = 2
INTERRUPTED = 3
ANSWERED = 4  # and these two, `_wire.finish` knows as well
KILLED = 5
ROW_BYTES = 1024
BOARD_ROWS = 64
OWNER_AT = 0
PID_AT = 8
SEEN_AT = 16  # how many tasks the worker has looked at; behind it, when it began the last one
BEGAN_AT = 24  # in monotonic nanoseconds
REACHED_AT = 32  # as SEEN_AT, but what it has done with
NAME_AT = 40
_CELLS_AT = 128
NAME_BYTES = _CELLS_AT - NAME_AT
CELLS = ROW_BYTES - _CELLS_AT


# Behind the rows: a note per map that runs in workers. The first field is written last, and 0 without one.
MAP_NOTE = struct.Struct("<QQQQQQ80s")  # began; device, inode, offset of its board; workers, items; name
MAP_NOTES = 16
MAP_NOTES_AT = BOARD_ROWS * ROW_BYTES
BOARD_BYTES = MAP_NOTES_AT + MAP_NOTES * MAP_NOTE.size


def cell(row: int, seq: int) -> int:
    """Where on the board the byte of a task is, for the row that begins at `row`."""
    return row + _CELLS_AT + seq % CELLS


# A message stays well below the socket buffer of 208 kB that many systems allow at most, so that two
# are in the socket without blocking the sender.
MESSAGE_MAX_BYTES = 64 * 1024
BUFFER_BYTES = 256 * 1024
FDS_MAX = 250

#: How long both ends look for the next message before they sleep, in microseconds: a moment, and longer where
#: one short task follows the other, each waited for, so that nobody else wants the processor.
SPIN_US = 30
SPIN_ALONE_US = 400
