"""Progress of long work: reading and writing tensors. Nothing is shown unless a program asks for it."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Item = TypeVar("Item")
Track = Callable[[Collection[Any], str], Iterable[Any]]

_track: ContextVar[Track | None] = ContextVar("bitlab_progress", default=None)


def tracked(items: Collection[Item], what: str) -> Iterable[Item]:
    """`items`, passed through what `show_progress` was given; `what` says in a word what is done with them."""
    track = _track.get()
    return items if track is None else track(items, what)


@contextmanager
def show_progress(track: Track) -> Iterator[None]:
    """Calls `track(items, what)` for long work in this thread or task: it gives the items back, one by one.

    That is what `tqdm.tqdm(items, desc=what)` and `rich.progress.track(items, what)` do.
    """
    token = _track.set(track)
    try:
        yield
    finally:
        _track.reset(token)
