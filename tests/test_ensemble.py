"""The members of a run: how they are trained and taken back, what is stored, and what is refused for want of memory."""
import math
from dataclasses import replace

import pytest
import torch
from loop_tools import broken_training, same_weights, weights

from self_improve import ensemble as ensemble_module
from self_improve.ensemble import (
    Clock,
    Ensemble,
    base_loss,
    check_overrides,
    levels_to_measure,
    measure_flops,
    optimizer_state,
    pays_to_measure,
    restore_snapshot,
    round_flops,
    round_to_bf16,
    snapshot,
    train_member,
)
from self_improve.filter import Filter, KeepAll, Verifier, Vote
from self_improve.loop import SelfImprovement
from self_improve.schedule import Pairs, Schedule, Steps
from self_improve.streams import Stream
from self_improve.tasks import draw_problems


def test_the_clock_books_every_phase_once():
    clock = Clock()
    for phase in ("label", "train"): clock.lap(phase)
    assert list(clock.seconds) == ["label", "train"] and all(0 <= s < 1 for s in clock.seconds.values())


def test_members_have_their_own_weights_and_problems(tiny, talkative):
    own, shared = [Ensemble(tiny(loop=dict(members=2, shared=shared))) for shared in (False, True)]
    assert not torch.equal(*[m.model.head.weight for m in own.members])
    assert own.members[0].stream(1) != own.members[1].stream(1)
    assert shared.members[0].stream(1) == shared.members[1].stream(1)


def test_the_released_cap_is_the_true_width(tiny):
    assert Ensemble(tiny(cap="released")).cap(7) == 8 and Ensemble(tiny()).cap(7) == 12


def test_which_levels_are_measured(tiny):
    e = Ensemble(tiny(high=8, loop=dict(ahead=2, stride=3, rounds=9)))
    assert levels_to_measure(e, 8, 1) == [2, 5, 6, 7, 8, 9, 10], "far behind the frontier every third"
    assert levels_to_measure(e, 8, 9) == list(range(1, 11)), "the last round measures all"


def test_a_round_takes_the_place_of_later_ones(tiny, talkative):
    """Of the mixture: what an interrupted round put there does not stay."""
    m = Ensemble(tiny()).members[0]
    for r in (1, 2, 3, 2): m.learn([], r)
    assert len(m.sets) == len(m.weights) == 2 and all(len(rows) == 0 for rows in m.sets)


# training, and taking back

def test_the_loss_on_the_labeled_problems(tiny):
    """Always the same rows, and a model that knows nothing is at the loss of a guess."""
    m = Ensemble(tiny()).members[0]
    assert base_loss(m) == base_loss(m) == pytest.approx(math.log(18), rel=0.05)


def test_the_recorded_loss_is_the_mean_of_the_last_tenth(tiny, talkative, monkeypatch):
    m, told = Ensemble(tiny(train=dict(steps=40))).members[0], []
    monkeypatch.setattr(m.trainer, "train_steps", lambda *_, taken: (torch.tensor(float(i)) for i in range(40)))
    assert train_member(m, 0, lambda *args: told.append(args)) == (37.5, [])
    assert [(what, done, of, float(loss)) for _, what, done, of, loss in told] == [
        ("train model 1 of 1", 0, 40, 0.0), ("train model 1 of 1", 20, 40, 20.0)]


def test_rounded_weights_are_what_bfloat16_holds(tiny):
    model = Ensemble(tiny()).models[0]
    before = [p.clone() for p in model.parameters()]
    round_to_bf16(model)
    assert all(torch.equal(p, p.bfloat16().float()) for p in model.parameters())
    assert all(torch.allclose(p, q, rtol=2**-8) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("train", [dict(), dict(optimiser="muon")])
def test_a_snapshot_brings_weights_and_moments_back(tiny, talkative, train):
    e = Ensemble(tiny(train=dict(fresh=False) | train))
    e.train(0)
    m = e.members[0]
    before, moments = snapshot(m), {k: v.clone() for k, v in optimizer_state(m.trainer).items()}
    assert moments and all(len(name.split(".")) == 3 for name in moments)
    e.train(1)
    assert not torch.equal(before[0]["head.weight"], m.model.head.weight)
    restore_snapshot(m, before)
    after = optimizer_state(m.trainer)
    assert all(torch.equal(before[0][k], v) for k, v in m.model.state_dict().items())
    assert after.keys() == moments.keys() and all(torch.equal(after[k], moments[k]) for k in moments)


def without_alarms(r):
    """Its events; models of a few steps change nearly all their answers in a round, which is what alarms are for."""
    return [event for event in r.events if not event.startswith("alarm: ")]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_loss_that_is_no_number_is_taken_back(tmp_path, tiny, talkative, monkeypatch, fresh):
    """Round 1 goes wrong; its weights are those of round 0, and round 2 is sound again, moments and all."""
    config, broken = tiny(train=dict(fresh=fresh)), broken_training(monkeypatch)
    loop = SelfImprovement(config, tmp_path / "run")
    it = iter(loop)
    next(it)
    before = [p.clone() for p in weights(loop)]
    broken.add(0)
    bad = next(it)
    assert all(torch.equal(p, q) for p, q in zip(before, weights(loop), strict=True))
    assert without_alarms(bad) == ["model 0: the loss is no number, back to the weights before round 1"]
    assert bad.loss == [None]
    broken.clear()
    good = next(it)
    assert without_alarms(good) == [] and math.isfinite(good.loss[0])
    changed = [not torch.equal(p, q) for p, q in zip(before, weights(loop), strict=True) if p.dim() > 1]
    assert all(changed)
    assert same_weights(loop, SelfImprovement(config, tmp_path / "run"))


def test_only_the_member_that_diverged_is_taken_back(tiny, talkative, monkeypatch):
    broken = broken_training(monkeypatch)
    loop = SelfImprovement(tiny(loop=dict(members=2, rounds=1)))
    it = iter(loop)
    next(it)
    before = [m.model.head.weight.clone() for m in loop.ensemble.members]
    broken.add(1)
    r = next(it)
    back = [torch.equal(m.model.head.weight, b) for m, b in zip(loop.ensemble.members, before, strict=True)]
    assert back == [False, True] and len(without_alarms(r)) == 1 and "model 1" in without_alarms(r)[0]


def test_a_member_that_forgets_what_it_was_given_is_taken_back(tiny, talkative, monkeypatch):
    """The loss is a number all along; only that on the labeled problems tells. Ten times what it was, and not tiny."""
    loop = SelfImprovement(tiny(loop=dict(members=2, rounds=2)))
    # base training is looked at afterwards only; a round before and after, a model at a time
    told = [0.02, 0.02]
    monkeypatch.setattr(ensemble_module, "run_parallel", lambda f, items, *_, **__: [f(x) for x in items])
    monkeypatch.setattr(ensemble_module, "base_loss", lambda m: told.pop(0))
    it = iter(loop)
    assert without_alarms(next(it)) == []
    before = [m.model.head.weight.clone() for m in loop.ensemble.members]
    told += [0.02, 0.3, 0.02, 0.19]
    bad = next(it)
    back = [torch.equal(m.model.head.weight, b) for m, b in zip(loop.ensemble.members, before, strict=True)]
    assert back == [True, False] and bad.loss[0] is None
    rose = "the loss on the labelled problems rose from 0.02 to 0.3"
    assert without_alarms(bad) == [f"model 0: {rose}, back to the weights before round 1"]
    told += [0.001, 0.09, 0.3, 2.9]
    assert without_alarms(next(it)) == []


def test_a_round_whose_loss_is_no_number_is_taken_back(tiny, talkative):
    loop = SelfImprovement(tiny())
    rounds = iter(loop)
    next(rounds)
    # finite weights whose products are not
    with torch.no_grad(): loop.ensemble.models[0].head.weight.mul_(1e38)
    start = [p.clone() for p in weights(loop)]
    first = next(rounds)
    assert any("no number" in e for e in first.events)
    assert all(torch.equal(p, q) for p, q in zip(start, weights(loop), strict=True))


def test_it_is_measured_how_the_cores_are_shared_where_that_pays(tiny, monkeypatch):
    long = Ensemble(tiny(train=dict(steps=400), loop=dict(rounds=2, steps=50)))
    assert not pays_to_measure(long), "one thread leaves no choice"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert pays_to_measure(long)
    assert not pays_to_measure(Ensemble(tiny(train=dict(steps=400), loop=dict(rounds=2, steps=49)))), "it is too short"


# memory and work

def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(tiny, monkeypatch):
    monkeypatch.setattr(ensemble_module, "free_bytes", lambda device: 2**20)
    sentence = (r"train.batch=4096 needs about .* GB for rows of \d+ tokens, "
                r"and 0.0 GB are free: at most train.batch=(\d+) fits")
    with pytest.raises(ValueError, match=sentence) as error: SelfImprovement(tiny(train=dict(batch=4096)))
    most = int(str(error.value).split("train.batch=")[-1].split()[0])
    SelfImprovement(tiny(train=dict(batch=most)))
    with pytest.raises(ValueError): SelfImprovement(tiny(train=dict(batch=most + 1)))


def test_the_work_of_a_round_grows_with_what_is_done(tiny):
    e = Ensemble(tiny(loop=dict(members=2)))
    _, block = draw_problems(e.task, 4, Stream(0, "self", level=4), 4)
    made = [([type("Set", (), dict(level=4))()], dict(made=10))] * 2
    accuracy = {"4": dict(n=10)}
    assert round_flops(e, []) == 0
    labeled, measured = round_flops(e, made), measure_flops(e, accuracy)
    assert labeled == measured > 0, "two members label ten problems each, and two are measured at ten"
    assert measure_flops(e, accuracy | {"2": {"n": 0}}) == measured
    voting = Ensemble(tiny(loop=dict(members=2, filter="vote")))
    assert round_flops(voting, made) == 2 * labeled
    e.members[0].trainer.tokens = 100
    assert round_flops(e, made) > labeled


# objects in place of settings

class Third(Schedule):
    def next(self, state): return [state.frontier + 1]


class OnlyMazes(Filter):
    def validate(self, task, level, members): raise ValueError("only for mazes")


@pytest.mark.parametrize("overrides, sentence", [
    (dict(filter=lambda candidates: None), "is no Filter"), (dict(filter="length"), "is no Filter"),
    (dict(filter=OnlyMazes()), "only for mazes"), (dict(filter=Vote()), "at least 2 models"),
    (dict(filter=Verifier()), "verif"), (dict(schedule="steps:2"), "is no Schedule"),
    (dict(schedule=Pairs()), "numbers"), (dict(model=7), "model=7 is no function"),
    (dict(relabel="nines"), "relabel='nines' is no function")])
def test_objects_that_cannot_stand_in_are_refused(tiny, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as error: check_overrides(tiny(), overrides)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=sentence): SelfImprovement(tiny(), **overrides)


def test_objects_that_can_are_not(tiny):
    check_overrides(tiny(), dict(filter=KeepAll(), schedule=Third(), model=print, relabel=print))
    check_overrides(tiny(loop=dict(members=2)), dict(filter=Vote(), schedule=Steps(2)))
    check_overrides(replace(tiny(), task="multiplication", high=1, loop=replace(tiny().loop, schedule="pairs")),
                    dict(schedule=Pairs()))
