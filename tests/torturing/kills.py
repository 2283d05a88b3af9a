"""Processes killed, interrupted and ended at any moment, with and without the machine's power."""

from __future__ import annotations

import shutil
import signal
from collections import Counter

from torturing.attempts import Ended
from torturing.watch import Strike
from torturing.world import EPOCH, INTERVALS, STUDENT, Arena, Outcome, Round, asking, last_words

CUSTOMARY = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {-signal.SIGTERM, 143},
    signal.SIGINT: {-signal.SIGINT, 130},
}


def kill(number: signal.Signals, *, power: bool = False, patient: bool = False) -> Round:
    """Return a round that strikes a training once or twice and then lets it end.

    Args:
        number: what it is struck with.
        power: whether what was not synced goes with it.
        patient: whether the process goes on after the interrupt, as a notebook does, instead of ending.
    """

    def round_(arena: Arena) -> Outcome:
        interval, by = arena.rng.choice(INTERVALS), arena.rng.choice(("study", "train"))
        work = asking([STUDENT], arena.root, by=by, interval=interval, patient=patient)
        struck: list[Ended] = []
        finished: dict[str, bytes] = {}
        lost = ""
        for _ in range(1 if patient else arena.rng.choice((1, 1, 2))):
            left = arena.world.events[interval] - Counter(line[0] for ended in struck for line in ended.lines)
            ended = arena.attempt(work, moment(arena, number, left, power))
            while not struck and not ended.struck:  # it was too quick: another from the beginning
                shutil.rmtree(arena.root)
                ended = arena.attempt(work, moment(arena, number, left, power))
            struck.append(ended)
            well = patient or not ended.struck or (ended.late and ended.code == 0)
            if ended.code not in ({0} if well else CUSTOMARY[number]):
                lost = lost or last_words(ended) or "it went on after the strike"
            lost = lost or arena.gone(finished)
            finished = arena.results()
        last = arena.attempt(work)
        lost = lost or last_words(last) or arena.gone(finished) or redone(arena, [*struck, last], number, interval)
        return Outcome(struck[0].struck, lost, arena.wrong(*struck, last) or arena.unsound())

    return round_


def moment(arena: Arena, number: signal.Signals, left: Counter[str], power: bool) -> Strike | None:
    """Draw when to strike: at any of the events that are left, each phase alike, or at any time."""
    if not left:
        return None
    if power or arena.rng.random() < 0.7:
        phase = arena.rng.choice(sorted(left))
        loss = arena.rng.randrange(2**31) if power else None
        return Strike(number, phase, arena.rng.randint(1, left[phase]), power=loss)
    return Strike(number, seconds=arena.rng.uniform(0, arena.world.seconds))


def redone(arena: Arena, attempts: list[Ended], number: signal.Signals, interval: float) -> str:
    """Say whether more steps were taken again than the strikes explain."""
    taken, strikes = sum(ended.steps for ended in attempts), len(attempts)
    most = taken if interval else 2 * EPOCH * strikes  # since the last checkpoint but one
    if number != signal.SIGKILL:
        most = strikes  # the steps that were under way
    excess = taken - arena.world.steps
    return f"{excess} of {arena.world.steps} steps were done again" if excess > most else ""
