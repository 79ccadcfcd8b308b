from collections.abc import Callable
from typing import Any

from typing_extensions import Buffer

def run(
    kernel: Callable[..., object],
    worker_id: int,
    source: Any,
    by_index: bool,
    board: Buffer,
    slot: int,
    mask: int,
    first: int,
    count: int,
    timed: bool,
    /,
) -> tuple[int, bool]: ...
def drop(result: object, /) -> None: ...
