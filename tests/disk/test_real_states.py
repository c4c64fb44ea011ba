"""State files of real bots, as they lay on real disks."""

import json
import tarfile

import pytest

from statestore.disk import codec
from statestore.disk.store import StateStore
from statestore.errors import StateCorrupt

from .. import real

pytestmark = real.needed

STATES = real.FOLDER / "state"


def members(archive):
    if not archive.exists():
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield member.name, stream.read()


def is_object(data):
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


def raw_sections(data):
    return codec.parse(data).sections


def check_round_trip(path, data, numbers):
    """Load, change one thing, save: everything else keeps its bytes, and .bak is the original."""
    path.write_bytes(data)
    bot = StateStore(path)
    state = bot.load(numbers=numbers)
    before = raw_sections(data)
    assert list(state) == list(before)
    assert (state.meta.revision, state.meta.recovered_from) == (0, None)

    state["added by the test"] = True
    assert bot.save(state).revision == 1

    after = raw_sections(path.read_bytes())
    assert after.pop("added by the test") == b"true"
    assert after == before
    assert list(after) == list(before)
    assert bot.backup_path.read_bytes() == data
    assert StateStore(path).load(numbers=numbers) == state
    for leftover in (path, bot.backup_path):
        leftover.unlink()


LOOSE = [found for found in sorted(STATES.rglob("*")) if found.suffix in {".json", ".bak"}]
GOOD = [found for found in LOOSE if is_object(found.read_bytes())]
REFUSED = [found for found in LOOSE if found not in GOOD] + sorted(
    STATES.glob("247trader/orphans/.state*")
)


@pytest.mark.parametrize("numbers", ["float", "decimal"])
@pytest.mark.parametrize("found", GOOD, ids=lambda found: str(found.relative_to(STATES)))
def test_a_real_state_comes_through_byte_for_byte(tmp_path, found, numbers):
    check_round_trip(tmp_path / "state.json", found.read_bytes(), numbers)


def test_every_version_of_a_real_history_comes_through(tmp_path):
    count = 0
    for _, data in members(STATES / "247trader" / "history.tar.xz"):
        if is_object(data):
            check_round_trip(tmp_path / "state.json", data, "float")
            count += 1

    assert count > 250


def test_a_real_history_replayed_as_saves_ends_where_it_ended(tmp_path):
    versions = [
        json.loads(data)
        for name, data in members(STATES / "247trader" / "history.tar.xz")
        if is_object(data) and "backup" not in name
    ]
    bot = StateStore(tmp_path / "state.json")

    for version in versions:
        bot.save(version)

    assert StateStore(bot.path).load() == versions[-1]
    changes = sum(a != b for a, b in zip([None, *versions], versions, strict=False))
    assert bot.revision <= len(versions)
    assert bot.revision >= changes


@pytest.mark.parametrize("found", REFUSED, ids=lambda found: str(found.relative_to(STATES)))
def test_a_torn_file_or_a_list_is_refused_and_never_empty(tmp_path, found):
    path = tmp_path / "state.json"
    path.write_bytes(found.read_bytes())

    with pytest.raises(StateCorrupt, match="is not a JSON object"):
        StateStore(path).load()
    with pytest.raises(StateCorrupt):
        StateStore(path).save({})
    assert path.read_bytes() == found.read_bytes()


def test_every_orphan_is_damaged():
    orphans = [data for _, data in members(STATES / "247trader" / "orphans_all.tar.xz")]

    assert len(orphans) == 94
    for data in orphans:
        with pytest.raises(codec.Damaged):
            codec.parse(data)
