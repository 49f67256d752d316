"""quiet_without_a_reader: programs whose output goes to `| head`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WITHOUT_A_READER = 128 + 13  # as shells have it for a program that SIGPIPE ended


@contextmanager
def quiet_without_a_reader() -> Iterator[None]:
    """Ends the program without a word once nobody reads its stdout any more.

    Not by SIGPIPE itself: it would also end a program at a connection that the other side has closed, and before what
    is half written is deleted.

    Raises:
        SystemExit: 141, where the block, or writing out what it printed, met a closed pipe.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        with suppress(OSError), Path(os.devnull).open("wb") as nowhere:  # a stdout that is no file has no number
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # Python flushes it once more at its end
        raise SystemExit(WITHOUT_A_READER) from None
