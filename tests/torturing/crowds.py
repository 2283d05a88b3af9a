"""Ten processes that ask for the same twenty runs at once."""

from __future__ import annotations

import signal
from collections import Counter

from torturing.attempts import Ended
from torturing.watch import Strike
from torturing.world import CROWD, SHORT, SMALL, Arena, Outcome, asking, last_words

PROCESSES = 10
EACH = SMALL.subset // SHORT.batch  # steps of a run


def at_once(arena: Arena, killed: int = 0) -> Outcome:
    """Ask for the same runs in ten processes, of which some are killed; count how often each run was trained."""
    work = asking(CROWD, arena.root, interval=0.0, wholly=False)
    strikes = [Strike(signal.SIGKILL, "training", arena.rng.randint(1, 2 * EACH * 6)) for _ in range(killed)]
    children = [arena.start(work, strike) for strike in [*strikes, *[None] * (PROCESSES - killed)]]
    ended = [child.wait() for child in children]
    dead = [one for one in ended[:killed] if one.code == -signal.SIGKILL]
    lost = next(filter(None, (last_words(one) for one in ended if one not in dead)), "")
    lost = lost or _counted(ended, len(dead))
    last = arena.attempt(asking(CROWD, arena.root))
    lost = lost or last_words(last) or ("they left runs untrained" if last.steps else "")
    return Outcome(lost=lost, believed=arena.wrong(*ended, last) or arena.unsound())


def at_once_some_killed(arena: Arena) -> Outcome:
    """Ask in ten processes, and kill three of them in training."""
    return at_once(arena, killed=3)


def _counted(ended: list[Ended], dead: int) -> str:
    """Say which runs were not trained exactly once."""
    renamed = [line[2] for one in ended for line in one.lines if line[1:2] == ("renamed",)]
    made = Counter(file.split("/")[0] for file in renamed if file.endswith("/result.json"))
    wrong = [f"{run.key} {made[run.key]} times" for run in CROWD if made[run.key] != 1]
    if wrong:
        return f"trained {', '.join(wrong)}"
    steps, most = sum(one.steps for one in ended), EACH * (len(CROWD) + dead)
    return "" if EACH * len(CROWD) <= steps <= most else f"{steps} steps, {EACH * len(CROWD)} to {most} are right"
