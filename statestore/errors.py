"""Every error this package raises on purpose, as one tree::

    StateStoreError
    |-- UsageError                  options that contradict each other or mean nothing
    |   `-- IllegalMove             an order cannot become that from what it is
    |-- ConfigError                 a setting that is not understood
    |-- StateError                  the state file (or a backup of it)
    |   |-- StateMissing            there is none, and none was allowed to be made up
    |   |-- StateCorrupt            present, but not readable as a state; nothing to fall back to
    |   |   `-- StateChecksumMismatch   readable, but not the bytes that were saved
    |   |-- StateInvalid            a value that cannot be saved, or a section of the wrong shape
    |   |-- RevisionConflict        somebody else saved since this writer loaded
    |   |-- StateForked             saved in the database and, meanwhile, in the file beside it
    |   |-- SaveFailed              the operating system refused; the former state still stands
    |   |   `-- SaveNotDurable      the new state is in place, but may not survive a power cut
    |   |-- StateLocked             another writer holds the lock for too long
    |   |   `-- LeaseHeld           another bot runs on this state
    |   |-- BackupFailed            a backup could not be written or does not read back
    |   |-- AuditBroken             the audit file's chain of hashes does not hold
    |   `-- BarsFailed              the store of bars cannot be read or written
    |-- KillSwitchNotEngaged        a repair was asked for while the bot may trade
    |-- SourceError                 fills or balances could not be read
    |   |-- CredentialsError        no key, a bad key, or a key without the right
    |   |-- ExchangeError           unreachable, or it answered with an error
    |   |   `-- NotFound            it does not know what was asked for
    |   |-- IncompleteRead          the answer is known to be partial
    |   `-- RecordedFileError       a file of recorded fills or balances is not understood
    |-- BackendError                a database refused, or answered with an error
    |   |-- BackendUnavailable      it cannot be reached, or the connection broke
    |   |   `-- SaveUncertain       it broke during a save, and nobody knows whether that is saved
    |   |-- AlreadyRecorded         an order of this id is there: nothing is booked again
    |   |-- ContentRefused          it does not take what it was given, and would not next time
    |   `-- SchemaOutdated          its tables are not those of this version
    |-- RebuildRefused              a position is not proven, so nothing is written
    |-- ReinsertRefused             a position is held, so it is not given up for a signal
    |-- SignalError                 a file of the inbox is no signal, or names none that is there
    |-- ImportRefused               what a file holds is there already, so nothing is written
    `-- PlanStale                   what a saved plan was made from has changed

A message names the file or the fill, what was found, what was expected, and what to do next. No
message carries a credential or a whole payload.
"""

from __future__ import annotations

import os
from pathlib import Path

# Where something is: a file, or the address of what is in a database (no password in it).
Place = Path | str


class StateStoreError(Exception):
    """Base of every expected error; anything else that escapes is a bug."""


class UsageError(StateStoreError):
    """Options that contradict each other, or a value that means nothing."""


class IllegalMove(UsageError):
    """An order cannot become that from what it is, or more of it is filled than can be."""


class ConfigError(StateStoreError):
    """A setting of the environment or of ``statestore.toml`` is not understood."""


class StateError(StateStoreError):
    """Something about one state file.

    Attributes:
        path: the file the error is about; the address where the state is in a database.
    """

    def __init__(self, path: Place, message: str) -> None:
        super().__init__(message)
        self.path = path


class StateMissing(StateError):
    """There is no state file, no ``.bak`` and no backup."""


class StateCorrupt(StateError):
    """Something is there, but nothing that reads as a state. Never answered with an empty state."""


class StateChecksumMismatch(StateCorrupt):
    """Valid JSON that is not what was saved: edited by hand, by another program, or damaged."""


class StateInvalid(StateError):
    """A value that cannot be saved as JSON, or a section that is not what it has to be.

    Attributes:
        field: dotted path of the value (``positions.BTC-USD.entry_price``); empty for the document.
    """

    def __init__(self, path: Place, message: str, field: str = "") -> None:
        super().__init__(path, message)
        self.field = field


class RevisionConflict(StateError):
    """The state on disk is not the one this writer loaded.

    Attributes:
        loaded: revision this writer loaded; None when it never loaded one.
        found: revision on disk.

    ``detail`` says what speaks against the writer where the numbers alone do not.
    """

    def __init__(self, path: Place, loaded: int | None, found: int, detail: str = "") -> None:
        base = "never loaded it" if loaded is None else f"loaded revision {loaded}"
        super().__init__(
            path,
            f"{path} is at revision {found}, but this writer {base}; "
            f"load again and redo the change{f' ({detail})' if detail else ''}",
        )
        self.loaded = loaded
        self.found = found


class StateForked(StateError):
    """The state was saved in the database and, while that was away, in the file beside it.

    Nothing is merged: an operator chooses one (``statestore db reconcile --take``).
    """


class SaveFailed(StateError):
    """The operating system refused a step of a save; the former state still loads.

    Attributes:
        errno: the system's error number.
        step: what was being done (``fsync``, ``rename`` ...).
    """

    def __init__(self, path: Place, step: str, error: OSError, advice: str = "") -> None:
        what = f"{os.strerror(error.errno) if error.errno else error}"
        super().__init__(
            path, f"cannot save {path}: {step}: {what}{'; ' + advice if advice else ''}"
        )
        self.errno = error.errno
        self.step = step


class SaveNotDurable(SaveFailed):
    """The new state is in place and loads, but its folder could not be flushed to disk."""


class StateLocked(StateError):
    """Another process holds the lock of this state file for longer than the timeout."""


class LeaseHeld(StateLocked):
    """Another bot runs on this state file and holds its lease."""


class BackupFailed(StateError):
    """A backup could not be written, or did not read back as it was written."""


class AuditBroken(StateError):
    """A line of the audit file does not carry the hash of the line before it."""


class BarsFailed(StateError):
    """The store of bars is locked, not ours, or the system refused it. No position is in it."""


class KillSwitchNotEngaged(StateStoreError):
    """A write that repairs the state was asked for while the kill switch is not engaged."""


class SourceError(StateStoreError):
    """Fills, balances or products could not be read. Never answered with an empty list."""


class CredentialsError(SourceError):
    """Credentials are missing, unreadable or refused, or the key may do more than allowed."""


class ExchangeError(SourceError):
    """The exchange could not be reached, or answered with an error."""


class NotFound(ExchangeError):
    """The exchange does not know the product or the order that was asked for."""


class IncompleteRead(SourceError):
    """The exchange's answer is known to be partial (a page chain that does not end, for one)."""


class RecordedFileError(SourceError):
    """A recorded file is not what it has to be; the message names file and line."""


class BackendError(StateStoreError):
    """A database refused a statement or answered with an error. Never taken for an empty answer."""


class BackendUnavailable(BackendError):
    """The database cannot be reached, or the connection to it broke.

    Attributes:
        uncertain: the connection broke while the answer to COMMIT was awaited, so what was asked
            for may have been carried out.
    """

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain


class AlreadyRecorded(BackendError):
    """An order of this id is recorded already; nothing was booked again.

    Who repeats a call that he does not know the end of takes this for "it is done".

    Attributes:
        order_id: its id.
    """

    def __init__(self, order_id: str, message: str) -> None:
        super().__init__(message)
        self.order_id = order_id


class ContentRefused(BackendError):
    """The database refused what was to be written for what it is: trying again does not help."""


class SaveUncertain(BackendUnavailable):
    """The connection broke while a save was on its way, and the database did not come back.

    Whether the state is saved is unknown: load it again before anything else is decided.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, uncertain=True)


class SchemaOutdated(BackendError):
    """The tables are missing, older or newer than this version's, or made by other files."""


class RebuildRefused(StateStoreError):
    """At least one position in scope is not proven, so nothing was written."""


class ReinsertRefused(StateStoreError):
    """A position that is held was to be replaced by a signal; nothing was written."""


class SignalError(StateStoreError):
    """A file in the inbox is not a signal, or a signal that was asked for is not there."""


class ImportRefused(StateStoreError):
    """At least one position of a file is there already, so nothing was written."""


class PlanStale(StateStoreError):
    """What a saved plan was made from has changed since, so it is not applied."""
