"""What the laboratory found once, each as its user would have met it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from statestore.disk import durable
from statestore.disk.store import StateStore
from statestore.errors import SaveNotDurable, StateCorrupt


@pytest.fixture
def path() -> Path:
    return Path(tempfile.mkdtemp(), "state.json")


def flushed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that takes the path of everything that is flushed from now on."""
    seen, fsync = [], os.fsync

    def spy(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    return seen


def test_a_reader_that_found_nothing_finds_a_bak_that_came_later(path: Path) -> None:
    """`refresh` went on answering with an empty state when only .bak was left."""
    reader = StateStore(path)
    assert reader.load() == {}
    writer = StateStore(path)
    writer.save({"n": 1})
    writer.save({"n": 2})
    path.unlink()

    assert reader.refresh() == {"n": 1}

    path.with_name("state.json.bak").write_bytes(b"torn")
    with pytest.raises(StateCorrupt):
        StateStore(path).refresh()


def test_saving_again_what_a_killed_process_saved_flushes_it_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename of the killed one may be lost, and nothing new is written that brings it back."""
    StateStore(path).save({"n": 1})
    bot = StateStore(path)
    state = bot.load()
    seen = flushed(monkeypatch)

    bot.save(state)
    assert seen[:2] == [path, path.parent]
    seen.clear()
    bot.save(state)
    assert seen == []


def test_the_first_save_in_a_folder_flushes_the_folders_above_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was killed may have made the folder and not flushed its name."""
    seen = flushed(monkeypatch)

    StateStore(path).save({"n": 1})

    assert path.parent.parent in seen


def test_litter_of_a_killed_writer_goes_when_there_is_no_file_to_keep(path: Path) -> None:
    link = path.with_name("state.json.bak.tmp")
    link.write_bytes(b"left")

    StateStore(path).save({"n": 1})

    assert not link.exists()


def test_a_close_that_fails_does_not_fail_a_save_that_is_durable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot = StateStore(path)
    bot.save({"n": 1})
    close = os.close

    def failing(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", failing)
    bot.save({"n": 2})
    monkeypatch.undo()

    assert StateStore(path).load() == {"n": 2}


def test_a_look_at_the_new_file_that_fails_says_that_it_may_not_be_durable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old")
    replaced = []
    replace, fstat = os.replace, os.fstat
    monkeypatch.setattr(os, "replace", lambda *names: replaced.append(names) or replace(*names))

    def failing(descriptor: int) -> os.stat_result:
        if replaced and Path(f"/proc/self/fd/{descriptor}").readlink() == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", failing)

    with pytest.raises(SaveNotDurable):
        durable.replace_file(path, b"new")
