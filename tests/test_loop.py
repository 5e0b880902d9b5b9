"""The round: what it records, that an interrupted run goes on as if nothing had happened, and what it does when things go wrong."""
import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from self_improve import loop as loop_module
from self_improve import train
from self_improve.experiments import experiment
from self_improve.loop import SelfImprovement, base_loss, candidates, label, schedule_of, unpack
from self_improve.model import Decoder
from self_improve.filter import Chain, Nothing, Oracle
from self_improve.records import State, Steps, parse_schedule, Run, load_tensors
from self_improve.tasks import EOS, PAD, Copy, Stream, same_rows


def plain(rounds): return [{k: v for k, v in asdict(r).items() if k not in ("seconds", "peak_mb")} for r in rounds]


def weights(loop): return [p for m in loop.ensemble.members for p in m.model.state_dict().values()]


def same_weights(a, b): return all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))


class Stop(Exception):
    """What a person's Ctrl-C would be, without stopping the tests."""


def stop_at(round, what):
    def progress(r, now, done, of, loss):
        if r == round and now.startswith(what): raise Stop
    return progress


# a whole run

def test_smoke_run_and_its_records(tmp_path):
    config = experiment("copy", "smoke")
    run = Run.create(tmp_path / "run", config, "copy", "smoke")
    rounds = list(SelfImprovement(config, run))
    assert [r.round for r in rounds] == list(range(config.loop.rounds + 1))
    assert rounds[0].levels == [config.low, config.high] and rounds[0].frontier == config.high and rounds[0].filter == []
    assert (rounds[0].steps, rounds[1].steps) == (config.train.steps, config.loop.steps)
    for r in rounds:
        assert len(r.loss) == config.loop.members and all(math.isfinite(x) and 0 < x < 4 for x in r.loss)
        assert list(r.accuracy) == [str(k) for k in range(config.low, r.frontier + config.loop.ahead + 1)]
        assert all(a["low"] <= a["accuracy"] <= a["high"] and a["n"] == config.loop.evaluate and len(a["members"]) == config.loop.members for a in r.accuracy.values())
        assert set(r.seconds) >= {"label", "train", "measure"} and r.peak_mb > 50 and r.flops > 0
    for before, r in zip(rounds, rounds[1:]):
        assert r.levels == [before.frontier + 1] and r.frontier == (max(r.levels) if r.kept else before.frontier)
        assert [f["made"] for f in r.filter] == [config.loop.problems] * config.loop.members
        assert all(0 <= f["right"] <= f["kept"] <= f["made"] for f in r.filter) and len(r.label_accuracy) == config.loop.members
    assert Run(run.folder).rounds == rounds and Run(run.folder).done
    files = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    tensors = {f"{kind}/{r:03}-{m}.safetensors" for kind, first in (("weights", 0), ("labels", 1)) for r in range(first, 3) for m in range(2)}
    assert files == {"config.json", "rounds.jsonl"} | tensors
    for line in (run.folder / "rounds.jsonl").read_text().splitlines(): json.loads(line, parse_constant=pytest.fail)


def test_a_run_without_a_folder_is_the_same_run(tmp_path, tiny, talkative):
    one, two = SelfImprovement(tiny()), SelfImprovement(tiny(), Run.create(tmp_path / "run", tiny()))
    assert plain(one) == plain(two) and same_weights(one, two)
    assert plain(SelfImprovement(tiny(data_seed=1))) != plain(one.rounds) != plain(SelfImprovement(tiny(model_seed=1)))


def test_a_finished_run_does_nothing(tmp_path, tiny, talkative):
    run = Run.create(tmp_path / "run", tiny())
    list(SelfImprovement(tiny(), run))
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    assert list(SelfImprovement(tiny(), Run(run.folder))) == []
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before


# interrupted and continued

ARMS = dict(fresh=dict(), moments=dict(train=dict(fresh=False)), rounded=dict(train=dict(rounded=True, fresh=False)), ensemble=dict(loop=dict(members=3, filter="confidence:0.5")),
            shared=dict(loop=dict(members=2, shared=True)), strides=dict(high=8, model_seed=1, loop=dict(schedule="steps:3", problems=60)))
ARMS["muon"] = dict(train=dict(fresh=False, optimiser="muon"))


@pytest.mark.parametrize("arm, where", [(arm, "between") for arm in ARMS] + [(arm, where) for arm in ("fresh", "moments") for where in ("label", "train", "measure")])
def test_continued_is_as_if_never_interrupted(tmp_path, tiny, talkative, arm, where):
    """After round 1, or anywhere within round 2: the same weights to the bit, the same lines, the same labels."""
    config = tiny(**ARMS[arm])
    straight, folder = SelfImprovement(config, Run.create(tmp_path / "one", config)), tmp_path / "two"
    list(straight)
    assert any(r.kept for r in straight.rounds), "no label was ever kept: this run would show nothing"
    first = SelfImprovement(config, Run.create(folder, config), progress=stop_at(2, where))
    if where == "between": next(it := iter(first)), next(it)
    else:
        with pytest.raises(Stop): list(first)
    assert len(Run(folder).rounds) == 2
    again = SelfImprovement(config, Run.create(folder, config))
    list(again)
    assert same_weights(straight, again) and plain(Run(folder).rounds) == plain(straight.rounds)
    assert all(torch.equal(a.tokens, b.tokens) for m, n in zip(straight.ensemble.members, again.ensemble.members) for a, b in zip(m.sets, n.sets) if a.tokens.shape == b.tokens.shape)
    for path in (tmp_path / "one").rglob("*.safetensors"): assert path.read_bytes() == (folder / path.relative_to(tmp_path / "one")).read_bytes(), path.name
    assert {p.name for p in folder.rglob("*")} == {p.name for p in (tmp_path / "one").rglob("*")}


def test_the_same_object_goes_on_after_an_interruption(tiny, talkative):
    """In a notebook one interrupts a cell and runs it again: the round begun must not count twice."""
    stopped, straight = SelfImprovement(tiny(), progress=stop_at(1, "train")), SelfImprovement(tiny())
    with pytest.raises(Stop): list(stopped)
    stopped.ensemble.progress = lambda *_: None
    list(stopped), list(straight)
    assert plain(stopped.rounds) == plain(straight.rounds) and same_weights(stopped, straight)


def test_more_rounds_continue_the_same_run(tmp_path, tiny, talkative):
    short, longer = tiny(loop=dict(rounds=1)), tiny(loop=dict(rounds=3))
    run = Run.create(tmp_path / "run", short)
    list(SelfImprovement(short, run))
    straight = SelfImprovement(longer)
    list(straight), list(again := SelfImprovement(longer, Run.create(run.folder, longer)))
    assert same_weights(straight, again) and plain(again.rounds) == plain(straight.rounds)


def test_moments_of_past_rounds_are_not_kept(tmp_path, tiny, talkative):
    config = tiny(train=dict(fresh=False))
    run = Run.create(tmp_path / "run", config)
    list(SelfImprovement(config, run))
    assert [p.name for p in (run.folder / "moments").iterdir()] == ["002-0.safetensors"]


# what can be changed

def test_relabel_hook_changes_what_is_learnt_and_stored(tmp_path, tiny, talkative):
    """It gets the kept labels, their truth and the stream; what the filter reports stays as it was."""
    seen = []

    def nines(labels, truth, stream):
        seen.append((labels.clone(), truth, stream))
        return torch.where((labels != EOS) & (labels != PAD), Copy.vocab.ids["9"], labels)
    run, usual = Run.create(tmp_path / "run", tiny(loop=dict(rounds=1))), SelfImprovement(tiny(loop=dict(rounds=1)))
    changed = SelfImprovement(run.config, run, relabel=nines)
    list(usual), list(changed)
    (labels, truth, stream), = seen
    assert len(labels) and stream.purpose == "self" and (stream.level, stream.round) == (4, 1)
    stored, = unpack(load_tensors(run.path("labels", 1, 0)), Copy(), stream)
    assert same_rows(stored.label, nines(labels, truth, stream)).all() and torch.equal(stored.block.answer, truth)
    assert changed.rounds[1].filter == usual.rounds[1].filter and not same_weights(usual, changed)


def test_the_steps_schedule():
    assert Steps().next(State(10, 1)) == [11] and parse_schedule("steps:3").next(State(10, 1)) == [11, 12, 13] and parse_schedule("steps") == Steps(1)
    for text in ("leaps", "steps:x", "steps:-1", "steps:0", "steps:1.5", ""):
        with pytest.raises(ValueError, match=text or "unknown"): parse_schedule(text)


def test_released_cap_and_released_schedule(tiny):
    assert SelfImprovement(tiny(cap="released")).ensemble.cap(7) == 8 and SelfImprovement(tiny()).ensemble.cap(7) == 12
    config = tiny(train=dict(tail=0.25), loop=dict(lr=0.5))
    assert (schedule_of(config, 0).tail, schedule_of(config, 1).lr, schedule_of(config, 5).steps) == (0.25, 0.5, 3)


def test_members_have_their_own_weights_and_problems(tiny, talkative):
    own, shared = (SelfImprovement(tiny(loop=dict(members=2, shared=shared))).ensemble for shared in (False, True))
    assert not torch.equal(*[m.model.head.weight for m in own.members])
    assert own.members[0].stream(1) != own.members[1].stream(1) and shared.members[0].stream(1) == shared.members[1].stream(1)


@pytest.mark.parametrize("needs, sheets, sure", [((), 1, False), (("votes",), 3, False), (("logprobs",), 1, True), (("votes", "logprobs"), 3, True)])
def test_models_are_asked_only_what_a_filter_needs(tiny, talkative, needs, sheets, sure):
    models = SelfImprovement(tiny(loop=dict(members=3))).ensemble.models
    c = candidates(models, 1, Copy(), Copy().draw(4, Stream(0, "self"), 6).prompt, 9, needs)
    assert len(c.outputs) == sheets and (c.logprobs is not None) == sure
    assert torch.equal(c.label, candidates(models, 1, Copy(), c.prompts, 9).label), "the labels are the labelling model's own"


@pytest.mark.parametrize("needs", [("votes",), ("votes", "logprobs")])
def test_a_vote_decodes_only_what_nobody_said_before(tiny, talkative, monkeypatch, needs):
    """Every sheet is what its model says when it is asked alone, and a row is decoded again only where its answer is a new one."""
    first, second, third = SelfImprovement(tiny(loop=dict(members=3))).ensemble.models
    with torch.no_grad():
        for m, noise in ((second, 0.03), (third, 0.05)):
            for p, q, k in zip(m.parameters(), first.parameters(), range(99)): p.copy_(q + noise * q.std() * torch.randn(q.shape, generator=torch.Generator().manual_seed(k)) if q.dim() > 1 else q)
    prompts, rows, decode = Copy().draw(4, Stream(0, "self"), 300).prompt, [], loop_module.decode
    alone = [decode(m, prompts, 9, logprobs=True) for m in (first, second, third)]
    monkeypatch.setattr(loop_module, "decode", lambda model, prompts, *args, **more: rows.append(len(prompts)) or decode(model, prompts, *args, **more))
    c = candidates([first, second, third], 0, Copy(), prompts, 9, needs)
    assert torch.equal(c.outputs, torch.stack([a.tokens for a in alone])) and torch.equal(c.label, alone[0].tokens)
    if "logprobs" in needs: torch.testing.assert_close(c.logprobs, torch.stack([a.logprob for a in alone]), atol=1e-4, rtol=0)
    a, b, d = ([tuple(r) for r in x.tokens.tolist()] for x in alone)
    new = [300, sum(y != x or EOS not in x for x, y in zip(a, b)), sum(z not in (x, y) or EOS not in z for x, y, z in zip(a, b, d))]   # what has no end is no answer to agree with
    assert rows == new and 0 < new[1] < 290 and 0 < new[2] < sum(z != x or EOS not in z for x, z in zip(a, d)) < 290


def test_labels_are_scored_against_the_truth(tiny):
    """A model that always says `1`: right about every problem of one digit that is a 1."""
    model = Decoder(tiny().model)
    model.forward = lambda read, cache, where: torch.nn.functional.one_hot(torch.full((len(read),), EOS if read.shape[1] == 1 else Copy.vocab.ids["1"]), 18).float()
    truth = Copy().draw(1, Stream(0, "self", level=1), 90).prompt[:, 0] == Copy.vocab.ids["1"]
    for filter, kept in ((Chain((Nothing(),)), 90), (Chain((Oracle(),)), int(truth.sum()))):
        made, report = label([model], 0, Copy(), filter, [1], 90, Stream(0, "self"))
        assert report == dict(made=90, kept=kept, right=int(truth.sum()), possible=int(truth.sum()), raw=int(truth.sum())) and 0 < truth.sum() < 90
        assert len(made[0].index) == kept and same_rows(made[0].block.answer, made[0].label).sum() == truth.sum()


# when things go wrong

def test_nothing_kept_is_told_and_the_frontier_waits(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(loop_module, "decode", lambda model, prompts, cap, **_: type("Out", (), dict(tokens=torch.full((len(prompts), cap), 5, dtype=torch.uint8)))())
    run = Run.create(tmp_path / "run", tiny(loop=dict(members=2)))
    rounds = list(SelfImprovement(run.config, run))
    assert [r.frontier for r in rounds] == [3, 3, 3] and [r.levels for r in rounds[1:]] == [[4], [4]]
    assert all(len(r.events) == 2 and all("nothing kept" in e for e in r.events) and r.kept == 0 and r.purity is None for r in rounds[1:])
    assert all(len(s) == 0 for m in SelfImprovement(run.config, Run(run.folder)).ensemble.members for s in m.sets)


@pytest.mark.parametrize("filter", ["length", "confidence", "oracle", "length+confidence:0.5"])
def test_every_filter_survives_a_run_in_which_nothing_ends(tiny, monkeypatch, filter):
    def endless(model, prompts, cap, logprobs=False):
        return type("Out", (), dict(tokens=torch.full((len(prompts), cap), 5, dtype=torch.uint8), logprob=torch.zeros(len(prompts), cap)))()
    monkeypatch.setattr(loop_module, "decode", endless)
    assert [r.frontier for r in SelfImprovement(tiny(loop=dict(filter=filter)))] == [3, 3, 3]


def test_fewer_problems_than_levels(tiny, talkative):
    list(SelfImprovement(tiny(loop=dict(problems=1, schedule="steps:2"))))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_loss_that_is_no_number_is_taken_back(tmp_path, tiny, talkative, monkeypatch, fresh):
    """Round 1 goes wrong; its weights are those of round 0, and round 2 is sound again, moments and all."""
    config, real, broken = tiny(train=dict(fresh=fresh)), train.packed_gradient, []
    monkeypatch.setattr(train, "packed_gradient", lambda *args: real(*args) * (math.nan if broken else 1.0))
    run = Run.create(tmp_path / "run", config)
    it = iter(loop := SelfImprovement(config, run))
    next(it)
    before = [p.clone() for p in weights(loop)]
    broken.append(1)
    bad = next(it)
    assert all(torch.equal(p, q) for p, q in zip(before, weights(loop), strict=True))
    assert any("model 0" in e and "no number" in e and "round 1" in e for e in bad.events)
    broken.clear()
    good = next(it)
    assert good.events == [] and math.isfinite(good.loss[0]) and not any(torch.equal(p, q) for p, q in zip(before, weights(loop)) if p.dim() > 1)
    for line in (run.folder / "rounds.jsonl").read_text().splitlines(): json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert same_weights(loop, SelfImprovement(config, Run(run.folder)))


def test_only_the_member_that_diverged_is_taken_back(tiny, talkative, monkeypatch):
    config, real = tiny(loop=dict(members=2, rounds=1)), train.packed_gradient
    loop = SelfImprovement(config)
    it = iter(loop)
    next(it)
    before = [m.model.head.weight.clone() for m in loop.ensemble.members]
    monkeypatch.setattr(train, "packed_gradient", lambda model, *args: real(model, *args) * (math.nan if model is loop.ensemble.models[1] else 1.0))
    r = next(it)
    assert [torch.equal(m.model.head.weight, b) for m, b in zip(loop.ensemble.members, before)] == [False, True]
    assert len(r.events) == 1 and "model 1" in r.events[0]


def test_a_member_that_forgets_what_it_was_given_is_taken_back(tiny, talkative, monkeypatch):
    """The loss is a number all along; only that on the labelled problems tells. Ten times what it was, and not tiny."""
    config = tiny(loop=dict(members=2, rounds=2))
    loop, told = SelfImprovement(config), iter([0.02, 0.02])   # base training is looked at afterwards only; a round before and after, a model at a time
    monkeypatch.setattr(loop_module, "side_by_side", lambda f, items, *_: [f(x) for x in items])
    monkeypatch.setattr(loop_module, "base_loss", lambda m: next(told))
    it = iter(loop)
    assert next(it).events == []
    before = [m.model.head.weight.clone() for m in loop.ensemble.members]
    told = iter([0.02, 0.3, 0.02, 0.19])
    bad = next(it)
    assert [torch.equal(m.model.head.weight, b) for m, b in zip(loop.ensemble.members, before)] == [True, False]
    assert bad.events == ["model 0: the loss on the labelled problems rose from 0.02 to 0.3, back to the weights before round 1"] and bad.loss[0] is None
    told = iter([0.001, 0.09, 0.3, 2.9])
    assert next(it).events == []


def test_the_loss_on_the_labelled_problems(tiny):
    """Always the same rows, and a model that knows nothing is at the loss of a guess."""
    m = SelfImprovement(tiny()).ensemble.members[0]
    assert base_loss(m) == base_loss(m) == pytest.approx(math.log(18), rel=0.05)


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(tiny, monkeypatch):
    monkeypatch.setattr(loop_module, "free_bytes", lambda device: 2**20)
    with pytest.raises(ValueError, match=r"train.batch=4096 needs about .* GB for rows of \d+ tokens, and 0.0 GB are free: at most train.batch=(\d+) fits") as e: SelfImprovement(tiny(train=dict(batch=4096)))
    most = int(str(e.value).split("train.batch=")[-1].split()[0])
    SelfImprovement(tiny(train=dict(batch=most)))
    with pytest.raises(ValueError): SelfImprovement(tiny(train=dict(batch=most + 1)))


def test_an_enormous_learning_rate_is_survived(tiny, talkative):
    config = tiny(train=dict(lr=1e38))
    loop = SelfImprovement(config)
    start = [p.clone() for p in weights(loop)]
    base = next(iter(loop))
    assert any("no number" in e for e in base.events) and all(torch.equal(p, q) for p, q in zip(start, weights(loop)))


def test_a_frontier_is_what_was_trained_on(tiny, talkative, monkeypatch):
    """A round that every member took back has trained on nothing."""
    loop = SelfImprovement(tiny())
    it = iter(loop)
    next(it)
    real = train.packed_gradient
    monkeypatch.setattr(train, "packed_gradient", lambda *args: real(*args) * math.nan)
    assert next(it).frontier == 3


# measuring

def test_measure_gives_members_their_mean_and_the_majority(monkeypatch):
    """Three scripted models on ten problems, right about 10, 5 and none: more than half of them are right about 5."""
    right = iter([torch.arange(10) < k for k in (10, 5, 0)])
    monkeypatch.setattr(loop_module, "says", lambda *_: next(right))
    model = type("M", (), dict(head=torch.nn.Linear(1, 1)))()
    measured = loop_module.measure([model] * 3, Copy(), [2], 0, 10)["2"]
    assert measured["accuracy"] == 0.5 and measured["members"] == [1.0, 0.5, 0.0] and measured["ensemble"] == 0.5 and measured["n"] == 10
    assert (measured["low"], measured["high"]) == pytest.approx((0.2366, 0.7634), abs=5e-5)


def test_last_round_is_measured_more_closely(tiny):
    assert [next(iter(r.accuracy.values()))["n"] for r in SelfImprovement(tiny(loop=dict(evaluate=4, final=9)))] == [4, 4, 9]


def test_truth_is_measured_and_never_used(tmp_path, tiny, talkative, monkeypatch):
    """With every reference answer falsified after the base data, weights and labels stay what they were."""
    config, found, problems = tiny(), [], loop_module.problems
    for falsified in (False, True):
        loop = SelfImprovement(config)
        next(it := iter(loop))
        if falsified: monkeypatch.setattr(loop_module, "problems", lambda *a: (p := problems(*a))[:1] + (replace(p[1], answer=p[1].answer.flip(1)),))
        list(it)
        found.append(loop)
    assert same_weights(*found)
