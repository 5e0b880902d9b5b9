"""What the tests of the loop share: comparing runs, and training that goes wrong."""
from dataclasses import asdict

import torch

from self_improve import ensemble


def weights(loop):
    """All weights of a loop's members."""
    return [p for m in loop.ensemble.members for p in m.model.state_dict().values()]


def same_weights(a, b):
    """Whether two loops' members are equal to the bit."""
    return all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))


def broken_training(monkeypatch):
    """A set of members' numbers whose steps lose their gradient to NaN; empty at first. For loops made afterwards."""
    broken, real = set(), ensemble.Trainer.step

    def step(trainer, rows, lr):
        loss = real(trainer, rows, lr)
        if not any(trainer is made[number] for number in broken if number in made): return loss
        with torch.no_grad():
            for p in trainer.model.parameters(): p.fill_(float("nan"))
        return loss * float("nan")

    made = {}
    init = ensemble.Member.__init__

    def member(m, config, number, *args, **more):
        init(m, config, number, *args, **more)
        made[number] = m.trainer

    monkeypatch.setattr(ensemble.Member, "__init__", member)
    monkeypatch.setattr(ensemble.Trainer, "step", step)
    return broken

def plain(rounds):
    """Rounds without what differs from one machine, or minute, to the next."""
    dropped = ("seconds", "peak_mb")
    return [{key: value for key, value in asdict(r).items() if key not in dropped} for r in rounds]


class Stop(Exception):
    """What a person's Ctrl-C would be, without stopping the tests."""


def stop_at(round, what):
    """A progress function that breaks off in a phase of a round."""
    def progress(r, now, done, of, loss):
        if r == round and now.startswith(what): raise Stop
    return progress
