"""Slices read by as many threads as it takes, ended together.

A thread asks for one page of one slice at a time; what to do with pages is decided in the thread
that called, which tells how far it is. One failure, or an interrupt, ends all: no request leaves
after that, and no thread is left when the error arrives. What is one chain needs no thread at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from math import ceil
from queue import SimpleQueue

from statestore.errors import IncompleteRead
from statestore.fills.sources.slices import Page, Progress, Slice, Slices

# Reads one chain of pages between two bounds; gives up when the event is set.
ReadChain = Callable[[int | None, int | None, threading.Event], Iterator[Page]]

_MOST_THREADS = 64

_Todo = SimpleQueue[Slice | None]
_Came = SimpleQueue[tuple[Slice, Page | BaseException]]


def read_slices(
    slices: Slices,
    read_chain: ReadChain,
    *,
    abreast: Callable[[], float],
    max_pages: int,
    tell: Callable[[Progress], None],
) -> None:
    """Read until the slices are finished.

    Args:
        abreast: how many requests have to be under way at once to use the allowed rate.
        max_pages: over all slices; one more is an error.
        tell: called after each page, by the calling thread.

    Raises:
        IncompleteRead: there are more pages than allowed.
        Exception: whatever ``read_chain`` raised first.
    """
    stopping = threading.Event()
    crew = _Crew()

    def start(piece: Slice) -> None:
        if slices.pages + crew.under_way >= max_pages:
            raise IncompleteRead(
                f"no end after {max_pages} pages, so the fills are not whole and nothing was "
                "computed; ask for a shorter window"
            )
        piece.chain = piece.chain or read_chain(piece.since, piece.until, stopping)

    def take(piece: Slice, page: Page) -> None:
        slices.took(piece, page, abreast())
        tell(slices.progress())

    try:
        while not slices.finished:
            most = min(ceil(1.15 * abreast()) + 1, _MOST_THREADS)
            while crew.under_way < most and (piece := slices.next()):
                start(piece)
                if not crew.under_way and not slices.waiting:
                    assert piece.chain is not None
                    take(piece, next(piece.chain))
                else:
                    crew.hand(piece)
            if crew.under_way:
                take(*crew.came())
    finally:
        stopping.set()
        crew.dismiss()


class _Crew:
    """Threads that read a page of a slice each; as many as are needed at once.

    Attributes:
        under_way: slices that were handed out and are not back yet.
    """

    def __init__(self) -> None:
        self.under_way = 0
        self._todo: _Todo = SimpleQueue()
        self._came: _Came = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def hand(self, piece: Slice) -> None:
        """Have the next page of a slice read."""
        self.under_way += 1
        self._todo.put(piece)
        if len(self._threads) < self.under_way:
            # Daemons, so that a second interrupt need not wait for an answer.
            thread = threading.Thread(
                target=_work, args=(self._todo, self._came), name="fills", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def came(self) -> tuple[Slice, Page]:
        """Wait for the page that comes next, or raise what was raised in place of it."""
        piece, page = self._came.get()
        self.under_way -= 1
        if isinstance(page, BaseException):
            raise page
        return piece, page

    def dismiss(self) -> None:
        """End all threads, and wait for them."""
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()


def _work(todo: _Todo, came: _Came) -> None:
    while (piece := todo.get()) is not None:
        assert piece.chain is not None
        try:
            came.put((piece, next(piece.chain)))
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that called
            came.put((piece, error))
