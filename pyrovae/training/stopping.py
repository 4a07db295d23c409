"""Being asked to stop: Ctrl-C, or a scheduler's SIGTERM, at the end of a step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and did so in good order; the message says how to go on."""


@contextlib.contextmanager
def asked_to_stop(watch: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has come since.

    The first does nothing else; a second does at once what it did before this block. In a thread
    that is not the main one signals are left as they are.

    Args:
        watch: False to leave them as they are anyway.
    """
    asked = False
    before: dict[int, object] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        restore()

    if watch and threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda: asked
    finally:
        restore()
