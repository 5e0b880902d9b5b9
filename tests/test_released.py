"""The ways of the released code, against naive references: filters, data in order, levels in turn, optimizer, loop."""
import bisect
import itertools
import math
from dataclasses import replace

import pytest
import torch
from loop_tools import plain, same_weights

from self_improve.arithmetic import Multiplication
from self_improve.config import configure
from self_improve.ensemble import Ensemble, levels_to_measure
from self_improve.experiments import experiment
from self_improve.files import load_tensors
from self_improve.filter import Chain, parse_filter
from self_improve.loop import SelfImprovement
from self_improve.model import Decoder, ModelConfig
from self_improve.optimizers import LRSchedule, TrainConfig, make_optimizers
from self_improve.records import Run
from self_improve.released import InOrder, ReleasedLength, interleave
from self_improve.scoring import Candidates
from self_improve.streams import Stream
from self_improve.tasks import ARITHMETIC, EOS, PAD, Copy
from self_improve.train import Mixture, base_rows, to_rows

SMALL = ModelConfig(layers=1, heads=2, width=16, ffn=16)


def sheet(texts, width=6):
    """Outputs as text: EOS behind each, PAD behind that; a text as long as the width is cut off."""
    rows = [(ARITHMETIC.encode(text) + [EOS] + [PAD] * width)[:width] for text in texts]
    return torch.tensor(rows, dtype=torch.uint8)


def ask(*members, width=6):
    """Candidates from the outputs of each member; the label is the first one's."""
    outputs = torch.stack([sheet(texts, width) for texts in members])
    return Candidates(outputs[0], outputs, outputs[0], task=Copy())


def kept(name, candidates): return parse_filter(name)(candidates).index.tolist()


# filters

def test_all_keeps_what_was_cut_off():
    c = ask(["12345", "123456", "", "654321", "1"])
    assert kept("all", c) == [0, 1, 2, 3, 4] and kept("none", c) == [0, 2, 4]
    assert torch.equal(parse_filter("all")(c).label, c.label)


def random_sheet(n, widths, members=1, batch=1024, columns=12):
    """Outputs of random length, batch by batch no longer than its width; a third of the full ones are cut off."""
    random = Stream(0, "test").integers(members * n, columns + 2, 1000).reshape(members, n, columns + 2)
    width = torch.tensor([widths[i // batch] for i in range(n)])
    length = 1 + random[..., 0] % width
    place = torch.arange(columns)
    tokens = 3 + random[..., 2:] % 2
    tokens[place >= length[..., None]] = PAD
    ends = (place == length[..., None] - 1) & ((length < columns) | (random[..., 1] % 3 > 0))[..., None]
    tokens[ends] = EOS
    return tokens.to(torch.uint8)


def by_definition(label, threshold, batch):
    """Drop a label if position −threshold of its batch is PAD; a batch is as wide as its widest row."""
    found, rows = [], label.tolist()
    for first in range(0, len(rows), batch):
        part = rows[first:first + batch]
        width = max(sum(token != PAD for token in row) for row in part)
        found += [first + i for i, row in enumerate(part) if row[:width][-threshold] != PAD]
    return found


@pytest.mark.parametrize("threshold", [1, 2, 5, 7])
def test_released_length_is_its_definition(threshold):
    """Two whole batches and a short one, each of another width."""
    label = random_sheet(2 * 1024 + 300, (12, 7, 9))[0]
    c = Candidates(label, label[None], label, task=Copy())
    expected = by_definition(label, threshold, 1024)
    assert kept(f"released-length:{threshold}", c) == expected and 200 < len(expected) < len(label)
    endless = (label != EOS).all(1).nonzero()[:, 0].tolist()
    assert endless and set(endless) <= set(expected), "what was cut off is as wide as its batch"
    narrow = ReleasedLength(threshold, 100)(c).index.tolist()
    assert narrow == by_definition(label, threshold, 100) != expected


def test_released_length_of_nothing():
    nothing = [torch.zeros(shape, dtype=torch.uint8) for shape in ((0, 3), (1, 0, 6), (0, 6))]
    assert kept("released-length:2", Candidates(*nothing)) == []


@pytest.mark.parametrize("text", ["released-length:0", "released-length:-1", "released-length:1/2"])
def test_impossible_lengths_are_refused(text):
    with pytest.raises(ValueError, match=f"unknown filter '{text}'"): parse_filter(text)
    with pytest.raises(ValueError, match="batch=0 must be at least 1"): ReleasedLength(1, batch=0)


def test_released_length_remembers_what_a_vote_dropped():
    """Ninety-five short chains on which all agree, and five whole ones on which nobody does."""
    c = ask(*[["1234"] * 95 + [f"1234{digit}"] * 5 for digit in "567"])
    assert kept("vote:3/3+length:0", c) == list(range(95))
    assert kept("vote:3/3+released-length:1", c) == []


@pytest.mark.parametrize("others", ["released-vote:2/3", "vote:2/3+none", "all+vote:3/3"])
def test_its_place_in_a_chain_does_not_matter(others):
    outputs = random_sheet(1500, (12, 9), members=3)
    # two members agree here and there
    outputs[1, ::2] = outputs[0, ::2]
    outputs[2, ::3] = outputs[0, ::3]
    c, parts, found = Candidates(outputs[0], outputs, outputs[0], task=Copy()), others.split("+"), []
    for place in range(len(parts) + 1):
        found.append(parse_filter("+".join([*parts[:place], "released-length:4", *parts[place:]]))(c))
    without = parse_filter(others)(c)
    assert 0 < len(found[0]) < len(without)
    for k in found: assert torch.equal(k.index, found[0].index) and torch.equal(k.label, found[0].label)


def test_released_vote_counts_what_was_cut_off():
    c = ask(["123456", "12", "7", "123456"], ["123456", "12", "8", "123456"], ["123456", "12", "9", "1"])
    assert kept("vote:3/3", c) == [1] and kept("released-vote:3/3", c) == [0, 1]
    assert kept("vote:2/3", c) == [1] and kept("released-vote:2/3", c) == [0, 1, 3]
    k = parse_filter("released-vote:2/3")(c)
    assert torch.equal(k.label, c.outputs[0, k.index])


@pytest.mark.parametrize("name, ended_only", [
    ("none", True), ("all", False), ("released-length:1", False), ("released-vote:3/3", False), ("vote:3/3", True),
    ("released-vote:4/5+released-length:1", False), ("all+none", True), ("none+all", True), ("length:3+all", True)])
def test_a_chain_keeps_cut_off_labels_if_all_its_filters_do(name, ended_only):
    chain = parse_filter(name)
    assert chain.ended_only is ended_only
    cut = ask(*[["123456", "654321"]] * (5 if "4/5" in name else 3))
    assert kept(name, cut) == ([] if ended_only else [0, 1])


# data in order

def mixture(kind=InOrder, **more):
    """A mixture of 20 base rows and three self-made sets, one of them without rows."""
    task, sets = Copy(), []
    for level, rows in ((4, 3), (5, 0), (6, 7)): sets.append(to_rows(task.draw(level, Stream(1, "self"), rows)))
    return kind(task, [1, 2, 3], Stream(5, "base", 2), 20, tuple(sets), (1.0, 1.0, 1.0), 3.0, **more)


def by_counters(m, round, n):
    """A loop that keeps a counter for each source: (source, tokens without padding) of every row."""
    edges = list(itertools.accumulate(m.shares()))[:-1]
    counters, found = [0] * len(m.shares()), []
    for u in Stream(m.stream.seed, "mix", m.stream.member, round=round).uniform(n, 2)[:, 0].tolist():
        source = bisect.bisect_right(edges, u)
        number = counters[source]
        counters[source] += 1
        if source: rows = m.sets[source - 1].take([number % len(m.sets[source - 1])])
        else: rows = base_rows(m.task, m.levels, m.stream, torch.tensor([number % m.size]))
        found.append((source, rows.tokens[0, :rows.length].tolist()))
    return found


def texts(rows): return [row[:length].tolist() for row, length in zip(rows.tokens, rows.length, strict=True)]


@pytest.mark.parametrize("round", [0, 1, 2])
def test_in_order_is_a_counter_for_each_source(round):
    """Exhausted sets begin again: 100 rows hold the 3 of the oldest set, the 20 of the base and the 7 of the newest."""
    m = mixture()
    expected = by_counters(m, round, 100)
    assert texts(m.rows(round, 0, 100)) == [row for _, row in expected]
    taken = [sum(source == s for source, _ in expected) for s in range(4)]
    assert taken[0] > 20 and taken[1] > 3 and taken[2] == 0 and taken[3] > 7


@pytest.mark.parametrize("chunks", [[1] * 60, [7, 20, 33], [59, 1]], ids=str)
def test_in_order_does_not_depend_on_chunks(chunks):
    m, found, first = mixture(), [], 0
    for n in chunks:
        found += texts(m.rows(1, first, n))
        first += n
    assert found == texts(m.rows(1, 0, 60))


def test_every_round_begins_with_the_first_rows():
    m, sources = mixture(), []
    for round in range(3):
        source, number = m.draw(round, 0, 50, "cpu")
        sources.append(source.tolist())
        for s in (0, 1, 3): assert number[source == s].tolist() == list(range(int((source == s).sum())))
    assert sources[0] != sources[1] != sources[2]


def test_in_order_picks_the_sources_of_the_mixture():
    for round, first in itertools.product((0, 1), (0, 37)):
        ours, drawn = [mixture(kind, newest=0.4).draw(round, first, 200, "cpu")[0] for kind in (InOrder, Mixture)]
        assert torch.equal(ours, drawn) and len(ours.unique()) == 3


# levels in turn

@pytest.mark.parametrize("counts", [(4000, 1000), (1000, 4000), (5, 3, 7), (2, 2), (3,)], ids=str)
def test_each_level_has_the_same_share(counts):
    """In turn, each as often as the largest has rows; none of its rows is left out, and none comes out of turn."""
    parts = [to_rows(Copy().draw(level, Stream(0, "self"), n)) for level, n in enumerate(counts, 1)]
    rows = interleave(parts)
    assert len(rows) == len(counts) * max(counts)
    for level, part in enumerate(parts):
        turn = texts(rows.take(slice(level, None, len(counts))))
        own = texts(part)
        assert turn == [own[i % len(own)] for i in range(max(counts))]
    for row in (0, len(rows) - 1): assert rows.start[row] == rows.tokens[row].tolist().index(ARITHMETIC.ids["="]) + 1


# optimizer

@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.parametrize("decay_gains", [True, False])
def test_gains_decay_only_if_they_are_to(optimiser, decay_gains):
    """A step without a gradient is the decay alone."""
    model = Decoder(SMALL, 0)
    config = TrainConfig(lr=0.25, weight_decay=0.5, decay_gains=decay_gains, optimiser=optimiser)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    for optimizer in make_optimizers(model, config): optimizer.step()
    dimensions = set()
    for p, b in zip(model.parameters(), before, strict=True):
        dimensions.add(p.dim())
        if p.dim() > 1 or decay_gains: torch.testing.assert_close(p.detach(), b * 0.875)
        else: assert torch.equal(p, b)
    assert dimensions == {1, 2}


def warm_constant_cosine(k, peak, warm, constant, cosine):
    """The released schedule in steps: up to the peak, at the peak, down to 1 % of it by a cosine, and there."""
    if k < warm: return peak * k / warm
    if k < warm + constant: return peak
    if k >= warm + constant + cosine: return peak * 0.01
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (k - warm - constant) / cosine)))


PHASES = [("copy", 0, (200, 1300, 500, 0), 5e-4), ("copy", 1, (0, 0, 500, 0), 5e-4),
          ("multiplication", 0, (1000, 7000, 2000, 0), 5e-5), ("forward_addition", 3, (0, 2000, 1000, 0), 5e-4),
          ("maze_nodes", 0, (1200, 6000, 2800, 2000), 5e-4), ("maze_hops", 1, (500, 3000, 1000, 500), 2e-4)]


@pytest.mark.parametrize("name, round, steps, peak", PHASES)
def test_a_step_has_the_rate_of_its_beginning(name, round, steps, peak):
    schedule = experiment(name, "paper").lr_schedule(round)
    warm, constant, cosine, tail = steps
    assert schedule.steps == sum(steps) and schedule.from_zero
    for k in range(sum(steps)):
        expected = warm_constant_cosine(k, peak, warm, constant, cosine)
        assert math.isclose(schedule.rate(k), expected, rel_tol=1e-9), k
    assert schedule.rate(0) == (0 if warm else peak)


def test_by_default_a_step_has_the_rate_of_its_middle():
    ours, released = LRSchedule(10, 1.0, 0.5), LRSchedule(10, 1.0, 0.5, from_zero=True)
    assert (ours.rate(0), released.rate(0), released.rate(1)) == (0.1, 0.0, 0.2)


# the loop

def test_a_round_that_ruins_a_model_is_kept_if_it_is_to_be(tiny, talkative):
    """A learning rate of 100: the loss on the labeled problems is a number, and more than ten times what it was."""
    found = {}
    for rollback in (True, False):
        loop = SelfImprovement(tiny(loop=dict(lr=100.0, steps=20, rounds=1, rollback=rollback)))
        it = iter(loop)
        next(it)
        before = loop.ensemble.models[0].head.weight.clone()
        done = next(it)
        # an alarm is no event of a model
        events = [event for event in done.events if event.startswith("model")]
        found[rollback] = events, done.loss[0] is None, torch.equal(before, loop.ensemble.models[0].head.weight)
    (event,), taken_back, same = found[True]
    assert "the loss on the labelled problems rose" in event and taken_back and same
    assert found[False] == ([], False, False)


def test_a_grid_measures_the_easiest_level_and_every_stride_th():
    """Maze nodes at scale paper: 10, 13, …, 97 in every round, whatever has been trained."""
    paper = experiment("maze_nodes", "paper")
    assert (paper.low, paper.loop.stride, paper.loop.grid, paper.loop.rounds) == (10, 3, True, 18)
    e = Ensemble(replace(paper, model=replace(SMALL, vocab=140)))
    for r in range(19):
        levels = levels_to_measure(e, 30 + 3 * r, r)
        assert levels == list(range(10, 98, 3)) and len(levels) == 30


def test_a_grid_begins_at_the_easiest_level(tiny):
    e = Ensemble(tiny(low=2, high=5, loop=dict(grid=True, stride=4, ahead=9, rounds=3)))
    assert levels_to_measure(e, 5, 0) == levels_to_measure(e, 5, 3) == [2, 6, 10, 14]


RELEASED = {
    "loop.even_levels": True, "in_order": True, "train.decay_gains": False, "train.from_zero": True,
    "loop.filter": "all", "cap": "released", "train.fresh": False, "loop.rollback": False, "loop.rounds": 3}
RUNS = [("copy", {"loop.schedule": "steps:2", "loop.members": 1}), ("multiplication", {"loop.members": 1}),
        ("maze_nodes", {"loop.filter": "all+released-length:2"})]


@pytest.mark.parametrize("name, changes", RUNS, ids=[name for name, _ in RUNS])
def test_a_run_as_released_goes_through_and_goes_on(name, changes, tmp_path, talkative):
    """Continued after round 2: the same weights and labels to the bit, the same lines. Cut-off labels are stored."""
    config = configure(experiment(name, "smoke"), RELEASED | changes)
    straight = SelfImprovement(config, tmp_path / "one")
    list(straight)
    it = iter(SelfImprovement(config, tmp_path / "two"))
    for _ in range(3): next(it)
    it.close()
    again = SelfImprovement(config, tmp_path / "two")
    assert len(list(again)) == 1 and len(again.rounds) == 4
    assert same_weights(straight, again) and plain(Run(tmp_path / "two").rounds) == plain(straight.rounds)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.safetensors"))
    assert len(files) == config.loop.members * (4 + 3 + 1)
    for path in files: assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    member = again.ensemble.members[0]
    assert type(member.mixture()) is InOrder and member.trainer.optimizers[0].param_groups[1]["weight_decay"] == 0
    stored = [tensor for r in (1, 2, 3) for tensor in load_tensors(again.run.path("labels", r, 0)).items()]
    cut = [rows for key, rows in stored if key.endswith("label") and not (rows == EOS).any(1).all()]
    assert cut and all(r.kept for r in straight.rounds[1:])


def test_levels_of_a_round_stand_in_turn_in_its_set(tiny, talkative):
    """Twelve labels of one level and three of another: with even_levels both have half of the rows."""
    shares = {}
    for even in (False, True):
        m = Ensemble(tiny(loop=dict(even_levels=even))).members[0]
        m.learn([type("S", (), dict(level=k, block=b, label=b.answer))() for k, b in BLOCKS], 1)
        shares[even] = [int((m.sets[0].start == k + 2).sum()) for k, _ in BLOCKS]
    # BOS, the string, the sign: labels of level k start at k + 2
    assert shares == {False: [12, 3], True: [12, 12]}


BLOCKS = [(k, Copy().draw(k, Stream(0, "self", level=k), n)) for k, n in ((4, 12), (5, 3))]


def test_chains_of_products_one_step_short_are_dropped():
    """A 5 × 6 chain and the same without its last token: the longest of the batch alone stays."""
    answer = Multiplication().draw((5, 6), Stream(0, "self"), 3).answer
    answer[1, -2:] = torch.tensor([EOS, PAD])
    c = Candidates(answer, answer[None], answer, task=Multiplication())
    assert Chain((ReleasedLength(),))(c).index.tolist() == [0, 2] and kept("released-length:2", c) == [0, 1, 2]
