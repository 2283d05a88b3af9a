"""A store on a disk that is full, fills in the middle, or cannot be written."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from torturing.attempts import Ended, Work
from torturing.watch import Watch
from torturing.world import STUDENT, TEACHER, Arena, Outcome, asking, last_words

NEW_MOUNTS = 0x00020000  # CLONE_NEWNS, see unshare(2)
SIZE = 8 * 2**20


def own_disk(folder: Path) -> bool:
    """Put a small disk of this process's own at a folder; return whether that is permitted here."""
    folder.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "unshare") or libc.unshare(NEW_MOUNTS):
        return False
    commands = (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)])
    return all(_mount(*words) for words in commands)


def _mount(*words: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(["mount", *words], capture_output=True).returncode == 0
    return False


@contextlib.contextmanager
def filled(folder: Path, room: int = 0) -> Iterator[None]:
    """Fill a disk but for so many bytes, and empty it again."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        while True:
            opened.write(bytes(4096))
    os.truncate(filler, max(0, filler.stat().st_size - room))
    yield
    filler.unlink()


def full(arena: Arena) -> Outcome:
    """Ask for a run that is not there on a disk that is full."""
    return _short_of(arena, 0)


def fills(arena: Arena) -> Outcome:
    """Ask for a run that is not there on a disk with less room than it takes."""
    return _short_of(arena, arena.rng.randrange(1, _size(arena.world.finished / STUDENT.key)))


def _short_of(arena: Arena, room: int) -> Outcome:
    mounted = own_disk(arena.root)
    _with_teacher(arena)
    before = arena.results()
    work = asking([STUDENT], arena.root, by=arena.rng.choice(("study", "train")), interval=0.0)
    if mounted:
        with filled(arena.root, room):
            refused, usable = arena.attempt(work), arena.attempt(asking([TEACHER], arena.root))
    else:
        most = max(room, 4096)  # what is said goes to a file, too
        refused, usable = (arena.attempt(_limited(w, most)) for w in (work, asking([TEACHER], arena.root)))
    return _judged(
        arena, refused, usable, work, before, "tmpfs" if mounted else "file size limit", may_suffice=room > 0
    )


def read_only(arena: Arena) -> Outcome:
    """Ask for a run that is not there, and for one that is, of a store that cannot be written."""
    mounted = own_disk(arena.root)
    _with_teacher(arena)
    if not mounted and os.geteuid() == 0:
        return Outcome(note="not tried: no mounts here, and root may write everywhere")
    before = arena.results()
    work = asking([STUDENT], arena.root, by=arena.rng.choice(("study", "train")), interval=0.0)
    _writable(arena.root, mounted, False)
    refused, usable = arena.attempt(work), arena.attempt(asking([TEACHER], arena.root))
    _writable(arena.root, mounted, True)
    return _judged(arena, refused, usable, work, before, "tmpfs" if mounted else "modes")


def _writable(root: Path, mounted: bool, yes: bool) -> None:
    if mounted:
        assert _mount("-o", f"remount,{'rw' if yes else 'ro'}", str(root))
        return
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o755 if yes else 0o555)


def _with_teacher(arena: Arena) -> None:
    """Fill the store with all but the student."""
    arena.fill(arena.world.finished)
    shutil.rmtree(arena.root / STUDENT.key)


def _limited(work: Work, most: int) -> Work:
    def limited(watch: Watch) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        watch.tell = lambda *words: None  # type: ignore[method-assign]
        work(watch)

    return limited


def _judged(
    arena: Arena,
    refused: Ended,
    usable: Ended,
    work: Work,
    before: dict[str, bytes],
    how: str,
    may_suffice: bool = False,
) -> Outcome:
    """Say what became of a store whose disk can be written again."""
    lost = ""
    if refused.code != 0 or not may_suffice:
        named = str(arena.root) in refused.refusal
        lost = "" if named else f"no clear line that names the store, but {last_words(refused) or 'success'}"
    lost = lost or (usable.code != 0 and f"what is finished cannot be used: {last_words(usable)}") or ""
    last = arena.attempt(work)
    lost = lost or last_words(last) or arena.gone(before)
    return Outcome(lost=lost, believed=arena.wrong(refused, usable, last) or arena.unsound(), note=how)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
