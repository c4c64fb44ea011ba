import errno
import json
import os
import stat

import pytest

from statestore.disk.killswitch import KillSwitch
from statestore.errors import SaveFailed, SaveNotDurable
from statestore.times import parse_instant


@pytest.fixture
def switch(tmp_path):
    return KillSwitch(tmp_path / "data" / "KILL_SWITCH")


def refuse(monkeypatch, name, code):
    def call(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, call)


def test_a_switch_nobody_made_is_released(switch):
    assert (switch.status(), switch.engaged(), switch.details()) == ("released", False, None)


def test_engaging_says_who_why_and_when(switch):
    assert switch.engage("rebuild after the outage", by="ops")

    details = switch.details()
    assert (details["reason"], details["by"]) == ("rebuild after the outage", "ops")
    assert parse_instant(details["at"])
    assert stat.S_IMODE(switch.path.stat().st_mode) == 0o600
    assert json.loads(switch.path.read_text()) == details


def test_an_engaged_switch_is_left_alone(switch):
    switch.engage("first")

    assert not switch.engage("second")
    assert switch.details()["reason"] == "first"


def test_an_empty_touched_file_engages(switch):
    switch.path.parent.mkdir()
    switch.path.touch()

    assert (switch.status(), switch.details()) == ("engaged", {})


def test_text_by_hand_is_the_reason(switch):
    switch.path.parent.mkdir()
    switch.path.write_text("maintenance\n")

    assert switch.details() == {"reason": "maintenance"}


def test_a_dangling_link_and_a_folder_engage(switch):
    switch.path.parent.mkdir()
    switch.path.symlink_to("nowhere")
    assert switch.engaged()
    assert switch.details() == {}

    switch.path.unlink()
    switch.path.mkdir()
    assert switch.engaged()
    assert switch.details() == {}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ELOOP], ids=errno.errorcode.get)
def test_a_switch_that_cannot_be_looked_at_counts_as_engaged(switch, monkeypatch, code):
    refuse(monkeypatch, "lstat", code)

    assert (switch.status(), switch.engaged()) == ("unknown", True)


def test_a_file_in_place_of_the_folder_counts_as_engaged(tmp_path):
    (tmp_path / "data").touch()

    assert KillSwitch(tmp_path / "data" / "KILL_SWITCH").engaged()


def test_releasing_tells_whether_there_was_one(switch):
    switch.engage()

    assert switch.release()
    assert not switch.release()
    assert switch.status() == "released"


def test_a_full_disk_does_not_stop_the_switch(switch, monkeypatch, caplog):
    refuse(monkeypatch, "write", errno.ENOSPC)

    assert switch.engage("why")

    assert (switch.status(), switch.details()) == ("engaged", {})
    assert "without its reason" in caplog.text


def test_a_switch_that_may_not_survive_says_so_and_is_engaged(switch, monkeypatch):
    switch.path.parent.mkdir()
    refuse(monkeypatch, "fsync", errno.EIO)

    with pytest.raises(SaveNotDurable):
        switch.engage()
    assert switch.engaged()


def test_a_switch_that_cannot_be_made_or_removed_says_so(switch, monkeypatch):
    switch.path.parent.mkdir()
    with monkeypatch.context() as patched:
        refuse(patched, "open", errno.EROFS)
        with pytest.raises(SaveFailed, match="NOT engaged"):
            switch.engage()

    switch.path.mkdir()
    with pytest.raises(SaveFailed, match="stays engaged"):
        switch.release()
