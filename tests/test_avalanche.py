"""A mistake put into the labels of one round, and what becomes of it."""
import json

import pytest
import torch

from self_improve.avalanche import (
    ByHand,
    Editor,
    Mistake,
    Spoil,
    by_hand_figure,
    copied_share,
    find_mistake,
    make_mistake,
    recorded_by_hand,
)
from self_improve.blocks import EOS, PAD
from self_improve.experiments import experiment
from self_improve.records import Run, data_folders
from self_improve.streams import Stream
from self_improve.tasks import draw_problems

TASK = experiment("copy").parsed_task
ZERO = TASK.vocab.ids["0"]
BY_HAND = [path.parent for data in data_folders() for path in sorted((data / "by_hand").glob("*/copied.json"))]


def rows(*texts):
    """Labels as the task writes them."""
    width = max(map(len, texts)) + 1
    out = torch.full((len(texts), width), PAD, dtype=torch.uint8)
    for row, text in zip(out, texts, strict=True):
        row[: len(text)] = torch.tensor([ZERO + int(c) for c in text])
        row[len(text)] = EOS
    return out


def shown(labels): return [TASK.show(row).rstrip("$") for row in labels]


@pytest.mark.parametrize("typed, mistake", [
    ("2345", Mistake("left out", 0)), ("1345", Mistake("left out", 1)), ("1234", Mistake("left out", 4)),
    ("112345", Mistake("written twice", 0)), ("123455", Mistake("written twice", 4)),
    ("12745", Mistake("changed", 2, 4)), ("02345", Mistake("changed", 0, 9)), ("12340", Mistake("changed", 4, 5))])
def test_an_edit_is_found_and_made_again(typed, mistake):
    assert find_mistake("12345", typed) == mistake
    assert shown(make_mistake(mistake, rows("12345"), ZERO)) == [typed]


@pytest.mark.parametrize("typed", ["", "x", "12345", "123", "54321", "1234567", "12335x", "712345", "١٢"])
def test_what_is_no_single_edit(typed):
    with pytest.raises(ValueError): find_mistake("12345", typed)


def test_equal_neighbours_are_left_out_alike():
    found = find_mistake("12225", "1225")
    assert shown(make_mistake(found, rows("12225"), ZERO)) == ["1225"]


@pytest.mark.parametrize("mistake", [Mistake("left out", 3), Mistake("written twice", 3), Mistake("changed", 3, 1)])
def test_mistakes_in_many_labels_at_once(mistake):
    labels = rows("1234567", "12", "9876")
    made = make_mistake(mistake, labels, ZERO)
    assert made.shape == (3, 9) and made.dtype == torch.uint8
    for before, after in zip(shown(labels), shown(made), strict=True):
        # a label that is too short has no such place
        if len(before) <= 3: assert before == after
        else: assert find_mistake(before, after) == mistake
    assert (made == EOS).sum() == 3, "every label still ends once"


def test_labels_of_round_one_alone_are_spoiled_and_of_the_asked_model():
    labels = rows(*[str(k) for k in range(10000, 10010)])
    spoil = Spoil(Mistake("changed", 4, 1), 3, ZERO, first=8, member=1)
    for round, member, changed in ((1, 1, [0, 8, 9]), (1, 0, []), (2, 1, []), (0, 1, [])):
        found = spoil(labels, labels, Stream(0, "self", member, round=round))
        differ = [k for k, (a, b) in enumerate(zip(shown(labels), shown(found), strict=True)) if a != b]
        assert differ == changed
    assert len(spoil(labels[:0], labels[:0], Stream(0, "self", 1, round=1))) == 0
    assert len(spoil(labels[:2], labels[:2], Stream(0, "self", 1, round=1))) == 2


def test_the_share_counts_just_this_mistake(monkeypatch):
    """A model that leaves out the fourth digit in every third answer, and is right or wrong otherwise in the rest."""
    _, block = draw_problems(TASK, 9, Stream(0, "copied", level=9), 300)
    answers = torch.nn.functional.pad(block.answer, (0, 1), value=PAD)
    answers[::3] = make_mistake(Mistake("left out", 3), block.answer[::3], ZERO)
    answers[1::3] = make_mistake(Mistake("left out", 4), block.answer[1::3], ZERO)
    said = type("Said", (), {"tokens": answers})
    monkeypatch.setattr("self_improve.avalanche.decode", lambda *_: said)
    share = copied_share([None], TASK, Mistake("left out", 3), 9)[0]
    # equal neighbours make the two mistakes the same
    same = (block.answer[1::3, 3] == block.answer[1::3, 4]).sum()
    assert share == pytest.approx((100 + int(same)) / 300)


def test_a_loop_by_hand_starts_from_the_recorded_base_and_differs_in_its_name():
    asked = ByHand(Mistake("left out", 3), 5, "none")
    loop = asked.loop()
    assert loop.base is not None and loop.config.tag == "digit-4-left-out-5-none"
    assert loop.overrides["relabel"]["class"].endswith("Spoil")
    assert ByHand(Mistake("left out", 3), 5, "none", 0).name == "digit-4-left-out-5-none-model-0"
    # what differs has another name
    other = ByHand(Mistake("left out", 3), 5, "none", first=7, rounds=2)
    assert other.name == "digit-4-left-out-5-none-from-7-2-rounds"


# what is recorded

def test_there_are_recorded_experiments(): assert len(BY_HAND) >= 6


@pytest.mark.parametrize("folder", BY_HAND, ids=lambda p: p.name)
def test_a_recorded_experiment_is_whole(folder):
    run = Run(folder)
    shares = json.loads((folder / "copied.json").read_text())
    assert run.done and len(shares) == len(run.rounds) and all(len(s) == run.config.loop.members for s in shares)
    assert run.config.tag == folder.name and run.rounds[0].base_from.startswith("copy-tiny")
    assert not list(folder.glob("*/*.safetensors"))
    assert by_hand_figure(run.rounds, shares, None).axes


def ended(mistake, copies, filter):
    """Precision after the last round of a recorded experiment."""
    for data in data_folders():
        place = data / "by_hand" / ByHand(mistake, copies, filter).name
        if place.exists(): return Run(place).rounds[-1].precision
    raise AssertionError("not recorded")


def test_what_the_notebook_says_of_the_records():
    """A digit left out is learned from 50 labels even with a vote, from 5 it is not; a changed digit is not learned."""
    out, changed = Mistake("left out", 3), Mistake("changed", 3, 1)
    assert ended(out, 5, "vote") > 0.99 > 0.9 > ended(out, 50, "vote")
    assert ended(changed, 50, "vote") > 0.99
    assert ended(out, 50, "none") < 0.5 * ended(changed, 50, "none")


def test_what_is_not_recorded_is_told():
    with pytest.raises(ValueError, match="digit 2 left out, in 7 labels of each model, filter vote is not recorded"):
        recorded_by_hand(ByHand(Mistake("left out", 1), 7, "vote"))
    with pytest.raises(ValueError, match="no round is over yet"): by_hand_figure([], [], None)


# the controls

def test_the_editor_follows_its_slider_and_refuses_what_is_no_edit():
    editor = Editor()
    assert all(len(label) for label in editor.labels)
    editor.row.value = 3
    assert editor.text.value == editor.labels[3]
    editor.text.value = "12x"
    editor.live.start()
    editor.live.wait(20)
    assert "is no label" in editor.live.said.value and editor.live.rounds == []
    editor.row.value = 2
    assert editor.live.said.value == "press start"
