"""The round: what it records, how it goes on after an interruption, shared bases, and objects in place of settings."""
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass, replace

import pytest
import torch
from loop_tools import Stop, broken_training, plain, same_weights, stop_at

from self_improve import ensemble as ensemble_module
from self_improve import labelling
from self_improve import loop as loop_module
from self_improve.config import Config, LoopConfig, configure, identity
from self_improve.ensemble import frontier_of, plan, state_of
from self_improve.fast import Threads
from self_improve.files import load_tensors
from self_improve.filter import Filter, KeepAll, keep_where
from self_improve.labelling import decode_labels
from self_improve.loop import SelfImprovement, load_or_run, next_levels
from self_improve.model import ModelConfig
from self_improve.records import Round, Run, RunStopped, record, rounds_until
from self_improve.sampler import PLAIN, Output
from self_improve.schedule import Schedule, parse_schedule
from self_improve.streams import Stream
from self_improve.tasks import EOS, PAD, Copy, make_task, rows_equal

SMALL = ModelConfig(layers=1, heads=2, width=16, ffn=16)


def tensors_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.safetensors")}


# a whole run

def test_a_run_and_its_records(tmp_path, tiny, talkative):
    config = tiny(loop=dict(members=2))
    run = Run.create(tmp_path / "run", config, "copy", "smoke")
    rounds = list(SelfImprovement(config, run))
    assert [r.round for r in rounds] == list(range(config.loop.rounds + 1))
    assert (rounds[0].levels, rounds[0].frontier, rounds[0].filter) == ([config.low, config.high], config.high, [])
    assert (rounds[0].steps, rounds[1].steps) == (config.train.steps, config.loop.steps)
    for r in rounds:
        assert len(r.loss) == 2 and all(math.isfinite(x) and x > 0 for x in r.loss)
        assert list(r.accuracy) == [str(k) for k in range(config.low, r.frontier + config.loop.ahead + 1)]
        for a in r.accuracy.values():
            assert a["low"] <= a["accuracy"] <= a["high"] and a["n"] == 8 and len(a["members"]) == 2
        assert set(r.seconds) == {"label", "train", "measure"} and r.peak_mb > 50 and r.flops > 0
    for before, r in itertools.pairwise(rounds):
        assert r.levels == [before.frontier + 1] and r.frontier == (max(r.levels) if r.kept else before.frontier)
        assert [f["made"] for f in r.filter] == [config.loop.problems] * 2 and len(r.label_accuracy) == 2
        assert all(0 <= f["right"] <= f["kept"] <= f["made"] for f in r.filter)
    assert Run(run.folder).rounds == rounds and Run(run.folder).done
    files = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    tensors = set()
    for m, r in itertools.product(range(2), range(3)): tensors |= {f"weights/{r:03}-{m}.safetensors"}
    for m, r in itertools.product(range(2), range(1, 3)): tensors |= {f"labels/{r:03}-{m}.safetensors"}
    assert files == {"config.json", "rounds.jsonl"} | tensors
    for line in (run.folder / "rounds.jsonl").read_text().splitlines(): json.loads(line, parse_constant=pytest.fail)


def test_a_run_without_a_folder_is_the_same_run(tmp_path, tiny, talkative):
    one, two = SelfImprovement(tiny()), SelfImprovement(tiny(), tmp_path / "run")
    assert plain(one) == plain(two) and same_weights(one, two)
    assert plain(SelfImprovement(tiny(data_seed=1))) != plain(one.rounds) != plain(SelfImprovement(tiny(model_seed=1)))


def test_a_finished_run_does_nothing(tmp_path, tiny, talkative):
    run = Run.create(tmp_path / "run", tiny())
    list(SelfImprovement(tiny(), run))
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    assert list(SelfImprovement(tiny(), Run(run.folder))) == []
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before


TASKS = [dict(task="maze_hops", options={"nodes": 8}, model=replace(SMALL, vocab=108)), dict(task="reverse_addition"),
         dict(task="multiplication", high=1, loop=dict(schedule="pairs"))]


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t["task"])
def test_every_kind_of_task_goes_through_the_loop(tiny, talkative, task):
    loop = task.get("loop", {})
    rounds = list(SelfImprovement(tiny(**{k: v for k, v in task.items() if k != "loop"}, loop=loop)))
    assert len(rounds) == 3 and rounds[-1].accuracy
    if "loop" in task: assert rounds[1].levels == [(1, 2), (2, 1)]


# interrupted and continued

ARMS = dict(
    fresh=dict(), moments=dict(train=dict(fresh=False)), rounded=dict(train=dict(rounded=True, fresh=False)),
    ensemble=dict(loop=dict(members=3, filter="confidence:0.5")), shared=dict(loop=dict(members=2, shared=True)),
    strides=dict(high=8, model_seed=1, loop=dict(schedule="steps:3", problems=60)),
    muon=dict(train=dict(fresh=False, optimiser="muon")),
    # a group of pairs that is not sorted, with a pair named twice
    pairs=dict(task="multiplication", high=1, loop=dict(schedule="pairs:2,1 1,2 2,1;2,2", problems=60)))
PLACES = [(arm, "between") for arm in ARMS]
PLACES += itertools.product(("fresh", "moments"), ("label", "train", "measure"))


@pytest.mark.parametrize("arm, where", PLACES)
def test_continued_is_as_if_never_interrupted(tmp_path, tiny, talkative, arm, where):
    """After round 1, or anywhere within round 2: the same weights to the bit, the same lines, the same labels."""
    config = tiny(**ARMS[arm])
    one, two = tmp_path / "one", tmp_path / "two"
    straight = SelfImprovement(config, one)
    list(straight)
    assert any(r.kept for r in straight.rounds), "no label was ever kept: this run would show nothing"
    first = SelfImprovement(config, two, progress=stop_at(2, where))
    if where == "between":
        it = iter(first)
        next(it), next(it)
    else:
        with pytest.raises(Stop): list(first)
    assert len(Run(two).rounds) == 2
    again = SelfImprovement(config, two)
    list(again)
    assert same_weights(straight, again) and plain(Run(two).rounds) == plain(straight.rounds)
    for m, n in zip(straight.ensemble.members, again.ensemble.members, strict=True):
        # stored labels may be narrower: only their width may differ
        for a, b in zip(m.sets, n.sets, strict=True):
            assert torch.equal(a.length, b.length) and rows_equal(a.tokens, b.tokens).all()
    assert tensors_of(one) == tensors_of(two)


def test_the_same_object_goes_on_after_an_interruption(tiny, talkative):
    """In a notebook one interrupts a cell and runs it again: the round begun must not count twice."""
    stopped, straight = SelfImprovement(tiny(), progress=stop_at(1, "train")), SelfImprovement(tiny())
    with pytest.raises(Stop): list(stopped)
    stopped.ensemble.progress = lambda *_: None
    list(stopped), list(straight)
    assert plain(stopped.rounds) == plain(straight.rounds) and same_weights(stopped, straight)


def test_more_rounds_continue_the_same_run(tmp_path, tiny, talkative):
    short, longer = tiny(loop=dict(rounds=1)), tiny(loop=dict(rounds=3))
    list(SelfImprovement(short, tmp_path / "run"))
    straight, again = SelfImprovement(longer), SelfImprovement(longer, Run.create(tmp_path / "run", longer))
    list(straight), list(again)
    assert same_weights(straight, again) and plain(again.rounds) == plain(straight.rounds)


def test_moments_of_past_rounds_are_not_kept(tmp_path, tiny, talkative):
    list(SelfImprovement(tiny(train=dict(fresh=False)), tmp_path / "run"))
    assert [p.name for p in (tmp_path / "run" / "moments").iterdir()] == ["002-0.safetensors"]


@pytest.mark.parametrize("loop", [dict(), dict(members=2, filter="vote:1/2"), dict(members=2, shared=True)])
def test_missing_labels_are_made_again_from_the_weights_before(tmp_path, tiny, talkative, loop):
    short, longer = tiny(loop=dict(rounds=2) | loop), tiny(loop=dict(rounds=3) | loop)
    list(SelfImprovement(short, tmp_path / "run"))
    straight = SelfImprovement(longer)
    list(straight)
    for path in (tmp_path / "run" / "labels").iterdir(): path.unlink()
    again = SelfImprovement(longer, Run.create(tmp_path / "run", longer))
    list(again)
    assert same_weights(straight, again) and plain(again.rounds) == plain(straight.rounds)
    assert any(r.kept for r in straight.rounds[1:3]), "no label was kept: this run would show nothing"


def test_without_labels_and_weights_a_run_says_what_it_needs(tmp_path, tiny, talkative):
    config = tiny(loop=dict(members=2))
    run = Run.create(tmp_path / "run", config)
    list(SelfImprovement(config, run))
    run.path("labels", 2, 1).unlink()
    run.path("weights", 1, 0).unlink()
    with pytest.raises(ValueError, match=r"labels/002-1.safetensors is missing, and so is .*weights/001-0") as error:
        SelfImprovement(config, Run(run.folder))
    assert "needs the labels of every round, or the weights of the round before" in str(error.value)


def test_weights_that_make_other_labels_are_refused(tmp_path, tiny, talkative):
    """The kept counts in the record tell: what was trained on cannot be made again from other weights."""
    config = tiny()
    run = Run.create(tmp_path / "run", config)
    rounds = list(SelfImprovement(config, run))
    assert rounds[1].kept, "this run would show nothing"
    run.path("labels", 1, 0).unlink()
    silent = run.model(0)
    with torch.no_grad(): silent.head.weight[EOS] = -9 * silent.head.weight.abs().max()
    run.save_model(silent, 0, 0)
    with pytest.raises(ValueError, match="labels/001-0.safetensors is missing, and this machine makes other labels"):
        SelfImprovement(config, Run(run.folder))


def test_a_damaged_file_is_named(tmp_path, tiny, talkative):
    config = tiny()
    run = Run.create(tmp_path / "run", config)
    list(SelfImprovement(config, run))
    run.path("labels", 1, 0).write_bytes(run.path("weights", 1, 0).read_bytes())
    with pytest.raises(ValueError, match="labels/001-0.safetensors does not fit this run: these are no labels"):
        SelfImprovement(config, Run(run.folder))


def test_a_folder_that_went_on_meanwhile_is_refused(tmp_path, tiny, talkative):
    """Opened twice before the first round: the second would write over what the first has done."""
    one, two = SelfImprovement(tiny(), tmp_path / "run"), SelfImprovement(tiny(), tmp_path / "run")
    list(one)
    with pytest.raises(ValueError, match="run has changed since it was opened"): list(two)
    assert Run(tmp_path / "run").rounds == one.rounds


def test_a_folder_is_held_while_rounds_are_computed(tmp_path, tiny, talkative):
    loop = SelfImprovement(tiny(), tmp_path / "run")
    it = iter(loop)
    next(it)
    assert (tmp_path / "run" / ".lock").exists()
    it.close()
    assert not (tmp_path / "run" / ".lock").exists()


# a base that another run has trained

@pytest.fixture
def base(tmp_path, tiny, talkative):
    """A run of five members with other rounds, whose base can be shared."""
    config = tiny(loop=dict(members=3, rounds=1, steps=9, filter="length", evaluate=5))
    run = Run.create(tmp_path / "base", config, "copy", "smoke")
    list(SelfImprovement(config, run))
    return run


@pytest.mark.parametrize("members", [1, 2])
def test_a_shared_base_is_as_if_trained_here(tmp_path, tiny, base, members):
    config = tiny(loop=dict(members=members))
    straight = SelfImprovement(config, tmp_path / "one")
    shared = SelfImprovement(config, tmp_path / "two", base=base)
    list(straight), list(shared)
    assert same_weights(straight, shared) and tensors_of(tmp_path / "one") == tensors_of(tmp_path / "two")
    first = shared.rounds[0]
    assert first.base_from == f"base (identity {identity(base.config)[:8]})" and first.accuracy["1"]["n"] == 8
    assert first.seconds["train"] < 0.5 and first.flops < straight.rounds[0].flops
    assert [r.base_from for r in shared.rounds[1:]] == ["", ""]
    expected = plain([replace(straight.rounds[0], base_from=first.base_from, flops=first.flops)])
    assert plain(shared.rounds) == expected + plain(straight.rounds[1:])
    # and it goes on like any other run
    assert same_weights(SelfImprovement(config, tmp_path / "two"), straight)


def test_a_shared_base_brings_its_moments(tmp_path, tiny, talkative):
    config = tiny(train=dict(fresh=False))
    only = configure(config, {"loop.rounds": 0})
    list(SelfImprovement(only, tmp_path / "base"))
    straight, shared = SelfImprovement(config), SelfImprovement(config, base=tmp_path / "base")
    list(straight), list(shared)
    assert same_weights(straight, shared)
    list(SelfImprovement(config, Run.create(tmp_path / "base", config)))
    with pytest.raises(ValueError, match="base has no base for this run.*with their moments"):
        SelfImprovement(config, base=tmp_path / "base")


def test_what_went_wrong_in_the_base_is_told_of_ones_own_members(tiny, talkative, tmp_path):
    config = tiny(loop=dict(members=3, rounds=0))
    list(SelfImprovement(config, tmp_path / "base"))
    path = tmp_path / "base" / "rounds.jsonl"
    line = json.loads(path.read_text()) | {"events": ["model 0: it coughed", "model 2: it sneezed"]}
    path.write_text(json.dumps(line) + "\n")
    first = next(iter(SelfImprovement(tiny(loop=dict(members=2)), base=tmp_path / "base")))
    assert first.events == ["model 0: it coughed"]
    assert len(first.loss) == 2 and all(math.isfinite(loss) for loss in first.loss)


def test_a_base_whose_loss_is_no_number_ends_the_run(tiny, talkative, monkeypatch, tmp_path):
    """Rounds on untrained models would label nonsense; nothing is stored, so the same folder can be used again."""
    broken = broken_training(monkeypatch)
    broken |= {1}
    config = tiny(loop=dict(members=2))
    with pytest.raises(RunStopped, match="model 1: the loss of base training is no number, with train.lr=0.002"):
        list(SelfImprovement(config, tmp_path / "run"))
    assert not Run(tmp_path / "run").rounds and Run(tmp_path / "run").unmeasured is None
    broken.clear()
    assert len(list(SelfImprovement(config, tmp_path / "run"))) == 3


@pytest.mark.parametrize("change", [{"high": 4}, {"data_seed": 1}, {"train.steps": 6}, {"loop.members": 4}])
def test_a_base_of_another_kind_is_refused(tiny, base, change):
    with pytest.raises(ValueError, match="base has no base for this run: that takes the same data, model and training"):
        SelfImprovement(configure(tiny(), change), base=base)


def test_a_run_that_has_begun_needs_no_base(tmp_path, tiny, base):
    list(SelfImprovement(tiny(loop=dict(rounds=1)), tmp_path / "run"))
    straight, again = SelfImprovement(tiny()), SelfImprovement(tiny(), tmp_path / "run", base=base)
    list(straight), list(again)
    assert plain(again.rounds) == plain(straight.rounds)


def test_load_or_run_takes_what_there_is(tmp_path, tiny, base, monkeypatch):
    """A whole run where there is one, a base where there is one, and a folder where it ends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELF_IMPROVE_DATA", str(tmp_path / "data"))
    record(base, tmp_path / "data", weights=[0])
    assert load_or_run(base.config) == base.rounds
    assert load_or_run(configure(base.config, {"loop.rounds": 0})) == base.rounds[:1]
    rounds = load_or_run(tiny(), "runs/mine")
    assert len(rounds) == 3 and rounds[0].base_from.startswith("copy-smoke-")
    assert plain(load_or_run(tiny())) == plain(rounds), "the second time it is read"
    assert len(load_or_run(tiny(loop=dict(rounds=3)), "runs/mine")) == 4, "all its rounds, not only the new one"


# objects in place of settings

@dataclass(frozen=True)
class Every(Filter):
    "Keeps labels that end, of every n-th problem."
    n: int = 2

    def __call__(self, candidates):
        chosen = torch.arange(len(candidates)) % self.n == 0
        return keep_where(candidates, candidates.ended & chosen)


@dataclass(frozen=True)
class Leap(Schedule):
    "Two levels at a time, which weigh five."
    seen: list
    def next(self, state):
        self.seen.append(state)
        return [state.frontier + 1, state.frontier + 2]

    def weight(self, levels): return 5.0


def test_a_filter_of_ones_own(tmp_path, tiny, talkative):
    usual, own = SelfImprovement(tiny()), SelfImprovement(tiny(), filter=Every(24))
    list(usual), list(own)
    (all_kept,), (few_kept,) = usual.rounds[1].filter, own.rounds[1].filter
    assert all_kept["made"] == few_kept["made"] == 24 and all_kept["kept"] > 1 >= few_kept["kept"]
    list(SelfImprovement(tiny(), tmp_path / "run", filter=Every(3), tag="every-third"))
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["overrides"] == {"filter": {"class": "test_loop.Every", "fields": {"n": "3"}}}
    assert stored["config"]["tag"] == "every-third" and stored["identity"] != identity(tiny())
    assert Run(tmp_path / "run").overrides == stored["overrides"]


def test_a_schedule_of_ones_own_and_its_weight(tiny, talkative):
    seen = []
    loop = SelfImprovement(tiny(loop=dict(problems=60)), schedule=Leap(seen))
    rounds = list(loop)
    assert rounds[1].levels == [4, 5] and loop.ensemble.members[0].weights == [5.0, 5.0]
    # the last two are of the run itself; before them the way was only planned
    assert [s.round for s in seen[-2:]] == [1, 2] and [len(s.rounds) for s in seen[-2:]] == [1, 2]
    assert seen[-1].rounds == tuple(r.without_truth() for r in rounds[:2]) and seen[-1].rounds[1].kept is not None
    planned = seen[1].rounds
    assert [r.kept for r in planned] == [None, 1.0], "what is planned looks like rounds in which all went well"


def test_a_schedule_in_the_configuration_has_its_weight(tiny, talkative):
    by_truth = SelfImprovement(tiny(loop=dict(schedule="accelerated-by-truth:0.01", rounds=1)))
    by_truth.ensemble.members[0].learn([type("S", (), dict(level=k, block=b, label=b.answer))() for k, b in BLOCKS], 1)
    assert by_truth.ensemble.members[0].weights == [3.0]


BLOCKS = [(k, Copy().draw(k, Stream(0, "self", level=k), 2)) for k in (4, 5, 6)]


def test_a_run_whose_changed_labels_do_not_end_goes_on(tmp_path, tiny, talkative):
    """Injected noise may be anything; only what a filter of ours kept must end."""
    def endless(labels, truth, stream): return torch.where(labels == EOS, Copy.vocab.ids["9"], labels)

    more = dict(relabel=endless, tag="endless")
    short, longer = tiny(loop=dict(rounds=1)), tiny(loop=dict(rounds=2))
    list(SelfImprovement(short, tmp_path / "run", **more))
    straight, again = SelfImprovement(longer, **more), SelfImprovement(longer, tmp_path / "run", **more)
    list(straight), list(again)
    assert straight.rounds[1].kept and same_weights(straight, again)


def test_relabel_changes_what_is_learned_and_stored(tmp_path, tiny, talkative):
    """It gets the kept labels, their truth and the stream; what is reported is what is learned."""
    seen = []

    def nines(labels, truth, stream):
        seen.append((labels.clone(), truth, stream))
        return torch.where((labels != EOS) & (labels != PAD), Copy.vocab.ids["9"], labels)

    config = tiny(loop=dict(rounds=1))
    usual = SelfImprovement(config)
    changed = SelfImprovement(config, tmp_path / "run", relabel=nines, tag="nines")
    list(usual), list(changed)
    (labels, truth, stream), = seen
    assert len(labels) and stream.purpose == "self" and (stream.level, stream.round) == (4, 1)
    stored, = decode_labels(load_tensors(changed.run.path("labels", 1, 0)), Copy(), stream)
    assert rows_equal(stored.label, nines(labels, truth, stream)).all() and torch.equal(stored.block.answer, truth)
    before, after = usual.rounds[1].filter[0], changed.rounds[1].filter[0]
    assert after["kept"] == before["kept"] and after["steps"][0] == before["steps"][0]
    assert after["right"] == int(rows_equal(stored.label, truth).sum()) == after["steps"][1][2]
    assert after["steps"][1][0] == "relabel" and not same_weights(usual, changed)
    about = Run(tmp_path / "run").overrides["relabel"]
    assert about == {"class": "test_loop.test_relabel_changes_what_is_learned_and_stored.<locals>.nines"}


class Bigram(torch.nn.Module):
    "The next token from the last two alone; no cache, no attention."
    def __init__(self, config, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.last = torch.nn.Parameter(3 * torch.randn(config.vocab, config.vocab, generator=generator))
        self.before = torch.nn.Parameter(torch.randn(config.vocab, config.vocab, generator=generator))
        with torch.no_grad(): self.last[:, EOS] += 4

    def forward(self, tokens):
        before = torch.nn.functional.pad(tokens, (1, 0))[:, :-1]
        return self.last[tokens] + self.before[before]


def test_a_model_of_ones_own_runs_on_the_plain_engine(tmp_path, tiny):
    """With only `forward`: it trains, labels, is measured, stored, and goes on."""
    config = tiny(loop=dict(members=2, rounds=1))
    loop = SelfImprovement(config, tmp_path / "run", model=Bigram, tag="bigram")
    assert loop.ensemble.engine is PLAIN
    rounds = list(loop)
    assert rounds[1].kept and all(math.isfinite(x) for r in rounds for x in r.loss) and rounds[1].flops > 0
    start = Bigram(config.model, Stream(0, "init", 1).key)
    assert not torch.equal(start.last, loop.ensemble.models[1].last), "it has learned"
    run = Run(tmp_path / "run")
    assert torch.equal(run.model(member=1, factory=Bigram).last, loop.ensemble.models[1].last)
    longer = configure(run.config, {"loop.rounds": 2})
    again = SelfImprovement(longer, Run.create(run.folder, longer), model=Bigram)
    straight = SelfImprovement(longer, model=Bigram)
    list(again), list(straight)
    assert same_weights(again, straight) and plain(again.rounds) == plain(straight.rounds)
    # its base serves another run with this model, and no other
    shared, trained = SelfImprovement(config, base=run, model=Bigram), SelfImprovement(config, model=Bigram)
    list(shared), list(trained)
    assert same_weights(shared, trained) and shared.rounds[0].base_from
    with pytest.raises(ValueError, match="no base for this run"): SelfImprovement(tiny(), base=run)


def test_an_object_needs_a_tag_where_a_folder_is_kept(tmp_path, tiny, talkative):
    for overrides in (dict(filter=KeepAll()), dict(relabel=print), dict(model=Bigram), dict(schedule=Leap([]))):
        name, = overrides
        with pytest.raises(ValueError, match=f"{name}= with a run's folder needs tag="):
            SelfImprovement(tiny(), tmp_path / "run", **overrides)
    assert not (tmp_path / "run").exists()
    untagged = Run.create(tmp_path / "other", tiny())
    with pytest.raises(ValueError, match="other holds another run: make it with tag='mine'"):
        SelfImprovement(tiny(), untagged, filter=KeepAll(), tag="mine")
    tagged = Run.create(tmp_path / "mine", replace(tiny(), tag="mine"))
    list(SelfImprovement(tiny(), tagged, filter=KeepAll(), tag="mine"))
    assert Run(tagged.folder).overrides["filter"]["class"] == "self_improve.KeepAll"


def test_a_run_goes_on_only_with_the_objects_it_began_with(tmp_path, tiny, talkative):
    config = tiny(loop=dict(rounds=1))
    list(SelfImprovement(config, tmp_path / "run", filter=Every(), tag="first"))
    longer = tiny(loop=dict(rounds=2), tag="first")
    with pytest.raises(ValueError, match=r"begun with other overrides \(filter; given: none\)"):
        SelfImprovement(longer, Run.create(tmp_path / "run", longer))
    for other in (Every(9), KeepAll()):
        with pytest.raises(ValueError, match="give the same objects"):
            SelfImprovement(longer, tmp_path / "run", filter=other)
    again, straight = SelfImprovement(longer, tmp_path / "run", filter=Every()), SelfImprovement(longer, filter=Every())
    list(again), list(straight)
    assert same_weights(again, straight)


def test_another_configurations_folder_is_refused(tmp_path, tiny):
    run = Run.create(tmp_path / "run", tiny())
    with pytest.raises(ValueError, match="run holds another run: choose another folder"):
        SelfImprovement(tiny(high=4), run)


# when things go wrong

def endless(model, prompts, cap, logprobs=False):
    "Outputs that never end."
    tokens = torch.full((len(prompts), cap), 5, dtype=torch.uint8)
    return Output(tokens, torch.zeros(tokens.shape) if logprobs else None)


@pytest.fixture
def nothing_ends(monkeypatch):
    """Every model's outputs go on for ever."""
    monkeypatch.setattr(ensemble_module, "engine_for", lambda model: replace(PLAIN, decode=endless))


def test_nothing_kept_is_told_and_the_frontier_waits(tmp_path, tiny, nothing_ends):
    config = tiny(loop=dict(members=2))
    rounds = list(SelfImprovement(config, tmp_path / "run"))
    assert [r.frontier for r in rounds] == [3, 3, 3] and [r.levels for r in rounds[1:]] == [[4], [4]]
    for r in rounds[1:]:
        assert r.events == ["model 0: nothing kept", "model 1: nothing kept"] and r.kept == 0 and r.precision is None
    again = SelfImprovement(config, tmp_path / "run")
    assert all(len(rows) == 0 for m in again.ensemble.members for rows in m.sets)


@pytest.mark.parametrize("filter", ["length", "confidence", "oracle", "length+confidence:0.5"])
def test_every_filter_survives_a_run_in_which_nothing_ends(tiny, nothing_ends, filter):
    assert [r.frontier for r in SelfImprovement(tiny(loop=dict(filter=filter)))] == [3, 3, 3]


def test_fewer_problems_than_levels(tiny, talkative):
    rounds = list(SelfImprovement(tiny(loop=dict(problems=1, schedule="steps:2"))))
    assert [r.filter[0]["made"] for r in rounds[1:]] == [1, 1]


def test_a_frontier_is_what_was_trained_on(tiny, talkative, monkeypatch):
    """A round that every member took back has trained on nothing."""
    broken = broken_training(monkeypatch)
    it = iter(SelfImprovement(tiny()))
    next(it)
    broken.add(0)
    assert next(it).frontier == 3


# where to next

def test_frontiers_and_next_levels_of_pairs():
    task = make_task("multiplication")
    config = Config(task="multiplication", high=2, loop=LoopConfig(schedule="pairs"))
    levels = [[1, 2], [(1, 3), (3, 1)], [(2, 3), (3, 2)], [(3, 3)]]
    kept = [dict(made=1, kept=1, right=1, possible=1)]
    rounds = [Round(r, x, 2, 1, loss=[0.1], filter=kept) for r, x in enumerate(levels)]
    found = []
    for n in range(1, 5):
        state = state_of(task, config, rounds[:n])
        found.append((state.frontier, parse_schedule("pairs").next(state)))
    assert found == [(2, [(1, 3), (3, 1)]), (2, [(2, 3), (3, 2)]), (2, [(3, 3)]), (3, [(1, 4), (4, 1)])]
    assert frontier_of(task, config, frozenset(task.levels(1, 3))) == 3


def test_a_schedule_gets_no_accuracy():
    task, config = make_task("copy"), Config(task="copy", high=3)
    report = dict(made=4, kept=2, right=1, possible=2)
    done = Round(1, [4], 4, 1, [0.1], [0.25], [report], {"4": dict(accuracy=0.5, n=8)}, {"4": 0.5})
    state = state_of(task, config, [Round(0, [1, 3], 3, 1), done])
    assert state.rounds[-1] == done.without_truth() and state.rounds[-1].kept == 0.5
    assert state.rounds[-1].at(4) is None and not state.rounds[-1].probe


def test_a_run_that_cannot_reach_its_last_round_does_not_begin(tiny):
    mazes = dict(task="maze_hops", options={"nodes": 5}, model=replace(SMALL, vocab=108))
    with pytest.raises(ValueError, match="loop.rounds=2 are too many: after round 1 the schedule steps:1 finds no"):
        SelfImprovement(tiny(**mazes))
    short = replace(SMALL, positions="absolute", context=20)
    with pytest.raises(ValueError, match="model.context=20 is too short for absolute positions: level 7 needs"):
        SelfImprovement(tiny(model=short))
    loop = SelfImprovement(tiny())
    assert plan(loop.ensemble) == [[1, 3], [4], [5]]


def test_a_task_without_further_levels_ends_the_run(tiny, talkative, monkeypatch):
    """Where probing found more levels than were planned for."""
    loop = SelfImprovement(tiny())
    monkeypatch.setattr(loop_module, "valid_levels", lambda task, levels: [x for x in levels if x < 5])
    assert [r.levels for r in loop] == [[1, 3], [4]]


def test_a_run_that_has_no_further_level_is_finished(tmp_path, tiny, talkative, monkeypatch):
    """It took more levels a round than were planned for: its last round is measured as a last one."""
    every = Copy.levels
    monkeypatch.setattr(Copy, "levels", lambda task, low, high: [k for k in every(task, low, high) if k < 6])
    monkeypatch.setattr(loop_module, "acceptance", lambda e, level, r: float(level < 6))
    config = tiny(loop=dict(schedule="accelerated:1/3", rounds=2, final=16, evaluate=8, problems=300))
    rounds = list(SelfImprovement(config, tmp_path / "run"))
    run = Run(tmp_path / "run")
    assert [r.frontier for r in rounds] == [3, 5] and run.done and rounds_until(run.rounds, config) == run.rounds
    assert all(measured["n"] == 16 for measured in rounds[-1].accuracy.values())


def test_a_longer_run_says_so_while_it_is_made(tmp_path, tiny, talkative):
    list(SelfImprovement(tiny(), tmp_path / "run"))
    longer = SelfImprovement(tiny(loop=dict(rounds=4)), tmp_path / "run")
    next(iter(longer))
    run = Run(tmp_path / "run")
    assert run.config.loop.rounds == 4 and len(run.rounds) == 4 and not run.done


def test_a_level_of_which_every_label_was_dropped_is_not_trained_on(tiny):
    task, config = make_task("copy"), tiny()
    report = dict(made=8, kept=3, right=3, possible=8, levels=["4"])
    done = Round(1, [4, 5], 5, 1, [0.1], [1.0], [report])
    base = Round(0, [1, 3], 3, 1)
    assert state_of(task, config, [base, done]).frontier == 4
    # an older record does not say which levels they were
    older = replace(done, filter=[{key: value for key, value in report.items() if key != "levels"}])
    assert state_of(task, config, [base, older]).frontier == 5


def test_the_probe_of_a_level_does_not_count_labels(tiny, talkative):
    """`least` asks for a number of labels in a round; of 200 probed problems fewer may be enough."""
    rounds = [list(SelfImprovement(tiny(loop=dict(schedule="accelerated:0.5/3", rounds=1, filter=filter))))
              for filter in ("none", "none+least:201")]
    assert rounds[0][1].acceptance == rounds[1][1].acceptance != {}


def test_only_the_schedule_that_asks_for_the_truth_probes(tiny, talkative):
    steps = SelfImprovement(tiny())
    assert next_levels(steps.ensemble, []) == ([1, 3], {})
    assert [r.probe for r in steps] == [{}, {}, {}]
    asking = SelfImprovement(tiny(loop=dict(schedule="accelerated-by-truth", rounds=1)))
    assert [sorted(r.probe) for r in asking] == [[], ["4"]]


def test_levels_are_taken_by_what_the_filter_keeps(tiny, talkative):
    """All labels end and are kept: as many levels as may be, on a fixed stream of problems, and the record says so."""
    config = tiny(loop=dict(schedule="accelerated:0.5/3", rounds=2))
    rounds = list(SelfImprovement(config))
    assert [sorted(r.acceptance) for r in rounds[:2]] == [[], ["5"]] and not rounds[1].probe
    for r in rounds[1:]:
        found = [share for _, share in sorted(r.acceptance.items())]
        assert len(r.levels) == 1 + sum(share >= 0.5 for share in found)
    assert plain(SelfImprovement(config)) == plain(rounds)


def test_asking_for_levels_takes_time_of_the_round(tiny, talkative, monkeypatch):
    ask = loop_module.acceptance

    def slow(*args):
        time.sleep(0.2)
        return ask(*args)

    monkeypatch.setattr(loop_module, "acceptance", slow)
    *_, last = SelfImprovement(tiny(loop=dict(schedule="accelerated:1/2", rounds=1)))
    assert last.seconds["label"] >= 0.2


def test_acceleration_refuses_a_filter_that_knows_the_truth(tiny):
    with pytest.raises(ValueError, match="loop.schedule=accelerated .* the truth, .*oracle"):
        tiny(loop=dict(schedule="accelerated", filter="oracle"))


# where it ends

@pytest.mark.parametrize("until, frontiers", [(0, [3, 4, 5]), (4, [3, 4]), (3, [3]), (9, [3, 4, 5])])
def test_a_run_ends_at_its_level_or_its_last_round(tmp_path, tiny, talkative, until, frontiers):
    config = tiny(loop=dict(rounds=2, until=until, evaluate=4, final=9))
    run = Run.create(tmp_path / "run", config)
    rounds = list(SelfImprovement(config, run))
    assert [r.frontier for r in rounds] == frontiers and run.done
    assert next(iter(rounds[-1].accuracy.values()))["n"] == 9, "its last round is measured closely"
    assert list(SelfImprovement(config, run)) == [], "nothing is left to do"
    assert load_or_run(config) and identity(config) == identity(tiny(loop=dict(rounds=2)))
    further = configure(config, {"loop.until": 0, "loop.evaluate": 9})
    again = Run.create(tmp_path / "run", further)
    assert [r.frontier for r in [*rounds, *SelfImprovement(further, again)]] == [3, 4, 5], "and it goes on"


# how often the steps are taken

def test_steps_are_taken_again_while_the_loss_is_too_high(tmp_path, tiny, talkative):
    base = tiny(loop=dict(members=2))
    once = list(SelfImprovement(base))
    never_enough = configure(base, {"loop.enough": 1e-9, "loop.repeats": 3})
    rounds = list(SelfImprovement(never_enough, Run.create(tmp_path / "run", never_enough)))
    assert [r.repeats for r in rounds] == [[], [3, 3], [3, 3]] and [r.repeats for r in once] == [[]] * 3
    assert rounds[0].loss == once[0].loss and rounds[1].loss != once[1].loss
    assert rounds[1].flops > 1.5 * once[1].flops, "the steps taken again are counted"
    easy = list(SelfImprovement(configure(base, {"loop.enough": 99.0, "loop.repeats": 3})))
    assert [r.repeats for r in easy] == [[], [1, 1], [1, 1]]
    assert [r.loss for r in easy] == [r.loss for r in once], "once is the same as ever"


def test_steps_taken_again_read_other_rows(tiny, monkeypatch):
    first, draw = [], ensemble_module.Mixture.rows

    def rows(self, r, start, n, device="cpu"):
        first.append((r, start))
        return draw(self, r, start, n, device)

    monkeypatch.setattr(ensemble_module.Mixture, "rows", rows)
    config = tiny(loop=dict(rounds=1, enough=1e-9, repeats=3))
    list(SelfImprovement(config))
    starts = [start for r, start in first if r == 1]
    assert starts == [k * config.loop.steps * config.train.batch for k in range(3)]


# measuring

def test_the_last_round_is_measured_more_closely(tiny):
    rounds = SelfImprovement(tiny(loop=dict(evaluate=4, final=9)))
    assert [next(iter(r.accuracy.values()))["n"] for r in rounds] == [4, 4, 9]


def test_truth_is_measured_and_never_used(tiny, talkative, monkeypatch):
    """With every reference answer falsified after the base data, weights and labels stay what they were."""
    found, calls, draw_problems = [], [], labelling.draw_problems

    def falsified(*args):
        calls.append(args)
        shape, block = draw_problems(*args)
        return shape, replace(block, answer=block.answer.flip(1))

    for draw in (draw_problems, falsified):
        loop = SelfImprovement(tiny())
        it = iter(loop)
        next(it)
        monkeypatch.setattr(labelling, "draw_problems", draw)
        list(it)
        found.append(loop)
    assert calls and same_weights(*found)


def test_a_record_of_a_round_is_json(tiny, talkative):
    for r in SelfImprovement(tiny()): assert json.loads(json.dumps(asdict(r), allow_nan=False))["round"] == r.round


# threads

def test_how_the_cores_are_shared_is_measured_once_and_kept(tmp_path, tiny, talkative, monkeypatch):
    measured = []

    def choose(models, rows, config):
        measured.append(len(rows))
        return Threads("one", {"one": 0.1, "all": 0.2})

    monkeypatch.setattr(ensemble_module, "choose_threads", choose)
    config = tiny(loop=dict(members=2, rounds=1))
    list(SelfImprovement(config, tmp_path / "one"))
    assert measured == [] and "threads_mode" not in Run(tmp_path / "one").info, "one thread leaves no choice"
    # as in a long run on two cores
    monkeypatch.setattr(ensemble_module, "pays_to_measure", lambda e: True)
    loop = SelfImprovement(config, tmp_path / "two")
    list(loop)
    assert measured == [8] and loop.ensemble.threads == "one"
    info = Run(tmp_path / "two").info
    assert info["threads_mode"] == "one" and info["threads_seconds"] == {"one": 0.1, "all": 0.2}
    longer = configure(config, {"loop.rounds": 2})
    again = SelfImprovement(longer, Run.create(tmp_path / "two", longer))
    list(again)
    assert measured == [8] and again.ensemble.threads == "one"
    # a run that was begun where there was no choice, or before there was one
    old = SelfImprovement(longer, Run.create(tmp_path / "one", longer))
    list(old)
    assert measured == [8] and old.ensemble.threads == "parallel"
    given = SelfImprovement(config, threads="all")
    list(given)
    assert measured == [8] and given.ensemble.threads == "all"


def test_an_unknown_way_to_share_the_cores_is_refused(tiny):
    with pytest.raises(ValueError, match="threads='many' is not one of auto, "): SelfImprovement(tiny(), threads="many")
