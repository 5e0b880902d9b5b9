"""Candidates and what they hold, the two simplest filters, and how a filter is scored."""
import dataclasses

import pytest
import torch

from self_improve.scoring import FILTERS, Candidates, Filter, KeepAll, Kept, Oracle, keep_where, register_filter, score
from self_improve.tasks import ARITHMETIC, EOS, PAD, Copy, Truth

WIDTH = 12


def sheet(*texts):
    """Outputs as text, `$` for EOS: one uint8 row each."""
    rows = [[EOS if ch == "$" else ARITHMETIC.ids[ch] for ch in t] for t in texts]
    return torch.tensor([r + [PAD] * (WIDTH - len(r)) for r in rows], dtype=torch.uint8)


def ask(*members, own=0):
    """Candidates from the outputs of each member."""
    outputs = torch.stack([sheet(*m) for m in members])
    prompts = torch.zeros(len(members[0]), 3, dtype=torch.uint8)
    return Candidates(prompts, outputs, outputs[own], None, Copy())


# candidates

def test_which_labels_end_and_who_agrees():
    c = ask(["1$", "2", "3$"], ["1$", "2$", "4$"])
    assert c.ended.tolist() == [True, False, True] and len(c) == 3
    assert c.agree.tolist() == [[True, True, True], [True, False, False]]


def test_taking_rows_takes_all_that_belongs_to_them():
    c = dataclasses.replace(ask(["1$", "2$", "3$"], ["4$", "5$", "6$"]), logprobs=torch.arange(72.0).view(2, 3, WIDTH))
    some = c.take(Kept(torch.tensor([0, 2]), sheet("7$", "8$")))
    assert torch.equal(some.label, sheet("7$", "8$")) and torch.equal(some.outputs, c.outputs[:, [0, 2]])
    assert torch.equal(some.logprobs, c.logprobs[:, [0, 2]]) and some.task == c.task and len(some.prompts) == 2


# asking the models again

def test_candidates_ask_the_models_again():
    asked = []

    def asker(prompts, cap):
        asked.append((prompts, cap))
        return torch.full((2, len(prompts), cap), 5, dtype=torch.uint8)
    c = dataclasses.replace(ask(["1$", "2$", "3$"]), asker=asker)
    assert c.ask(c.prompts).shape == (2, 3, WIDTH), "by default as many tokens as the labels have"
    assert c.ask(c.prompts[:1], 4).shape == (2, 1, 4)
    assert [cap for _, cap in asked] == [WIDTH, 4]
    some = c.take(Kept(torch.tensor([1]), c.label[1:2]))
    assert some.ask(some.prompts).shape == (2, 1, WIDTH), "a chain hands the asker on"


def test_without_an_asker_nobody_can_be_asked():
    with pytest.raises(ValueError, match="no asker"): ask(["1$"]).ask(sheet("1$"))


# two simple filters

def test_no_filter_keeps_every_label_that_ends():
    kept = KeepAll()(ask(["1$", "2", "3$", "$"]))
    assert kept.index.tolist() == [0, 2, 3] and len(kept) == 3 and kept.index.dtype == torch.int64


def test_truth_is_taken_by_the_oracle_alone():
    c, truth = ask(["1$", "2$"]), Truth(sheet("1$", "3$"))
    assert Oracle()(c, truth).index.tolist() == [0] and Oracle.needs == ("truth",) and KeepAll.needs == ()
    with pytest.raises(TypeError): KeepAll()(c, truth)
    with pytest.raises(TypeError): Oracle()(c)


def test_a_filter_needs_a_call_and_nothing_else():
    class Second(Filter):
        def __call__(self, candidates): return keep_where(candidates, torch.arange(len(candidates)) == 1)
    assert Second()(ask(["1$", "2$"])).index.tolist() == [1] and Second.needs == ()
    Second().validate(Copy(), 1, 1)
    with pytest.raises(NotImplementedError): Filter()(ask(["1$"]))


def test_filters_register_under_a_name():
    before = dict(FILTERS)
    try:
        @register_filter("first-test")
        class First(Filter): pass
        assert FILTERS["first-test"] is First
        with pytest.raises(ValueError, match="the filter name 'none' belongs to KeepAll"):
            register_filter("none")(First)
    finally:
        FILTERS.clear()
        FILTERS.update(before)


# scores

def test_score():
    """Five problems; the models answer three of them, the filter keeps three labels of which two are right."""
    c = ask(["1$", "2$", "3$", "4$", "5"], ["1$", "9$", "8$", "0$", "5"])
    truth = Truth(sheet("1$", "9$", "3$", "7$", "5$")[:, :2])
    s = score(c, Kept(torch.tensor([0, 1, 3]), sheet("1$", "9$", "4$")), truth)
    assert (s.made, s.kept, s.right, s.possible) == (5, 3, 2, 3)
    assert (s.share, s.precision, s.recall) == (3 / 5, 2 / 3, 2 / 3)


def test_score_of_nothing():
    c = ask(["1$"])
    nothing = keep_where(c, torch.tensor([False]))
    s = score(c, nothing, Truth(sheet("2$")))
    assert (s.share, s.precision, s.recall) == (0.0, None, None)
    assert score(c, nothing, Truth(sheet("1$"))).recall == 0.0
