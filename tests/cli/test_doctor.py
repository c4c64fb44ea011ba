"""``statestore doctor``: every check is made, each finding has its remedy, nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from statestore.cli import doctor
from statestore.disk import surroundings
from statestore.disk.audit import AuditLog
from statestore.disk.killswitch import KillSwitch
from statestore.disk.store import StateStore
from statestore.simulated import UNAVAILABLE, SimulatedExchange
from tests.cli.conftest import Ran, Run
from tests.cli.test_rebuild_apply import snapshot


@pytest.fixture
def examine(
    statestore: Run, state_store: StateStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Ran]:
    """Run ``doctor --format json`` on a good state; on a local disk, whatever this one is."""
    for name in ("COINBASE_KEY_FILE", "COINBASE_API_KEY", "COINBASE_API_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(surroundings, "file_system_of", lambda _: "ext4")
    state_store.save({"positions": {}})
    state_store.backup()
    given = ("doctor", "--state", state_store.path, "--format", "json")
    return lambda *arguments: statestore(*given, *arguments)


@pytest.fixture
def key(
    examine: Any, fake_exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch
) -> SimulatedExchange:
    for name, value in fake_exchange.environment().items():
        monkeypatch.setenv(name, value)
    return fake_exchange


def about(ran: Ran, check: str, level: str) -> dict[str, Any]:
    found = [
        line for line in ran.json["checks"] if (line["check"], line["level"]) == (check, level)
    ]
    assert len(found) == 1, ran.out
    line: dict[str, Any] = found[0]
    assert line["remedy"] or level == "ok", "a finding without its remedy"
    return line


def test_all_is_well(examine: Any, key: SimulatedExchange) -> None:
    ran = examine()

    assert (ran.code, ran.json["ok"], ran.err) == (0, True, "")
    assert {line["level"] for line in ran.json["checks"]} == {"ok"}
    assert {line["check"] for line in ran.json["checks"]} == {
        *("versions", "settings", "permissions", "disk", "state", "backups", "locks"),
        *("kill-switch", "audit", "ledger", "exchange", "clock", "key"),
    }
    assert {request.method for request in key.requests} == {"GET"}


def test_it_writes_nothing(examine: Any, key: SimulatedExchange, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    examine()

    assert snapshot(tmp_path) == before


def test_without_a_key_and_offline_it_warns(examine: Any) -> None:
    ran = examine("--offline")

    assert ran.code == 0
    assert "no credentials" in about(ran, "key", "warning")["message"]
    assert "--offline" in about(ran, "exchange", "ok")["message"]


def test_without_a_network_that_line_fails_and_the_others_are_there(
    examine: Any, key: SimulatedExchange, quick_retries: None
) -> None:
    key.script("time", UNAVAILABLE, forever=True)
    ran = examine()

    assert ran.code == 5
    assert "gave up after 2 attempts" in about(ran, "exchange", "failure")["message"]
    assert "was not asked" in about(ran, "key", "warning")["message"]


@pytest.mark.parametrize(
    ("offset", "level", "code"),
    [(0, "ok", 0), (30, "warning", 0), (-30, "warning", 4), (200, "failure", 4)],
)
def test_the_clock_is_compared_with_the_exchange(
    examine: Any, key: SimulatedExchange, offset: int, level: str, code: int, quick_retries: None
) -> None:
    key.clock_offset = offset  # where the clock here is ahead, the key is refused as well
    ran = examine()

    assert about(ran, "clock", level)
    assert ran.code == code
    if offset:
        direction = "behind" if offset > 0 else "ahead of"
        assert f"{abs(offset)}" in about(ran, "clock", level)["message"]
        assert direction in about(ran, "clock", level)["message"]


def test_a_key_that_can_do_more_is_a_warning_or_a_failure(
    examine: Any, key: SimulatedExchange
) -> None:
    key.permissions |= {"can_trade": True, "can_transfer": True}
    warned, refused = examine(), examine("--require-view-only")

    assert warned.code == 0
    assert "can also trade and transfer" in about(warned, "key", "warning")["message"]
    assert refused.code == 4


def test_a_key_that_is_refused_is_exit_4(
    examine: Any, key: SimulatedExchange, monkeypatch: pytest.MonkeyPatch, quick_retries: None
) -> None:
    monkeypatch.setenv("COINBASE_API_KEY", "organizations/x/apiKeys/y")
    ran = examine()

    assert ran.code == 4
    assert "the key is refused" in about(ran, "key", "failure")["message"]


def test_a_secret_is_never_shown(examine: Any, key: SimulatedExchange) -> None:
    ran = examine()

    assert key.api_secret.splitlines()[1] not in ran.out + ran.err
    assert key.api_key not in ran.out + ran.err


def test_files_that_others_can_read_are_a_warning(
    examine: Any, state_store: StateStore, key: SimulatedExchange, tmp_path: Path
) -> None:
    file = key.write_key_file(tmp_path / "my key.json")
    file.chmod(0o644)
    ran = examine("--key-file", file)

    assert ran.code == 0
    assert about(ran, "permissions", "warning")["remedy"] == f"chmod 600 '{file}'"


def damaged(store: StateStore) -> None:
    store.path.write_bytes(b"{")


def damaged_backup(store: StateStore) -> None:
    store.backups.list()[0].path.write_bytes(b"{")


def missing(store: StateStore) -> None:
    store.path.unlink()


def edited(store: StateStore) -> None:
    store.path.write_text(store.path.read_text().replace('"positions": {}', '"positions":{}'))


@pytest.mark.parametrize(
    ("harm", "check", "remedy"),
    [
        (damaged, "state", "statestore restore"),
        (missing, "state", "statestore restore"),
        (edited, "state", "statestore seal"),
        (damaged_backup, "backups", "rm "),
    ],
)
def test_what_is_wrong_with_the_state_is_exit_8(
    examine: Any, state_store: StateStore, harm: Any, check: str, remedy: str
) -> None:
    harm(state_store)
    ran = examine("--offline")

    assert ran.code == 8
    assert remedy in about(ran, check, "failure")["remedy"]


def test_a_broken_audit_file_and_an_engaged_switch_are_told(
    examine: Any, state_store: StateStore, kill_switch: KillSwitch
) -> None:
    log = AuditLog(state_store.path.with_name("state_audit.jsonl"))
    log.append({"action": "seal"})
    log.append({"action": "undo"})
    log.path.write_text(log.path.read_text().replace("seal", "seel"))
    kill_switch.engage("a test", "me")
    ran = examine("--offline")

    assert ran.code == 8
    assert "line 2 carries the hash" in about(ran, "audit", "failure")["message"]
    assert "engaged, reason a test, by me" in about(ran, "kill-switch", "warning")["message"]


@pytest.mark.parametrize(
    ("kind", "level"),
    [("xfs", "ok"), ("nfs4", "failure"), ("tmpfs", "warning"), ("fuse.thing", "warning")],
)
def test_the_file_system_is_judged(
    examine: Any, monkeypatch: pytest.MonkeyPatch, kind: str, level: str
) -> None:
    monkeypatch.setattr(surroundings, "file_system_of", lambda _: kind)
    ran = examine("--offline")
    found = [line for line in ran.json["checks"] if f" is on {kind}" in line["message"]]

    assert [line["level"] for line in found] == [level]
    assert ran.code == (8 if level == "failure" else 0)


@pytest.mark.parametrize(
    ("room", "level"),
    [((1 << 40, None), "ok"), ((50 << 20, None), "warning"), ((1_000, None), "failure")],
)
def test_room_is_judged(
    examine: Any, monkeypatch: pytest.MonkeyPatch, room: tuple[int, None], level: str
) -> None:
    monkeypatch.setattr(surroundings, "room_at", lambda _: surroundings.Room(*room))
    found = [line for line in examine("--offline").json["checks"] if "MiB free" in line["message"]]

    assert [line["level"] for line in found] == [level]


def test_settings_that_are_not_understood_stop_the_look_at_files(
    examine: Any, tmp_path: Path
) -> None:
    (tmp_path / "statestore.toml").write_text("stat = 'x'")
    ran = examine("--offline")

    assert ran.code == 2
    assert "stat = 'x' is not understood" in about(ran, "settings", "failure")["message"]
    assert {line["check"] for line in ran.json["checks"]} == {"versions", "settings"}


def test_where_a_setting_comes_from_is_told(
    examine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "statestore.toml").write_text("audit_file = 'a.jsonl'\n[reserve]\nBTC = '0.5'")
    monkeypatch.setenv("STATESTORE_BACKUP_DIR", str(tmp_path))
    said = [
        line["message"]
        for line in examine("--offline").json["checks"]
        if line["check"] == "settings"
    ]

    assert said[0] == "file: statestore.toml"
    assert said[1].endswith("(--state)")
    assert said[2].endswith("(beside the state)")
    assert said[3].endswith("($STATESTORE_BACKUP_DIR)")
    assert said[4] == "audit_file: a.jsonl (statestore.toml)"
    assert said[5] == "reserve: BTC 0.5"


def test_a_bug_in_one_check_does_not_hide_the_others(
    examine: Any, state_store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_store.path.write_bytes(b"{")
    broken = [
        (name, (lambda _: 1 / 0) if name == "audit" else check) for name, check in doctor.CHECKS
    ]
    monkeypatch.setattr(doctor, "CHECKS", broken)
    ran = examine("--offline")

    assert ran.code == 1
    assert "bug: ZeroDivisionError" in about(ran, "audit", "failure")["message"]
    assert "Traceback" in ran.err
    assert about(ran, "state", "failure")
    assert about(ran, "key", "warning")


def test_text_fits_80_columns_but_for_what_is_typed(
    statestore: Run, state_store: StateStore, kill_switch: KillSwitch
) -> None:
    state_store.save({"positions": {}})
    kill_switch.engage()
    ran = statestore("doctor", "--state", state_store.path, "--offline")
    lines = [line for line in ran.out.splitlines() if "->" not in line and "/" not in line]

    assert max(map(len, lines)) <= 80
    assert "\x1b" not in ran.out
    assert "         -> when that is over: statestore kill-switch release" in ran.out


def test_a_recorded_file_is_looked_at(examine: Any, tmp_path: Path) -> None:
    fills = tmp_path / "fills.json"
    fills.write_text("{")
    ran = examine("--offline", "--fills", fills)

    assert ran.code == 5
    assert str(fills) in next(
        line["message"] for line in ran.json["checks"] if line["check"] == "recorded"
    )


MOUNTS = r"""
22 1 0:39 / / rw - ext4 /dev/root rw
30 22 0:40 / /data rw shared:1 - nfs4 host:/x rw
31 30 0:41 / /data/with\040space rw - xfs /dev/sdb rw
32 22 0:42 / /run rw - tmpfs tmpfs rw
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/home/x", "ext4"),
        ("/data/.state.json", "nfs4"),
        ("/database", "ext4"),
        ("/data/with space/x", "xfs"),
        ("/run/x", "tmpfs"),
    ],
)
def test_the_nearest_mount_point_counts(path: str, kind: str) -> None:
    assert surroundings.file_system_of(Path(path), MOUNTS).split()[0] == kind


def test_this_disk_has_room(tmp_path: Path) -> None:
    room = surroundings.room_at(tmp_path)

    assert 0 < room.bytes <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
