"""Movements of one asset applied in order, to the position at the end. Pure.

Fills of one instant with both sides are tied: nothing the exchange says puts one before the other.
Of all their orders those that never go below zero are followed, and where they lead to different
positions the answer is ambiguous, never the likelier one.

What a fill moves is in `movements`, what applying it does in `book`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import groupby, permutations

from statestore.amounts import ZERO, exact
from statestore.fills.book import Book, Lot, Oversell, Position, position_of
from statestore.fills.movements import Movement
from statestore.fills.normalise import instant
from statestore.model import Method

# Beyond these a tie is not resolved but called ambiguous; real ties are two or three rows.
_MOST_TIED_ROWS = 6
_MOST_READINGS = 64


@exact
def replay(
    movements: Sequence[Movement],
    method: Method = Method.AVERAGE,
    *,
    opening: Lot | None = None,
    increment: Decimal = ZERO,
    oversell: Oversell = "clamp",
) -> Position:
    """Apply movements of one asset in order and return the position at the end.

    Args:
        movements: oldest first (see `statestore.fills.normalise.oldest_first`).
        opening: units held before the first movement; None means flat, which is wrong for
            anything bought before the lookback window.
        increment: the product's base increment; a position of no more units than this, once for
            each of its fills sized in quote, is flat, and a sell that exceeds what is held by no
            more than that is covered.
        oversell: what selling more than is held does.

    Fills of one instant with both sides are tied; see the module.
    """
    books = [Book(method, opening=opening, increment=increment, oversell=oversell)]
    for tied in _instants(movements):
        books = _after(books, tied)
    return _reached(books)


@exact
def replay_each(
    movements: Sequence[Movement],
    method: Method = Method.AVERAGE,
    *,
    opening: Lot | None = None,
    increment: Decimal = ZERO,
) -> list[Position | None]:
    """Return the position after each movement; the last one is what `replay` returns.

    Between tied fills of both sides there is none, since nobody knows which came first: None for
    all but the last of them.
    """
    books = [Book(method, opening=opening, increment=increment)]
    found: list[Position | None] = []
    for tied in _instants(movements):
        if _one_sided(tied):
            for movement in tied:
                books = _after(books, [movement])
                found.append(_reached(books))
        else:
            books = _after(books, tied)
            found += [*[None] * (len(tied) - 1), _reached(books)]
    return found


def _one_sided(tied: Sequence[Movement]) -> bool:
    return len(tied) == 1 or len({movement.units > 0 for movement in tied}) == 1


def _after(books: list[Book], tied: list[Movement]) -> list[Book]:
    """Apply the movements of one instant, in every order that can differ."""
    if not _one_sided(tied):
        return _follow_orders(books, tied)
    for book in books:
        for movement in tied:
            book.apply(movement)
    return books


def _reached(books: list[Book]) -> Position:
    positions = [position_of(book) for book in books]
    first = positions[0]
    if any(position.realised != first.realised for position in positions):
        first = replace(first, realised=None, realised_net=None)
    differ = len({book.signature() for book in books}) > 1
    return replace(first, ambiguous=differ or any(book.undecided for book in books))


def _instants(movements: Sequence[Movement]) -> Iterator[list[Movement]]:
    for _, tied in groupby(movements, key=lambda movement: instant(movement.fill)):
        yield list(tied)


def _follow_orders(books: list[Book], tied: list[Movement]) -> list[Book]:
    orders, all_of_them = _orders(tied)
    reached: dict[tuple[object, ...], Book] = {}
    below: list[Book] = []
    for book in books:
        for order in orders:
            candidate = book.copy()
            for movement in order:
                candidate.apply(movement)
            candidate.undecided |= not all_of_them
            if candidate.uncovered - book.uncovered > book.increment:
                below.append(candidate)
            else:
                reached.setdefault(candidate.signature(), candidate)
    found = list(reached.values()) or below[:1]
    if len(found) > _MOST_READINGS:
        found[0].undecided = True
        return found[:1]
    return found


def _orders(tied: list[Movement]) -> tuple[list[tuple[Movement, ...]], bool]:
    """Orders that can differ in their result, buys first, and whether those are all."""
    buys_first = sorted(tied, key=lambda movement: movement.units < 0)
    if len(tied) > _MOST_TIED_ROWS:
        return [tuple(buys_first)], False
    distinct: dict[tuple[object, ...], tuple[Movement, ...]] = {}
    for order in permutations(buys_first):
        key = tuple((movement.units, movement.notional, movement.currency) for movement in order)
        distinct.setdefault(key, order)
    return list(distinct.values()), True
