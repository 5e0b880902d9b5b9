"""Labels: who is asked what, what is kept and reported, how sets are stored, and how models are measured."""
from dataclasses import replace

import pytest
import torch

from self_improve import labelling
from self_improve.arithmetic import Multiplication
from self_improve.filter import Chain, Filter, KeepAll, Oracle, keep_where, parse_filter
from self_improve.labelling import (
    LabelSet,
    candidates,
    decode_labels,
    decode_unless_agrees,
    encode_labels,
    label,
    measure,
)
from self_improve.model import Decoder, ModelConfig
from self_improve.sampler import PLAIN, decode
from self_improve.streams import Stream
from self_improve.tasks import ARITHMETIC, EOS, PAD, Copy, draw_problems, rows_equal

SMALL = ModelConfig(layers=1, heads=2, width=16, ffn=16)
CAP = 9


@pytest.fixture
def models(talkative):
    """Three models that agree on many answers: the second and third are the first with a little noise."""
    first, second, third = [Decoder(SMALL, seed) for seed in range(3)]
    with torch.no_grad():
        for model, noise in ((second, 0.03), (third, 0.05)):
            for k, (p, q) in enumerate(zip(model.parameters(), first.parameters(), strict=True)):
                random = torch.randn(q.shape, generator=torch.Generator().manual_seed(k))
                p.copy_(q + noise * q.std() * random if q.dim() > 1 else q)
    return first, second, third


def prompts(n, level=4):
    return Copy().draw(level, Stream(0, "self"), n).prompt


def counting(rows):
    """The plain engine, which notes how many rows are decoded."""
    def counted(model, prompts, *args, **more):
        rows.append(len(prompts))
        return decode(model, prompts, *args, **more)
    return replace(PLAIN, decode=counted)


# asking

@pytest.mark.parametrize("needs, sheets, sure", [
    ((), 1, False), (("votes",), 3, False), (("logprobs",), 1, True), (("votes", "logprobs"), 3, True),
])
def test_models_are_asked_only_what_a_filter_needs(models, needs, sheets, sure):
    c = candidates(models, 1, Copy(), prompts(6), CAP, needs)
    assert len(c.outputs) == sheets and (c.logprobs is not None) == sure
    plain = candidates(models, 1, Copy(), c.prompts, CAP)
    assert torch.equal(c.label, plain.label), "the labels are the labelling model's own"
    assert torch.equal(c.label, decode(models[1], c.prompts, CAP).tokens)


@pytest.mark.parametrize("own", [0, 1, 2])
def test_sheets_stand_in_the_order_of_the_models(models, own):
    c = candidates(models, own, Copy(), prompts(40), CAP, ("votes", "logprobs"))
    for model, tokens, logprob in zip(models, c.outputs, c.logprobs, strict=True):
        alone = decode(model, c.prompts, CAP, logprobs=True)
        assert torch.equal(tokens, alone.tokens)
        torch.testing.assert_close(logprob, alone.logprob, atol=1e-4, rtol=0)
    assert torch.equal(c.label, c.outputs[own])


@pytest.mark.parametrize("needs", [("votes",), ("votes", "logprobs")])
def test_a_vote_decodes_only_what_no_model_gave_before(models, needs):
    """Every sheet is what its model answers alone; a row is decoded again only where its answer is a new one."""
    asked, rows = prompts(300), []
    alone = [decode(m, asked, CAP, logprobs=True) for m in models]
    c = candidates(models, 0, Copy(), asked, CAP, needs, counting(rows))
    assert torch.equal(c.outputs, torch.stack([a.tokens for a in alone])) and torch.equal(c.label, alone[0].tokens)
    if "logprobs" in needs:
        torch.testing.assert_close(c.logprobs, torch.stack([a.logprob for a in alone]), atol=1e-4, rtol=0)
    first, second, third = [[tuple(row) for row in x.tokens.tolist()] for x in alone]
    # what has no end is no answer to agree with
    new = sum(y != x or EOS not in x for x, y in zip(first, second, strict=True))
    newer = sum(z not in (x, y) or EOS not in z for x, y, z in zip(first, second, third, strict=True))
    differ = sum(z != x or EOS not in x for x, z in zip(first, third, strict=True))
    assert rows == [300, new, newer] and 0 < new < 290 and 0 < newer < differ < 290


def test_agreeing_with_an_earlier_output_is_matched_only_once(models):
    """Two earlier models that gave the same are one question, not two."""
    asked, matched = prompts(50), []

    def matches(model, prompts, answers, logprobs=False):
        matched.append(len(prompts))
        return PLAIN.matches(model, prompts, answers, logprobs=logprobs)
    own = decode(models[0], asked, CAP).tokens
    wrong = torch.full_like(own, PAD)
    wrong[:, 0] = EOS
    output = decode_unless_agrees(models[1], asked, [wrong, own, own], CAP, engine=replace(PLAIN, matches=matches))
    assert torch.equal(output.tokens, decode(models[1], asked, CAP).tokens) and output.logprob is None
    assert matched[0] == 50 and len(matched) == 2, "the third question was asked before"
    assert matched[1] <= int((own != wrong).any(1).sum())


def test_the_asker_asks_the_same_models_again(models):
    vote = candidates(models, 1, Copy(), prompts(8), CAP, ("votes",))
    assert torch.equal(vote.ask(vote.prompts), vote.outputs)
    other = prompts(5, level=3)
    assert torch.equal(vote.ask(other, 7), torch.stack([decode(m, other, 7).tokens for m in models]))
    single = candidates(models, 1, Copy(), prompts(8), CAP)
    assert torch.equal(single.ask(other, 7), decode(models[1], other, 7).tokens[None]), "one sheet, one model"


# a round of labels

class Constant(torch.nn.Module):
    """A model that gives one token, and then EOS: any module from tokens to logits can label."""
    def __init__(self, token):
        super().__init__()
        self.token = token
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens):
        answers = (tokens == Copy.vocab.ids["="]).cumsum(1) * self.token
        # behind the answer's first token
        ended = torch.nn.functional.pad((tokens == Copy.vocab.ids["="]).cumsum(1)[:, :-1], (1, 0)) > 0
        return torch.nn.functional.one_hot(answers.masked_fill(ended, EOS), len(Copy.vocab)).float()


def test_labels_are_scored_against_the_truth():
    """A model that always answers `1`: right about every problem of one digit that is a 1."""
    one = Copy.vocab.ids["1"]
    truth = int((Copy().draw(1, Stream(0, "self", level=1), 90).prompt[:, 0] == one).sum())
    assert 0 < truth < 90
    for filter, kept in ((Chain((KeepAll(),)), 90), (Chain((Oracle(),)), truth)):
        sets, report = label([Constant(one)], 0, Copy(), filter, [1], 90, Stream(0, "self"))
        evidence = report.pop("evidence")
        name = "none" if kept == 90 else "oracle"
        counts = dict(made=90, kept=kept, right=truth, possible=truth, raw=truth)
        assert report == counts | {"steps": [[name, kept, truth]], "levels": ["1"]}
        assert evidence["1"]["lengths"] == {"0": [truth, 90 - truth]} and evidence["1"]["positions"] == [90 - truth, 0]
        assert len(evidence["1"]["wrong"]) == 50 and all(output == "1" for _, output in evidence["1"]["wrong"])
        assert len(sets[0]) == len(sets[0].index) == kept
        assert rows_equal(sets[0].block.answer, sets[0].label).sum() == truth


def test_problems_are_spread_over_the_levels(models):
    sets, report = label(models, 0, Copy(), parse_filter("none"), [3, 4, 5], 8, Stream(0, "self", round=1))
    assert report["made"] == 8
    asked = []

    def ask(models, own, task, prompts, cap, needs):
        asked.append((prompts.shape, cap))
        return candidates(models, own, task, prompts, cap, needs)
    label(models, 0, Copy(), parse_filter("none"), [3, 4, 5], 8, Stream(0, "self"), ask=ask, cap=Copy().width)
    assert asked == [((3, 4), 4), ((3, 5), 5), ((2, 6), 6)], "rows and width of each level; the cap is the one given"
    asked.clear()
    label(models, 0, Copy(), parse_filter("none"), [3, 4, 5], 1, Stream(0, "self"), ask=ask)
    assert asked == [((1, 4), Copy().cap(3))], "fewer problems than levels"


def test_labels_come_from_the_stream_of_their_level(models):
    stream = Stream(5, "self", member=1, round=3)
    sets, _ = label(models, 0, Copy(), parse_filter("none"), [4, 5], 40, stream)
    for s in sets:
        block = Copy().draw(s.level, replace(stream, level=s.level), s.index)
        assert torch.equal(block.prompt, s.block.prompt) and torch.equal(block.answer, s.block.answer)


def test_relabel_changes_the_labels_after_the_filter(models):
    seen = []

    def nines(labels, truth, stream):
        seen.append((labels, truth, stream))
        return torch.where((labels != EOS) & (labels != PAD), Copy.vocab.ids["9"], labels)
    plain, report = label(models, 0, Copy(), parse_filter("none"), [4], 40, Stream(0, "self", round=1))
    changed, same = label(models, 0, Copy(), parse_filter("none"), [4], 40, Stream(0, "self", round=1), nines)
    (labels, truth, stream), = seen
    assert same["steps"][0] == report["steps"][0] and same["raw"] == report["raw"]
    assert same["right"] == int(rows_equal(changed[0].label, truth).sum()) == same["steps"][1][2]
    assert torch.equal(labels, plain[0].label) and torch.equal(truth, plain[0].block.answer)
    assert (stream.level, stream.round) == (4, 1)
    assert torch.equal(changed[0].label, nines(labels, truth, stream)) and not torch.equal(changed[0].label, labels)


def test_a_level_without_kept_labels_has_no_set(models):
    sets, report = label(models, 0, Copy(), parse_filter("least:1000"), [4, 5], 40, Stream(0, "self"))
    assert sets == [] and report["made"] == 40 and report["kept"] == 0 and report["raw"] >= 0


def test_truth_reaches_only_the_filter_that_needs_it(models, monkeypatch):
    """With every true answer falsified, an honest filter keeps the same labels."""
    real = draw_problems

    def falsified(*args):
        shape, block = real(*args)
        return shape, replace(block, answer=block.answer.flip(1))
    args = (models, 0, Copy(), parse_filter("vote:2/3+length"), [4], 60, Stream(0, "self"))
    before, _ = label(*args)
    monkeypatch.setattr(labelling, "draw_problems", falsified)
    after, _ = label(*args)
    assert len(before[0]) and torch.equal(before[0].label, after[0].label)
    assert torch.equal(before[0].index, after[0].index)


def test_a_filter_can_ask_other_questions(models):
    """Keep a label if the prompt read backwards has the label read backwards: no model is sure to pass."""
    class Mirror(Filter):
        def __call__(self, candidates):
            mirrored = torch.cat([candidates.prompts[:, :-1].flip(1), candidates.prompts[:, -1:]], 1)
            answers = candidates.ask(mirrored)[0]
            seen.append(answers)
            return keep_where(candidates, rows_equal(answers, candidates.label))
    seen = []
    sets, report = label(models, 2, Copy(), Mirror(), [4], 30, Stream(0, "self"))
    mirrored = Copy().draw(4, Stream(0, "self", level=4), 30).prompt
    mirrored = torch.cat([mirrored[:, :-1].flip(1), mirrored[:, -1:]], 1)
    assert torch.equal(seen[0], decode(models[2], mirrored, Copy().cap(4)).tokens)
    assert report["kept"] == sum(len(s) for s in sets)


# label files

def answers(width, *texts):
    rows = []
    for text in texts:
        ids = [EOS if ch == "$" else ARITHMETIC.ids[ch] for ch in text]
        rows.append(ids + [PAD] * (width - len(ids)))
    return torch.tensor(rows, dtype=torch.uint8)


def test_labels_are_stored_as_differences_from_the_truth():
    stream, index = Stream(5, "self", 1, 4, 3), torch.tensor([0, 2, 7, 9, 700])
    block = Copy().draw(4, stream, index)
    label = torch.zeros(5, 9, dtype=torch.uint8)
    label[:, :5] = block.answer
    # longer and shorter than the truth
    label[1], label[3] = answers(9, "12345678$", "1$")
    tensors = encode_labels([LabelSet(4, index, label, block)])
    assert set(tensors) == {"4/kept", "4/wrong", "4/label"}
    assert len(tensors["4/label"]) == 2 and tensors["4/wrong"].tolist() == [1, 3]
    assert tensors["4/kept"].dtype == tensors["4/wrong"].dtype == torch.int32
    again, = decode_labels(tensors, Copy(), Stream(5, "self", 1, round=3))
    assert again.level == 4 and torch.equal(again.index, index) and torch.equal(again.label, label)
    assert torch.equal(again.block.prompt, block.prompt) and torch.equal(again.block.answer, block.answer)


@pytest.mark.parametrize("width", [3, 5, 6, 9])
def test_labels_without_errors_or_narrower_than_the_truth(width):
    block = Copy().draw(4, Stream(0, "self", level=4, round=1), 3)
    label = torch.zeros(3, max(5, width), dtype=torch.uint8)
    label[:, :5] = block.answer
    if width < 5: label = answers(width, "1$", "22$", "$")
    tensors = encode_labels([LabelSet(4, torch.arange(3), label, block)])
    again, = decode_labels(tensors, Copy(), Stream(0, "self", round=1))
    assert torch.equal(again.label, torch.nn.functional.pad(label, (0, again.label.shape[1] - label.shape[1])))


def test_levels_come_back_in_their_order():
    """Names in a file are sorted as text, where 10 comes before 9; the order of rows decides what training draws."""
    sets = []
    for level in (8, 9, 10, 11):
        block = Copy().draw(level, Stream(0, "self", level=level, round=1), 2)
        sets.append(LabelSet(level, torch.arange(2), block.answer, block))
    tensors = dict(sorted(encode_labels(sets).items()))
    assert [s.level for s in decode_labels(tensors, Copy(), Stream(0, "self", round=1))] == [8, 9, 10, 11]


def test_levels_that_are_pairs_are_stored_too():
    stream = Stream(0, "self", level=(2, 3), round=1)
    block = Multiplication().draw((2, 3), stream, 2)
    tensors = encode_labels([LabelSet((2, 3), torch.arange(2), block.answer, block)])
    assert set(tensors) == {"2,3/kept", "2,3/wrong", "2,3/label"}
    again, = decode_labels(tensors, Multiplication(), Stream(0, "self", round=1))
    assert again.level == (2, 3) and torch.equal(again.label, block.answer)


def test_tensors_that_are_no_labels_are_refused():
    with pytest.raises(ValueError, match="these are no labels: model.embed"):
        decode_labels({"model.embed": torch.zeros(1)}, Copy(), Stream(0, "self"))
    with pytest.raises(ValueError, match="level 'x'"):
        decode_labels({"x/kept": torch.zeros(1)}, Copy(), Stream(0, "self"))


# measuring

def test_measure_gives_members_their_mean_and_the_majority():
    """Three scripted models on ten problems, right about 10, 5 and none: more than half of them are right about 5."""
    right = iter([torch.arange(10) < k for k in (10, 5, 0)])

    def matches(model, prompts, answers): return next(right), None
    measured = measure([Constant(4)] * 3, Copy(), [2], 0, 10, matches=matches)["2"]
    assert list(measured) == ["accuracy", "n", "low", "high", "members", "ensemble"]
    assert measured["accuracy"] == 0.5 and measured["members"] == [1.0, 0.5, 0.0]
    assert measured["ensemble"] == 0.5 and measured["n"] == 10
    assert (measured["low"], measured["high"]) == pytest.approx((0.2366, 0.7634), abs=5e-5)


def test_measure_of_one_model_has_no_members():
    one = Constant(Copy.vocab.ids["1"])
    measured = measure([one], Copy(), [1, 2], 0, 500)
    assert list(measured) == ["1", "2"] and list(measured["1"]) == ["accuracy", "n", "low", "high"]
    problems = Copy().draw(1, Stream(0, "eval", level=1), 500).prompt[:, 0]
    assert measured["1"]["accuracy"] == int((problems == Copy.vocab.ids["1"]).sum()) / 500
    assert measured["2"]["accuracy"] == 0


def test_measure_reads_the_stream_of_its_purpose_and_may_run_elsewhere():
    streams, real = [], labelling.draw_problems
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelling, "draw_problems", lambda *args: streams.append(args[2]) or real(*args))
        measure([Constant(4)], Copy(), [3], 7, 5, purpose="probe")
    assert streams == [Stream(7, "probe", level=3)]
    seen = []

    def each(f, models):
        seen.extend(models)
        return [f(m) for m in models]
    pair = [Constant(4), Constant(5)]
    assert measure(pair, Copy(), [1], 0, 50, each) == measure(pair, Copy(), [1], 0, 50) and seen == pair
