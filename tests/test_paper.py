"""Scale `paper`: the tables of the notes on the paper, and a test for every point in which it departs from them."""
import re
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from loop_tools import broken_training

import self_improve
from self_improve import ensemble
from self_improve.config import Config, configure, flatten
from self_improve.ensemble import Ensemble, levels_to_measure, measure_at
from self_improve.fast import engine_for, to_bf16_if_cuda
from self_improve.filter import parse_filter
from self_improve.labelling import candidates
from self_improve.loop import SelfImprovement
from self_improve.model import Decoder, ModelConfig
from self_improve.paper import DEPARTURES, PAPER, RELEASED, accelerated
from self_improve.sampler import decode
from self_improve.schedule import AcceleratedByTruth, Pairs, Steps
from self_improve.scoring import Candidates
from self_improve.streams import Stream
from self_improve.tasks import ARITHMETIC, EOS, PAD, Copy, make_task, rows_equal

every_experiment = pytest.mark.parametrize("name", list(PAPER))
SMALL = ModelConfig(layers=1, heads=2, width=16, ffn=16, vocab=140)

# §3.1 and §3.5 of the notes: what all experiments share, by its key
SHARED = {
    "model.layers": 6, "model.heads": 6, "model.width": 384, "model.ffn": 1536, "model.positions": "nope",
    "model.std": 0.02, "train.optimiser": "adamw", "train.beta1": 0.9, "train.beta2": 0.98, "train.epsilon": 1e-12,
    "train.weight_decay": 0.01, "train.clip": 1.0, "train.batch": 1024, "train.fresh": False, "train.prompts": False,
    "train.rounded": False, "train.decay_gains": False, "train.from_zero": True, "in_order": True, "cap": "released",
    "loop.even_levels": True, "loop.rollback": False, "loop.newest": 0.5, "loop.shared": False,
    "loop.measure_on": "eval", "tag": "",
}
# §4.2, §4.3, §5 and §6: steps (warm-up, constant, cosine, at 1 %) and rate of the base and of a round
PHASES = {
    "reverse_addition": ((1000, 7000, 2000, 0), 5e-4, (0, 500, 500, 0), 5e-4),
    "forward_addition": ((1000, 7000, 2000, 0), 5e-4, (0, 2000, 1000, 0), 5e-4),
    "copy": ((200, 1300, 500, 0), 5e-4, (0, 0, 500, 0), 5e-4),
    "reverse": ((200, 1300, 500, 0), 5e-4, (0, 0, 500, 0), 5e-4),
    "multiplication": ((1000, 7000, 2000, 0), 5e-5, (0, 2000, 1000, 0), 5e-5),
    "maze_hops": ((2500, 19000, 3500, 0), 5e-4, (500, 3000, 1000, 500), 2e-4),
    "maze_nodes": ((1200, 6000, 2800, 2000), 5e-4, (400, 1600, 1000, 1000), 2e-4),
}
# labeled levels, base set, base weight, labels a round (whether for each level), rounds
DATA = {
    "reverse_addition": ((1, 16), 10_000_000, 16, (50_000, False), 100),
    "forward_addition": ((1, 10), 2_000_000, 10, (50_000, False), 59),
    "copy": ((1, 10), 5_000_000, 10, (20_000, False), 100),
    "reverse": ((1, 10), 5_000_000, 10, (20_000, False), 100),
    "multiplication": ((1, 5), 5_000_000, 5, (50_000, True), 40),
    "maze_hops": ((1, 9), 5_000_000, 1, (50_000, False), 18),
    "maze_nodes": ((10, 30), 5_000_000, 21, (50_000, True), 18),
}
# models, filter, schedule, first seed, problems measured a level (at last), levels past the frontier
LOOP = {
    "reverse_addition": (1, "all", "steps:1", 42, (1024, 1024), 5),
    "forward_addition": (1, "released-length:2", "steps:1", 41, (1024, 1024), 10),
    "copy": (1, "all", "steps:1", 42, (1024, 1024), 11),
    "reverse": (1, "all", "steps:1", 42, (1024, 1024), 11),
    "multiplication": (5, "released-vote:4/5+released-length:1", "pairs", 41, (128, 512), 2),
    "maze_hops": (3, "released-vote:3/3", "steps:1", 41, (1024, 1024), 20),
    "maze_nodes": (3, "released-vote:3/3", "steps:3", 41, (1024, 1024), 67),
}


@every_experiment
def test_what_all_experiments_share(name):
    values = flatten(PAPER[name])
    assert {key: values[key] for key in SHARED} == SHARED
    assert values["model.vocab"] == (140 if "maze" in name else 102) and values["options"] == {}
    assert set(RELEASED) <= set(values) and PAPER[name].task == name


@every_experiment
def test_steps_and_rates_are_the_tables(name):
    """The step after the warm-up is at the peak, the last one of the constant part too; then it falls to 1 %."""
    base, peak, round, round_peak = PHASES[name]
    for r, steps, top in ((0, base, peak), (1, round, round_peak)):
        schedule = PAPER[name].lr_schedule(r)
        warm, constant, cosine, tail = steps
        assert schedule.steps == sum(steps)
        if warm: assert (schedule.rate(0), schedule.rate(1)) == (0, pytest.approx(top / warm, rel=1e-9))
        if constant:
            assert schedule.rate(warm) == schedule.rate(warm + constant - 1) == pytest.approx(top, rel=1e-12)
        half = warm + constant + cosine // 2
        assert schedule.rate(half) == pytest.approx(top * (0.01 + 0.99 / 2), rel=1e-9)
        if tail: assert schedule.rate(sum(steps) - tail) == pytest.approx(0.01 * top, rel=1e-9)
        assert schedule.rate(sum(steps) - 1) == pytest.approx(0.01 * top, rel=2e-3)


@every_experiment
def test_data_are_the_tables(name):
    c = PAPER[name]
    labels = (c.loop.problems, c.loop.each)
    assert ((c.low, c.high), c.size, c.weight, labels, c.loop.rounds) == DATA[name]


@every_experiment
def test_the_loop_is_the_tables(name):
    c = PAPER[name]
    measured = (c.loop.evaluate, c.loop.final)
    assert c.model_seed == c.data_seed
    assert (c.loop.members, c.loop.filter, c.loop.schedule, c.data_seed, measured, c.loop.ahead) == LOOP[name]
    assert (c.loop.stride, c.loop.grid) == ((3, True) if name == "maze_nodes" else (1, False))


@pytest.mark.parametrize("name, step, last", [
    ("reverse_addition", 1, 116), ("forward_addition", 1, 69), ("copy", 1, 110), ("reverse", 1, 110),
    ("maze_hops", 1, 27), ("maze_nodes", 3, 84)])
def test_where_the_frontier_ends(name, step, last):
    """The base is round 0 here: forward addition's round 60 of the paper is 59."""
    c = PAPER[name]
    assert c.loop.parsed_schedule == Steps(step) and c.high + step * c.loop.rounds == last


def test_products_end_at_ten_digits():
    """A group is each pair with its mirror, or the corner: six groups take 5 × 5 to 6 × 6."""
    assert PAPER["multiplication"].loop.parsed_schedule == Pairs()
    assert sum(range(6, 11)) == PAPER["multiplication"].loop.rounds == 40


def small(name, **changes):
    """The members of an experiment at scale paper, but for the size of the models."""
    c = configure(PAPER[name], changes)
    return Ensemble(replace(c, model=replace(SMALL, vocab=c.model.vocab)))


def test_mazes_of_more_nodes_are_measured_at_thirty_levels():
    e = small("maze_nodes")
    for r in range(19): assert len(levels_to_measure(e, 30 + 3 * r, r)) == 30


# accelerated runs

ACCELERATED = {name: {"loop.schedule": "accelerated-by-truth:0.99"} for name in ("copy", "reverse", "reverse_addition")}
ACCELERATED["multiplication"] = {
    "loop.schedule": "pairs:fast", "loop.filter": "released-vote:5/5+released-length:1", "loop.rounds": 18}


@pytest.mark.parametrize("name", ACCELERATED)
def test_an_accelerated_run_differs_in_its_pace(name):
    usual, fast = flatten(PAPER[name]), flatten(accelerated(name))
    assert {key: value for key, value in fast.items() if value != usual[key]} == ACCELERATED[name]


def test_an_accelerated_schedule_is_the_released_one():
    assert accelerated("copy").loop.parsed_schedule == AcceleratedByTruth(0.99)
    groups = accelerated("multiplication").loop.parsed_schedule.groups
    assert len(groups) == 18 == accelerated("multiplication").loop.rounds and groups[-1] == ((10, 10),)


@pytest.mark.parametrize("name", ["forward_addition", "maze_hops", "maze_nodes", "sorting", ""])
def test_what_was_not_accelerated_is_said_so(name):
    sentence = f"^{name} has no accelerated run: copy, reverse, reverse_addition and multiplication have one$"
    with pytest.raises(ValueError, match=sentence): accelerated(name)


# departures

def departure(name):
    found, = [d for d in DEPARTURES if d.name == name]
    return found


def test_departures_are_told_once_and_whole():
    names = [d.name for d in DEPARTURES]
    assert len(set(names)) == len(names)
    for d in DEPARTURES:
        assert len(astuple(d)) == 4 and all(text == text.strip() and text for text in astuple(d)), d.name
        assert len(set(astuple(d))) == 4, d.name


def test_random_numbers_have_names():
    """Any row again, whatever is drawn beside it; and no seeds but 41 and 42, members told apart by number."""
    assert {c.data_seed for c in PAPER.values()} == {41, 42} == {c.model_seed for c in PAPER.values()}
    for name, level in (("copy", 30), ("multiplication", (6, 7)), ("maze_nodes", 33)):
        task, stream = make_task(name), Stream(41, "eval", level=level)
        shape = task.shapes(level)[0]
        again, whole = task.draw(shape, stream, torch.tensor([9, 4])), task.draw(shape, stream, 12)
        assert torch.equal(again.prompt, whole.prompt[[9, 4]]) and torch.equal(again.answer, whole.answer[[9, 4]])
    models = small("multiplication").models
    assert len({float(model.head.weight.detach()[0, 0]) for model in models}) == 5


def test_on_a_processor_answers_are_in_float32(talkative):
    """Where there is no GPU the model itself answers, and just as the plain engine does."""
    model = Decoder(SMALL, 0)
    assert to_bf16_if_cuda(model) is model and {p.dtype for p in model.parameters()} == {torch.float32}
    prompts = Copy().draw(4, Stream(0, "eval", level=4), 50).prompt
    fast, plain = engine_for(model).decode(model, prompts, 9).tokens, decode(model, prompts, 9).tokens
    assert torch.equal(fast, plain) and len(plain.unique(dim=0)) > 1


def test_tf32_is_left_as_torch_has_it():
    for path in Path(self_improve.__file__).parent.glob("*.py"):
        assert not re.search("allow_tf32|set_float32_matmul_precision|fp32_precision", path.read_text()), path
    assert torch.get_float32_matmul_precision() == "highest"


def test_base_data_meet_a_few_evaluation_prompts():
    """Strings of 8 digits: a tenth of five million rows, 9·10⁷ strings. About six are expected to meet one."""
    c = PAPER["copy"]
    rows = c.size // (c.high - c.low + 1)
    expected = 1024 * (1 - (1 - 1 / (9 * 10**7)) ** rows)
    assert round(expected) == 6 and "about six of the 1,024" in departure("overlap of base data and evaluation").why
    # nine digits: a tenth of that
    assert round(1024 * (1 - (1 - 1 / (9 * 10**8)) ** rows), 1) == 0.6
    mixture = small("copy").members[0].mixture()
    level = mixture.stream.integers(c.size, 1, 10)[:, 0] + 1
    index = (level == 8).nonzero()[:, 0]
    assert abs(len(index) - rows) < 5 * (c.size * 0.1 * 0.9) ** 0.5
    base = Copy().draw(8, replace(mixture.stream, level=8), index).prompt[:, :-1].long()
    measured = Copy().draw(8, Stream(c.data_seed, "eval", level=8), 1024).prompt[:, :-1].long()
    place = 10 ** torch.arange(7, -1, -1)
    met = torch.isin(((measured - 3) * place).sum(1), ((base - 3) * place).sum(1)).sum().item()
    assert met == 5, "they stay in; so many are they with seed 42"


@pytest.mark.parametrize("name, level", [("multiplication", (6, 6)), ("maze_hops", 10)])
def test_self_made_problems_are_not_measured(name, level):
    """An eighth of what is measured was labeled too, as released; here streams of two purposes share no problems."""
    c, task = PAPER[name], make_task(name)
    shape = task.shapes(level)[0]
    asked = {tuple(row) for row in task.draw(shape, Stream(c.data_seed, "eval", level=level), 128).prompt.tolist()}
    e = small(name)
    assert len(asked) == 128
    for m, r in ((m, r) for m in e.members for r in (1, 6)):
        stream = replace(m.stream(r), level=level)
        assert stream.purpose == "self"
        assert not asked & {tuple(row) for row in task.draw(shape, stream, 1024).prompt.tolist()}


def sheet(*texts, width):
    """Outputs as text, `$` for EOS: one uint8 row each."""
    rows = [[EOS if ch == "$" else ARITHMETIC.ids[ch] for ch in text] for text in texts]
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows], dtype=torch.uint8)


def ask(*members, width=8):
    outputs = torch.stack([sheet(*texts, width=width) for texts in members])
    return Candidates(outputs[0], outputs, outputs[0], task=Copy())


@pytest.mark.parametrize("filter", ["vote:2/3", "released-vote:2/3"])
def test_padding_does_not_count_in_a_vote(filter, talkative):
    """Answers padded to other widths are equal; and a row has the same votes beside long answers and alone."""
    answers = [["123$", "5$", "77$"], ["123$", "6$", "77$"], ["12$", "7$", "7$"]]
    for width in (4, 9, 30):
        k = parse_filter(filter)(ask(*answers, width=width))
        assert k.index.tolist() == [0, 2] and rows_equal(k.label, sheet("123$", "77$", width=4)).all()
    models = [Decoder(replace(SMALL, vocab=18), seed) for seed in (0, 0, 1)]
    with torch.no_grad(): models[1].head.weight.add_(0.2 * models[2].head.weight)
    prompts = Copy().draw(4, Stream(0, "self"), 40).prompt
    together = parse_filter(filter)(candidates(models, 0, Copy(), prompts, 12, ("votes",)))
    alone = []
    for i in range(40):
        k = parse_filter(filter)(candidates(models, 0, Copy(), prompts[i:i + 1], 12, ("votes",)))
        if len(k): alone.append((i, k.label[0].tolist()))
    assert [(i, row.tolist()) for i, row in zip(together.index.tolist(), together.label, strict=True)] == alone
    assert 0 < len(alone) < 40


@pytest.mark.parametrize("name, ahead", [("reverse_addition", 5), ("forward_addition", 10), ("copy", 11)])
def test_every_length_from_the_easiest_on_is_measured(name, ahead):
    e = small(name)
    for r in (0, 1, 30, e.config.loop.rounds):
        frontier = e.config.high + r
        assert levels_to_measure(e, frontier, r) == list(range(1, frontier + ahead + 1))


def test_products_are_measured_in_one_pass(monkeypatch):
    """128 problems a pair in every round, 512 after the last one."""
    asked = []
    monkeypatch.setattr(ensemble, "measure", lambda *args: asked.append(args[4]) or {})
    e = small("multiplication")
    for r in (0, 1, 39, 40): measure_at(e, [(6, 6)], r)
    assert asked == [128, 128, 128, 512]


def test_a_round_without_a_loss_is_taken_back_even_there(tiny, talkative, monkeypatch):
    """With the setting of scale paper, which keeps rounds whose loss rose."""
    assert not PAPER["copy"].loop.rollback
    broken = broken_training(monkeypatch)
    rounds = iter(SelfImprovement(tiny(loop={"rollback": False})))
    next(rounds)
    broken.add(0)
    bad = next(rounds)
    assert bad.loss == [None] and "model 0: the loss is no number, back to the weights before round 1" in bad.events


@pytest.mark.parametrize("name", ["maze_hops", "maze_nodes"])
def test_mazes_are_kept_where_all_three_models_agree(name):
    c = ask(["1$", "2$", "3$", "12345678"], ["1$", "2$", "4$", "12345678"], ["1$", "5$", "6$", "12345678"])
    vote, = PAPER[name].loop.parsed_filter.filters
    assert (vote.k, vote.m, PAPER[name].loop.members) == (3, 3, 3)
    assert vote(c).index.tolist() == [0, 3]
    assert parse_filter("released-vote")(c).index.tolist() == [0, 3], "the released 70 % of three are three"


def test_a_round_of_reverse_addition_has_the_codes_steps():
    assert PAPER["reverse_addition"].lr_schedule(1).steps == 1000
    d = departure("steps a round of reverse addition")
    assert d.released == "1,500 in the paper, 1,000 in the code" and d.here == "1,000"


def test_a_round_of_strings_has_the_codes_labels():
    d = departure("labels a round of copy and reverse")
    for name in ("copy", "reverse"): assert f"{PAPER[name].loop.problems:,}" == d.here == "20,000"


def test_products_shorter_than_the_longest_are_dropped():
    """One token shorter is enough, beside a vote; in the paper's words it would take more than ten."""
    texts = ["1" * 30 + "$", "1" * 29 + "$", "1" * 20 + "$", "1" * 19 + "$"]
    c = ask(*[texts] * 5, width=40)
    kept = {name: parse_filter(name)(c).index.tolist() for name in ("released-length:1", "length:10")}
    assert kept == {"released-length:1": [0], "length:10": [0, 1, 2]}
    assert PAPER["multiplication"].loop.parsed_filter(c).index.tolist() == [0]


# departure → its test
TESTS = {
    "random numbers": test_random_numbers_have_names,
    "number format of answers": test_on_a_processor_answers_are_in_float32,
    "TF32": test_tf32_is_left_as_torch_has_it,
    "overlap of base data and evaluation": test_base_data_meet_a_few_evaluation_prompts,
    "overlap of self-made and evaluation problems": test_self_made_problems_are_not_measured,
    "padding in a vote": test_padding_does_not_count_in_a_vote,
    "lengths measured": test_every_length_from_the_easiest_on_is_measured,
    "products measured": test_products_are_measured_in_one_pass,
    "a loss that is no number": test_a_round_without_a_loss_is_taken_back_even_there,
    "vote on mazes": test_mazes_are_kept_where_all_three_models_agree,
    "steps a round of reverse addition": test_a_round_of_reverse_addition_has_the_codes_steps,
    "labels a round of copy and reverse": test_a_round_of_strings_has_the_codes_labels,
    "length filter of products": test_products_shorter_than_the_longest_are_dropped,
}


def test_every_departure_has_a_test():
    assert set(TESTS) == {d.name for d in DEPARTURES}
    assert set(Counter(TESTS.values()).values()) == {1} and all(t.__name__.startswith("test_") for t in TESTS.values())
    assert all(globals()[t.__name__] is t for t in TESTS.values()), "a test of this file, which pytest runs"


def test_no_default_is_taken_for_granted():
    """The released switches are not the library's defaults: scale paper sets them."""
    usual = flatten(Config())
    for key in ("in_order", "cap", "train.decay_gains", "train.from_zero", "train.fresh", "train.epsilon",
                "loop.even_levels", "loop.rollback", "loop.filter"):
        assert RELEASED[key] != usual[key], key
