"""A disk as it may be found after a power cut: replay system calls, then lose what may be lost.

Two models of what a file system may do until it is told to flush:

``strict``   what POSIX leaves open. Each name of a folder is on disk as it was after any of its
             unflushed changes, whatever became of other names; a rename is a new name and a gone
             one. Unflushed data is there, missing, torn at a sector, only its end there, or zeros.
``journal``  a journal with ordered data (ext4 as it is mounted by default, without its heuristic
             for renames). Changes of names reach the disk in the order they were made and a rename
             is one change; any flush that has something to flush takes all earlier ones along.
             Unflushed data is there or missing, page by page, but never garbage.

In both a flush that failed has dropped the data: a later flush of the same file proves nothing
about it ("Can applications recover from fsync failures?", ATC 20).
"""

from __future__ import annotations

import itertools
import math
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.crash.tracing import Call

Model = Literal["strict", "journal"]
MODELS: tuple[Model, ...] = ("strict", "journal")

# Relative path to content; None is a folder.
Image = dict[str, bytes | None]

SECTOR, PAGE = 512, 4096

# A write at an offset, or (None) a new size.
_Change = tuple[int, bytes | None]

_HARMLESS = re.compile(
    "p?read|readv|readlink|lseek|close|f?lock|fcntl|.*stat|statx|f?access|getdents|getcwd|chdir|"
    "l?f?ch(mod|own)|utimensat|mmap|ioctl|p?poll|p?select|epoll|eventfd|pipe|fadvise|f?l?(get|list)"
    "xattr|execve"
)


@dataclass(eq=False, slots=True)
class File:
    """Content as processes see it, as it is surely on disk, and what lies between."""

    live: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[_Change] = field(default_factory=list)
    doubtful: list[_Change] = field(default_factory=list)  # their flush failed

    def change(self, change: _Change, *, at_once: bool = False) -> None:
        _apply(self.live, change)
        if at_once:  # the file was opened with O_SYNC or O_DSYNC
            self.durable = _applied(self.durable, [change])
        else:
            self.pending.append(change)

    def flushed(self) -> None:
        self.durable = _applied(self.durable, self.pending)
        self.pending.clear()

    def flush_failed(self) -> None:
        self.doubtful += self.pending
        self.pending.clear()

    def variants(self, model: Model) -> list[bytes]:
        """Return every content that may be found; at least the one surely there."""
        changes = self.doubtful + self.pending
        found = {self.durable: None}
        for count, change in enumerate(changes):
            before = _applied(self.durable, changes[:count])
            for part in _parts(change, len(before), model):
                found[_applied(before, [part])] = None
            if model == "strict" or _ends_at(change) <= len(before):
                found[_applied(before, changes[count + 1 :])] = None  # this one alone is lost
        found[_applied(self.durable, changes)] = None
        return list(found)


@dataclass(eq=False, slots=True)
class Folder:
    """Names as processes see them, as they are surely on disk, and the changes in between."""

    live: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[str, Node | None]] = field(default_factory=list)
    committed: dict[str, Node] = field(default_factory=dict)  # by the journal

    def flushed(self) -> None:
        self.durable = dict(self.live)
        self.pending.clear()


Node = File | Folder
_Renaming = list[tuple[Folder, str, Node | None]]


@dataclass(slots=True)
class _Open:
    node: Node
    path: str
    offset: int = 0
    append: bool = False
    synchronous: bool = False


class Disk:
    """The files below one folder, which stands for the root of the disk and is always there."""

    def __init__(self, root: Path, model: Model) -> None:
        """Take what is below `root` now; all of it is taken to be on disk."""
        self.model = model
        self.root = os.path.realpath(root)
        self.top = _snapshot(root)
        self._journal: list[_Renaming] = []
        self._open: dict[int, _Open] = {}
        self.flushes = 0

    def begin(self) -> None:
        """Another process begins; it has no file open."""
        self._open.clear()

    def apply(self, call: Call) -> bool:
        """Carry out one call; return whether the disk may be another one for it."""
        if call.report is not None:
            return False
        action: Callable[[Call], bool] | None = getattr(self, f"_do_{call.name}", None)
        if call.error is not None:
            return self._flush_failed(call)
        if action is not None:
            return action(call)
        if not _HARMLESS.match(call.name) and self._concerns(call):
            raise NotImplementedError(f"the laboratory does not know the call {call}")
        return False

    # What may be found

    def count(self) -> int:
        """Return how many combinations of losses are legal now."""
        return math.prod(len(options) for options in self._choices())

    def images(self, limit: int, rng: random.Random) -> Iterator[Image]:
        """Yield the disks that may be found now; a sample of them where they exceed `limit`."""
        choices = self._choices()
        if math.prod(map(len, choices)) <= limit:
            picks: Iterator[tuple[int, ...]] = itertools.product(*(range(len(c)) for c in choices))
        else:
            picks = _sample([len(options) for options in choices], limit, rng)
        for pick in picks:
            chosen: dict[object, object] = {}
            for options, index in zip(choices, pick, strict=True):
                chosen.update(options[index])
            image: Image = {}
            self._lay_out(self.top, "", chosen, image)
            yield image

    def _choices(self) -> list[list[Mapping[object, object]]]:
        """Return, for each thing that is open, its possible outcomes."""
        choices: list[list[Mapping[object, object]]] = []
        files: dict[File, None] = {}
        for folder in self._folders():
            known = [*folder.durable.values(), *folder.live.values()]
            known += [node for _, node in folder.pending if node is not None]
            files.update((node, None) for node in known if isinstance(node, File))
            if self.model == "strict":
                for name in dict.fromkeys(name for name, _ in folder.pending):
                    values = [folder.durable.get(name)]
                    values += [node for changed, node in folder.pending if changed == name]
                    unique = list({id(node): node for node in values}.values())
                    choices.append([{(folder, name): node} for node in unique])
        if self.model == "journal":
            reached: dict[object, object] = {}
            steps: list[Mapping[object, object]] = [{}]
            for renaming in self._journal:
                reached = reached | {(folder, name): node for folder, name, node in renaming}
                steps.append(reached)
            choices.append(steps)
            choices.append([{"journal": True}])
        for file in files:
            variants = file.variants(self.model)
            if len(variants) > 1:
                choices.append([{file: content} for content in variants])
        return choices

    def _lay_out(
        self, folder: Folder, prefix: str, chosen: Mapping[object, object], image: Image
    ) -> None:
        base = folder.committed if "journal" in chosen else folder.durable
        changed = {key[1] for key in chosen if isinstance(key, tuple) and key[0] is folder}
        for name in dict.fromkeys([*base, *sorted(changed)]):
            node = chosen.get((folder, name), base.get(name))
            if isinstance(node, Folder):
                image[prefix + name] = None
                self._lay_out(node, f"{prefix}{name}/", chosen, image)
            elif isinstance(node, File):
                content = chosen.get(node, node.durable)
                assert isinstance(content, bytes)
                image[prefix + name] = content

    def _folders(self) -> list[Folder]:
        found: dict[Folder, None] = {self.top: None}
        waiting = [self.top]
        while waiting:
            folder = waiting.pop()
            nodes = [*folder.durable.values(), *folder.live.values(), *folder.committed.values()]
            nodes += [node for _, node in folder.pending if node is not None]
            for node in nodes:
                if isinstance(node, Folder) and node not in found:
                    found[node] = None
                    waiting.append(node)
        return list(found)

    # Where a path leads

    def _path(self, call: Call, folder: int | None, position: int) -> str | None:
        """Return a path argument relative to the root; None if it leads elsewhere."""
        path = os.fsdecode(call.text(position))
        if not path.startswith("/"):
            at = "AT_FDCWD" if folder is None else call.arguments[folder]
            opened = None if at == "AT_FDCWD" else self._open.get(int(at))
            if opened is None:
                return None
            path = f"{self.root}/{opened.path}/{path}"
        path = os.path.normpath(path)
        if path == self.root:
            return ""
        return path[len(self.root) + 1 :] if path.startswith(f"{self.root}/") else None

    def _node(self, path: str) -> Node | None:
        node: Node | None = self.top
        for part in filter(None, path.split("/")):
            if not isinstance(node, Folder):
                return None
            node = node.live.get(part)
        return node

    def _place(self, path: str) -> tuple[Folder, str]:
        parent, _, name = path.rpartition("/")
        folder = self._node(parent)
        assert isinstance(folder, Folder), path
        return folder, name

    def _opened(self, call: Call) -> _Open | None:
        return self._open.get(call.number(0)) if call.arguments[0].isdigit() else None

    def _concerns(self, call: Call) -> bool:
        return self._opened(call) is not None or any(
            os.fsencode(self.root) in call.text(position) for position in range(len(call.arguments))
        )

    def _rename(self, *changes: tuple[Folder, str, Node | None]) -> bool:
        for folder, name, node in changes:
            if node is None:
                folder.live.pop(name, None)
            else:
                folder.live[name] = node
            folder.pending.append((name, node))
        self._journal.append(list(changes))
        return True

    def _commit(self, node: Node) -> None:
        """Let the journal reach the disk if `node` has a part in what waits there."""
        waits = isinstance(node, File) and bool(node.pending)
        waits |= any(node in (folder, named) for step in self._journal for folder, _, named in step)
        if waits:
            for folder, name, named in itertools.chain.from_iterable(self._journal):
                if named is None:
                    folder.committed.pop(name, None)
                else:
                    folder.committed[name] = named
            self._journal.clear()

    def _flush_failed(self, call: Call) -> bool:
        if call.name in ("fsync", "fdatasync") and (opened := self._opened(call)):
            if isinstance(opened.node, File):
                opened.node.flush_failed()
            return True
        return False

    # The calls

    def _do_openat(self, call: Call, first: int = 1) -> bool:
        path = self._path(call, 0 if first else None, first)
        if path is None:
            self._open.pop(call.result, None)
            return False
        flags = call.arguments[first + 1]
        node, changed = self._node(path), False
        if node is None:
            node, changed = File(), True
            self._rename((*self._place(path), node))
        elif "O_TRUNC" in flags and isinstance(node, File) and node.live:
            node.change((0, None))
            changed = True
        self._open[call.result] = _Open(
            node, path, append="O_APPEND" in flags, synchronous="SYNC" in flags
        )
        return changed

    def _do_open(self, call: Call) -> bool:
        return self._do_openat(call, first=0)

    def _do_close(self, call: Call) -> bool:
        self._open.pop(call.number(0), None)
        return False

    def _do_dup(self, call: Call) -> bool:
        if opened := self._opened(call):
            self._open[call.result] = opened
        return False

    _do_dup2 = _do_dup3 = _do_dup

    def _do_fcntl(self, call: Call) -> bool:
        return self._do_dup(call) if "F_DUPFD" in call.arguments[1] else False

    def _do_lseek(self, call: Call) -> bool:
        if opened := self._opened(call):
            opened.offset = call.result
        return False

    def _do_read(self, call: Call) -> bool:
        if opened := self._opened(call):
            opened.offset += call.result
        return False

    def _do_write(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened is None or not isinstance(opened.node, File):
            return False
        if opened.append:
            opened.offset = len(opened.node.live)
        data = b"".join(call.text(position) for position in range(1, len(call.arguments)))
        data = data[: call.result]
        opened.node.change((opened.offset, data), at_once=opened.synchronous)
        opened.offset += len(data)
        return True

    _do_writev = _do_write

    def _do_pwrite64(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened is None or not isinstance(opened.node, File):
            return False
        data = call.text(1)[: call.result]
        opened.node.change((call.number(3), data), at_once=opened.synchronous)
        return True

    def _do_ftruncate(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened is None or not isinstance(opened.node, File):
            return False
        opened.node.change((call.number(1), None))
        return True

    def _do_fsync(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened is None:
            return False
        self.flushes += 1
        self._commit(opened.node)
        opened.node.flushed()
        return True

    _do_fdatasync = _do_fsync

    def _do_syncfs(self, call: Call) -> bool:
        """Flush every file and every name there is."""
        if self._opened(call) is None:
            return False
        self.flushes += 1
        for folder, name, named in itertools.chain.from_iterable(self._journal):
            if named is None:
                folder.committed.pop(name, None)
            else:
                folder.committed[name] = named
        self._journal.clear()
        for folder in self._folders():
            folder.flushed()
            for node in folder.live.values():
                if isinstance(node, File):
                    node.flushed()
        return True

    def _do_sync_file_range(self, call: Call) -> bool:
        """Write data out without a flush of the disk's cache, which POSIX knows nothing of.

        A journal flushes the cache before it says that later changes of names happened, so a name
        that appears after this call appears with the data.
        """
        opened = self._opened(call)
        waits = "WAIT_AFTER" in call.arguments[3]  # else it is a hint and no more
        if self.model == "strict" or not waits:
            return False
        if opened is None or not isinstance(opened.node, File):
            return False
        opened.node.flushed()
        return True

    def _do_rename(self, call: Call, folders: tuple[int | None, ...] = (None, None)) -> bool:
        width = 0 if folders[0] is None else 1
        source = self._path(call, folders[0], width)
        target = self._path(call, folders[1], 1 + 2 * width)
        if source is None or target is None:
            return False
        node = self._node(source)
        assert node is not None, source
        if node is self._node(target):
            return False  # two names of one file: nothing is done
        return self._rename((*self._place(target), node), (*self._place(source), None))

    def _do_renameat(self, call: Call) -> bool:
        return self._do_rename(call, (0, 2))

    _do_renameat2 = _do_renameat

    def _do_linkat(self, call: Call) -> bool:
        source, target = self._path(call, 0, 1), self._path(call, 2, 3)
        if source is None or target is None:
            return False
        return self._rename((*self._place(target), self._node(source)))

    def _do_link(self, call: Call) -> bool:
        source, target = self._path(call, None, 0), self._path(call, None, 1)
        if source is None or target is None:
            return False
        return self._rename((*self._place(target), self._node(source)))

    def _do_unlink(self, call: Call) -> bool:
        path = self._path(call, None, 0)
        return path is not None and self._rename((*self._place(path), None))

    _do_rmdir = _do_unlink

    def _do_unlinkat(self, call: Call) -> bool:
        path = self._path(call, 0, 1)
        return path is not None and self._rename((*self._place(path), None))

    def _do_mkdir(self, call: Call) -> bool:
        path = self._path(call, None, 0)
        return path is not None and self._rename((*self._place(path), Folder()))


def lay_out(image: Image, folder: Path) -> None:
    """Make the files of an image below an empty folder."""
    for name, content in image.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def _snapshot(root: Path) -> Folder:
    """Return what is below a folder, all of it on disk; two names of one file stay one file."""
    inodes: dict[int, File] = {}

    def node(path: Path) -> Node:
        if path.is_dir():
            entries = {entry.name: node(entry) for entry in sorted(path.iterdir())}
            return Folder(dict(entries), dict(entries), [], dict(entries))
        content = path.read_bytes()
        return inodes.setdefault(path.stat().st_ino, File(bytearray(content), content))

    top = node(root)
    assert isinstance(top, Folder)
    return top


def _apply(content: bytearray, change: _Change) -> None:
    offset, data = change
    size = offset if data is None else offset + len(data)
    if len(content) < size:
        content.extend(bytes(size - len(content)))
    if data is None:
        del content[size:]
    else:
        content[offset:size] = data


def _applied(content: bytes, changes: list[_Change]) -> bytes:
    result = bytearray(content)
    for change in changes:
        _apply(result, change)
    return bytes(result)


def _ends_at(change: _Change) -> int:
    return change[0] + len(change[1] or b"")


def _parts(change: _Change, size: int, model: Model) -> Iterator[_Change]:
    """Yield what of one change may have reached a file of `size` bytes."""
    yield change
    offset, data = change
    if data is None:
        return
    step = SECTOR if model == "strict" else PAGE
    end = _ends_at(change)
    for cut in range((offset // step + 1) * step, end, step):
        yield offset, data[: cut - offset]
        if model == "strict" or end <= size:
            yield cut, data[cut - offset :]
    if model == "strict":
        yield end, None
        yield offset, bytes(len(data))


def _sample(sizes: list[int], limit: int, rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Yield all lost, all there, each single exception from either, and others at random."""
    nothing, everything = tuple(0 for _ in sizes), tuple(size - 1 for size in sizes)
    seen = {nothing, everything}
    for base in (nothing, everything):
        for position, size in enumerate(sizes):
            seen.update((*base[:position], index, *base[position + 1 :]) for index in range(size))
    for _ in range(2 * limit):
        if len(seen) >= limit:
            break
        seen.add(tuple(rng.randrange(size) for size in sizes))
    yield from sorted(seen)
