"""Files of finished runs that are not any more what was written."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from kdstudy.upkeep import verify
from torturing.world import PLAIN, SIBLING, STUDENT, TEACHER, Arena, Outcome, Round, asking, last_words

FILES = ("spec.json", "history.jsonl", "predictions.safetensors", "weights.safetensors", "result.json")
TRIES = 3  # the same command, where a file is looked into only after others were believed


def truncated(file: Path, rng: random.Random) -> None:
    """Cut off a file's end."""
    held = file.read_bytes()
    file.write_bytes(held[: rng.randrange(1, len(held))])


def flipped(file: Path, rng: random.Random) -> None:
    """Flip one bit."""
    held = bytearray(file.read_bytes())
    held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
    file.write_bytes(held)


def emptied(file: Path, rng: random.Random) -> None:
    """Leave nothing of a file but its name."""
    file.write_bytes(b"")


def appended(file: Path, rng: random.Random) -> None:
    """Write more to a file's end."""
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.randint(1, 64)) + b"x")


def deleted(file: Path, rng: random.Random) -> None:
    """Remove a file."""
    file.unlink()


def edited(file: Path, rng: random.Random) -> None:
    """Change one digit of a number by hand, in what stays JSON."""
    text = file.read_text()
    places = [match.start() for match in re.finditer(r"(?<=[1-9.])\d(?=[\d,.}\]\n]|$)|(?<=[ :])[1-9](?=[,}\n.])", text)]
    place = rng.choice(places)
    digit = rng.choice([other for other in "123456789" if other != text[place]])
    file.write_text(text[:place] + digit + text[place + 1 :])
    for line in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
        json.loads(line)


def swapped(file: Path, other: Path) -> None:
    """Give each of two files the other's name."""
    held = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(held)


HARMS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": truncated,
    "flipped bit": flipped,
    "emptied": emptied,
    "appended to": appended,
    "deleted": deleted,
    "edited by hand": edited,
}


def harm(name: str) -> Round:
    """Return a round that harms a file of a finished run in one way, or in some a file of another kind."""

    def round_(arena: Arena) -> Outcome:
        arena.fill(arena.world.finished)
        run = arena.rng.choice((TEACHER, STUDENT, PLAIN))
        texts = [file for file in FILES if "json" in file]
        file = arena.root / run.key / arena.rng.choice(texts if name == "edited by hand" else FILES)
        HARMS[name](file, arena.rng)
        if run is TEACHER and arena.rng.random() < 0.5:  # so that it has to teach once more
            shutil.rmtree(arena.root / STUDENT.key)
        return _judged(arena, [file])

    return round_


def swap(arena: Arena) -> Outcome:
    """Swap a file of two finished runs."""
    arena.fill(arena.world.finished)
    one, other = arena.rng.sample((TEACHER, STUDENT, PLAIN), 2)
    name = arena.rng.choice(FILES)
    files = [arena.root / run.key / name for run in (one, other)]
    swapped(*files)
    return _judged(arena, files)


def checkpoint(arena: Arena) -> Outcome:
    """Harm the checkpoint of an unfinished run, or give it that of another run of the same shapes."""
    arena.fill(arena.world.begun)
    file = arena.root / STUDENT.key / "checkpoint.safetensors"
    name = arena.rng.choice((*HARMS, "swapped"))
    if name == "swapped":
        swapped(file, arena.root / SIBLING.key / "checkpoint.safetensors")
    else:
        (flipped if name == "edited by hand" else HARMS[name])(file, arena.rng)
    return _ended(arena, [STUDENT, SIBLING], name)


def recording(arena: Arena) -> Outcome:
    """Harm what was recorded of a teacher, which its student then needs once more."""
    arena.fill(arena.world.finished)
    shutil.rmtree(arena.root / STUDENT.key)
    files = sorted(arena.root.glob("recordings/*/*/*.safetensors"))
    name = arena.rng.choice(sorted(set(HARMS) - {"edited by hand"}))
    HARMS[name](arena.rng.choice(files), arena.rng)
    return _ended(arena, [STUDENT], name)


def _ended(arena: Arena, runs: list, note: str) -> Outcome:
    before = arena.results()
    last = arena.attempt(asking(runs, arena.root))
    lost = last_words(last) or arena.gone(before)
    return Outcome(lost=lost, believed=arena.wrong(last) or arena.unsound(), note=note)


def _judged(arena: Arena, files: list[Path]) -> Outcome:
    """Say whether harmed files of finished runs were found, named, set aside and made anew."""
    keys = {file.parent.name for file in files}
    marked = not any(file.name == "result.json" and not file.exists() for file in files)  # else it is not finished
    found = "\n".join(verify(root=arena.root).problems)
    unseen = [file for file in files if marked and not _named(file, found)]
    folders = {file.parent: {each.name: each.read_bytes() for each in file.parent.iterdir()} for file in files}
    before = {key: held for key, held in arena.results().items() if key not in keys}
    tries = []
    for _ in range(TRIES):
        tries.append(arena.attempt(asking([STUDENT, PLAIN], arena.root)))
        if tries[-1].code == 0:
            break
    said = "\n".join(ended.output for ended in tries)
    believed = f"verify did not name {_names(unseen)}" if unseen else ""
    believed = believed or arena.wrong(*tries) or arena.unsound()
    silent = [file for file in files if marked and not _named(file, said)]
    lost = last_words(tries[-1]) or arena.gone(before)
    lost = lost or (f"nothing said of {_names(silent)}" if silent else "")
    aside = [folder for folder, held in folders.items() if marked and not _aside(arena.root, folder.name, held)]
    lost = lost or (f"not set aside as it was: {_names(aside)}" if aside else "")
    return Outcome(lost=lost, believed=believed, note=files[0].name)


def _named(file: Path, text: str) -> bool:
    """Return whether a text names a file with its run; of a result, which all others are held against, any of them."""
    words = (file.parent.name, "" if file.name == "result.json" else file.name)
    return any(all(word in line for word in words) for line in text.splitlines())


def _names(files: list[Path]) -> str:
    return ", ".join(f"{file.parent.name}/{file.name}" for file in files)


def _aside(root: Path, key: str, held: dict[str, bytes]) -> bool:
    """Return whether a run's files lie aside, every byte of them as it was found."""
    there = (
        {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        for folder in root.glob(f"aside/{key}*")
    )
    return any(held.items() <= files.items() for files in there)
