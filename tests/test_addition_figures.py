"""Forward addition, why length, and the loop as a drawing: from records, at their extremes and at random settings."""
import itertools
import re
import warnings
from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from self_improve import framework, length_figures
from self_improve.addition_figures import (
    FORWARD_ADDITION,
    climb_rows,
    draw_arms,
    label_shares,
    paper_margin,
    percents,
)
from self_improve.blocks import PAD, Truth
from self_improve.figures import Arms, arms_of, mean_curve, only, paper_numbers
from self_improve.filter import Length
from self_improve.framework import (
    FRAMEWORK,
    KINDS,
    LAST_STEP,
    Example,
    answering_rounds,
    asked_again,
    draw_framework,
    example_of,
    framework_figure,
    output_line,
    rows_of_kind,
    shorten,
)
from self_improve.gallery import draw_figure, explore_figure
from self_improve.length_figures import (
    ENDLESS,
    EQUAL,
    LONG,
    MOST_BEYOND,
    MOST_SLACK,
    SHORT,
    WHY_LENGTH,
    counted_rounds,
    draw_why_length,
    length_figure,
    length_rows,
    length_scores,
    outputs_beyond,
    pooled_lengths,
    wrong_kinds,
)
from self_improve.plots import Picture
from self_improve.records import Run, recorded
from self_improve.rounds import Round
from self_improve.scoring import Candidates, score
from self_improve.widgets import explore

# a figure repeats no run: older code may have made it
pytestmark = pytest.mark.filterwarnings("ignore:.*may not repeat its numbers")


@pytest.fixture(scope="module")
def voted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {title: runs[0] for title, runs in arms_of(FRAMEWORK, seeds=(0,)).runs.items()}


@pytest.fixture(scope="module")
def sums(voted): return voted["forward addition"]


@pytest.fixture(scope="module")
def lengths():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return arms_of(WHY_LENGTH)


def climbing(run, shares, seed=0):
    """A run with other rounds and another seed: accuracy at levels 1 to 6, one round each."""
    rounds = []
    for r, share in enumerate(shares):
        accuracy = {str(level): {"accuracy": share / level, "n": 9} for level in range(1, 7)}
        report = [{"made": 10, "kept": 5 if share else 0, "right": 4 if share else 0, "possible": 10}]
        rounds.append(Round(r, [3 + r], 3 + r, 5, loss=[0.1], label_accuracy=[share / 2] if r else [],
                            filter=report if r else [], accuracy=accuracy))
    other = object.__new__(Run)
    other.__dict__.update(run.__dict__, rounds=rounds, config=replace(run.config, data_seed=seed))
    return other


def texts(ax): return [text.get_text() for text in ax.texts]


# the paper's numbers

def test_the_papers_numbers_have_tags():
    for name in ("forward_addition", "length_filter"):
        known = paper_numbers(name)
        for entry in known["facts"] + known.get("curves", []):
            assert set(entry["tag"].split()) <= {"A", "B", "C", "F", "N", "V"} and entry["tag"]
    with pytest.raises(ValueError, match="there is no data/paper/nothing.json"): paper_numbers("nothing")


def test_the_papers_margins():
    margins = {known["round"]: paper_margin(known) for known in paper_numbers("forward_addition")["curves"]}
    assert margins == {1: "1", 10: "0 to 1", 20: "2", 30: "4", 40: "3", 50: "6"}
    # frontier of round r is 9 + r
    assert all(known["frontier"] == 9 + known["round"] for known in paper_numbers("forward_addition")["curves"])


# forward addition

def test_means_and_percents():
    assert mean_curve([{1: 1.0, 2: 0.5}, {1: 0.5, 3: 0.1}]) == {1: 0.75}
    assert percents([None, 1.0, 0.234]) == "– 100 23"


@pytest.mark.parametrize("round, drawn", [(-1, 5), (0, 0), (3, 3), (5, 5), (99, 5)])
def test_arms_are_drawn_after_a_round(sums, round, drawn):
    arms = Arms({"none": [], "length and vote": [sums]}, {"none": ["self-improve run x"], "length and vote": []})
    figure = draw_arms(FORWARD_ADDITION, arms, round)
    missing, panel, quality = figure.axes
    assert "not recorded yet:\nself-improve run x" in texts(missing)[0]
    assert panel.get_title() == f"length and vote, round {drawn}"
    # the earlier rounds, the mean, and the line at the frontier
    assert len(panel.lines) == drawn + 2 and set(panel.lines[-1].get_xdata()) == {sums.rounds[drawn].frontier}
    bold = dict(zip(*panel.lines[-2].get_data(), strict=True))
    assert bold == {int(k): pytest.approx(v["accuracy"]) for k, v in sums.rounds[drawn].accuracy.items()}
    assert quality.get_xlim() == (0.5, 5.5), "the axes stay where they are while a slider moves"
    kept = dict(zip(*quality.lines[1].get_data(), strict=True))
    assert kept == {r.round: r.precision for r in sums.rounds[1 : drawn + 1] if r.precision is not None}


def test_several_seeds_have_a_band_and_may_end_at_different_rounds(sums):
    runs = [climbing(sums, (1.0, 0.8, 0.6)), climbing(sums, (0.8, 0.4), seed=7)]
    figure = draw_arms(FORWARD_ADDITION, Arms({"a": runs}, {"a": []}))
    panel, quality = figure.axes
    assert panel.get_title() == "a, round 2" and "seed 0, 7" in panel.get_legend_handles_labels()[1]
    assert len(panel.collections) == 1, "a band"
    # two frontiers, since the second run stays at its last round
    assert {line.get_xdata()[0] for line in panel.lines[-2:]} == {4, 5}
    assert label_shares(runs, 1) == (pytest.approx(0.3), 0.8) and label_shares(runs, 2) == (pytest.approx(0.3), 0.8)
    assert label_shares(runs, 9) == (None, None)


def test_a_round_that_keeps_nothing_has_a_cross(sums):
    quality = draw_arms(FORWARD_ADDITION, Arms({"a": [climbing(sums, (1.0, 0.5, 0.0))]}, {"a": []})).axes[-1]
    assert list(quality.lines[1].get_xdata()) == [1] and list(quality.lines[2].get_xdata()) == [2]


def test_without_a_run_or_a_round_one_sentence(sums):
    empty = Arms({"none": [], "length and vote": []}, {"none": ["self-improve run x"], "length and vote": []})
    with pytest.raises(ValueError, match="forward_addition is not recorded yet: self-improve run x"):
        draw_arms(FORWARD_ADDITION, empty)
    with pytest.raises(ValueError, match="has no round yet"):
        draw_arms(FORWARD_ADDITION, Arms({"a": [climbing(sums, ())]}, {"a": []}))


def test_one_arm_alone(sums):
    arms = Arms({"none": [], "length and vote": [sums]}, {"none": ["x"], "length and vote": []})
    assert only(arms, "all") is arms
    assert only(arms, "length and vote").runs == {"length and vote": [sums]}
    assert len(draw_arms(FORWARD_ADDITION, only(arms, "length and vote")).axes) == 2
    with pytest.raises(ValueError, match="no arm is called 'vote': the arms are none, length and vote"):
        only(arms, "vote")


def test_rows_say_what_the_record_says(sums):
    row = climb_rows(Arms({"a": [sums], "b": []}, {}))[0]
    last = sums.rounds[-1]
    assert row["frontier"] == last.frontier and row["accuracy there"] == f"{100 * last.at(last.frontier):.0f} %"
    assert row["right after it"].split()[-1] == "–" and len(row["kept"].split()) == last.round


# why length

def test_kinds_of_wrong_outputs():
    counts = {"-2": [0, 3], "-1": [0, 4], "0": [90, 2], "3": [0, 1], "endless": [0, 5]}
    assert wrong_kinds(counts) == {SHORT: 7, EQUAL: 2, LONG: 1, ENDLESS: 5}
    assert sum(wrong_kinds({}).values()) == 0


def test_counts_add_up_to_the_labels(lengths):
    for runs in lengths.runs.values():
        for run in runs:
            for r in counted_rounds([run]):
                counts, reports = pooled_lengths([run], r), run.rounds[r].filter
                right = sum(right for right, _ in counts.values())
                made = sum(report["made"] for report in reports)
                assert sum(map(sum, counts.values())) == made
                assert right == round(sum(run.rounds[r].label_accuracy) / len(reports) * made)
    for row in length_rows(lengths): assert row["wrong outputs"] > 0
    assert length_rows(Arms({"a": []}, {})) == []


@pytest.mark.parametrize("round, drawn", [(-1, (10, 6)), (0, (1, 1)), (1, (1, 1)), (4, (4, 4)), (99, (10, 6))])
def test_lengths_are_drawn_after_a_round(lengths, round, drawn):
    figure = draw_why_length(WHY_LENGTH, lengths, round)
    rows = [figure.axes[0:2], figure.axes[2:4]]
    for (left, right), title, r in zip(rows, lengths.runs, drawn, strict=False):
        assert left.get_title().startswith(f"{title}, round {r}: ")
        # with the legend's two empty bars, the shares of all outputs add up to 1
        assert sum(bar.get_height() for bar in left.patches) == pytest.approx(1)
        assert sum(bar.get_height() for bar in right.patches) == pytest.approx(len(texts(right)))
    limits = draw_why_length(WHY_LENGTH, lengths).axes[0].get_xlim()
    assert figure.axes[0].get_xlim() == limits, "the axes stay where they are while a slider moves"


def test_older_records_and_missing_ones_say_so(sums):
    arms = Arms({"a": [sums], "b": []}, {"a": [], "b": ["self-improve run b"]})
    assert counted_rounds([sums]) == []
    figure = draw_why_length(WHY_LENGTH, arms)
    assert texts(figure.axes[0]) == ["recorded before lengths were counted"]
    assert "self-improve run b" in texts(figure.axes[2])[0]
    with pytest.raises(ValueError, match="has no round yet"):
        draw_why_length(WHY_LENGTH, Arms({"a": [climbing(sums, ())]}, {"a": []}))
    with pytest.raises(ValueError, match="why_length is not recorded yet"):
        draw_why_length(WHY_LENGTH, Arms({"a": []}, {"a": ["x"]}))


def test_outputs_without_an_end_stand_apart():
    ax = Picture().subplots()
    length_figures.draw_lengths(ax, {"-1": [0, 1], "0": [2, 0], "endless": [0, 1]}, -1, 0)
    heights = {}
    for bar in ax.patches:
        middle = round(bar.get_x() + bar.get_width() / 2)
        heights[middle] = heights.get(middle, 0) + bar.get_height()
    assert heights == {-1: 0.25, 0: 0.5, 1: 0.25}


def test_the_filter_is_the_projects_own(sums):
    asked, truth = outputs_beyond(sums, 0, 2, 100)
    assert len(asked) == 100
    asked, truth = outputs_beyond(sums, 0, 2)
    scores = length_scores(sums, 0, 2)
    assert list(scores) == list(range(MOST_SLACK + 1))
    for slack, s in scores.items(): assert s == score(asked, Length(slack)(asked), truth)
    # more slack keeps more, and loses nothing that is right
    for a, b in itertools.pairwise(scores.values()): assert a.kept <= b.kept and a.right <= b.right


@pytest.mark.parametrize("title, beyond, slack", [
    ("copy", 1, 0), ("copy", MOST_BEYOND, MOST_SLACK), ("reverse addition", MOST_BEYOND, 0),
    ("forward addition", 2, 1)])
def test_the_filter_is_drawn(voted, title, beyond, slack):
    left, right = length_figure(voted[title], beyond, slack).axes
    s = length_scores(voted[title], 0, beyond)[slack]
    assert right.get_title().startswith(f"slack {slack} keeps {s.kept} of {s.made}: ")
    asked, truth = outputs_beyond(voted[title], 0, beyond)
    # the shaded range is a patch of height 1
    shares = sum(bar.get_height() for bar in left.patches) - (1 if s.kept else 0)
    assert shares == pytest.approx(float(asked.ended.double().mean()))
    assert f"{beyond} past the frontier" in left.get_title()


@pytest.mark.parametrize("beyond, slack, sentence", [
    (0, 0, "beyond=0 must be at least 1"), (1, -1, "slack=-1 must be from 0"), (1, MOST_SLACK + 1, "must be from 0")])
def test_what_cannot_be_filtered(sums, beyond, slack, sentence):
    with pytest.raises(ValueError, match=sentence): length_figure(sums, beyond, slack)


def test_a_model_that_was_not_kept_cannot_be_asked(sums):
    with pytest.raises(ValueError, match="003-0.safetensors is missing"): length_figure(sums, 1, 0, round=3)


def test_outputs_that_never_end_are_no_bar_and_no_label(sums, monkeypatch):
    asked, truth = outputs_beyond(sums, 0, 1, 20)
    endless = torch.full_like(asked.label, 9)
    none = Candidates(asked.prompts, endless[None], endless, None, asked.task, asked.ask)
    monkeypatch.setattr(length_figures, "outputs_beyond", lambda *_: (none, truth))
    left, right = length_figure(sums, 1, 0).axes
    assert right.get_title() == "slack 0 keeps 0 of 20: none" and all(not bar.get_height() for bar in left.patches)


# the loop as a drawing

def test_the_models_answer_as_they_did(voted):
    """The kept labels of copying are those of the record; of sums half of them are asked again."""
    assert answering_rounds(voted["copy"]) == [1, 11]
    for title, run in voted.items():
        for r in answering_rounds(run):
            asked, truth, kept = asked_again(run, r)
            told = run.rounds[r].filter[0]
            assert abs(len(kept) / len(asked) - told["kept"] / told["made"]) <= 0.02, title
            assert len(asked.outputs) == 3 and len(asked) <= framework.MOST_ASKED


def test_each_problem_is_of_one_kind(sums):
    asked, truth, kept = asked_again(sums, 1)
    rows = torch.cat([rows_of_kind(asked, truth, kept, kind) for kind in KINDS])
    assert rows.sort().values.tolist() == list(range(len(asked)))
    example = example_of(sums, 1, "kept and wrong")
    assert len(set(example.outputs)) == 1 and example.label == example.outputs[0] != example.truth
    a, b = example.prompt.rstrip("=").split("+")
    assert int(a) + int(b) == int(example.truth)
    dropped = example_of(sums, 1, "dropped")
    assert dropped.label == ""
    right = example_of(sums, 1, "kept and right", 2)
    assert right.label == right.truth and right != example_of(sums, 1, "kept and right", 1)


@pytest.mark.parametrize("round, kind, number, sentence", [
    (1, "kept and wrong", 1, "problem 1 that was kept and wrong: of 1000 problems of round 1 there is none"),
    (1, "dropped", 0, "problem 0 that was dropped: of 1000 problems of round 1 there are"),
    (1, "dropped", 5000, "problem 5000"), (1, "lost", 1, "unknown kind 'lost': the kinds are kept and right"),
    (0, "dropped", 1, "round 0 has no labels"), (99, "dropped", 1, "has rounds 1 to 64"),
    (3, "dropped", 1, "002-0.safetensors is missing")])
def test_problems_that_a_round_does_not_have(voted, round, kind, number, sentence):
    with pytest.raises(ValueError, match=sentence): example_of(voted["copy"], round, kind, number)


def test_wrong_characters_lie_over_the_right_place():
    line = output_line("m ", "1244", "12345")
    assert line.text == "m 1244·  ✗" and line.wrong == "    4 ·"
    assert output_line("", "12", "12").text == "12  ✓" and not output_line("", "12", "12").wrong.strip()
    long = output_line("", "1" * 50, "1" * 40 + "2" * 10)
    assert len(long.text) - 3 == len(long.wrong) == len(shorten("1" * 50)) == framework.ROOM
    assert long.text.startswith("1" * 12 + "⋯") and long.wrong == " " * 14 + "1" * 10
    hidden = output_line("", "1" * 50, "1" * 20 + "2" * 5 + "1" * 25)
    assert hidden.wrong.strip() == "⋯"


def boxes_of(figure):
    """Where each text of the loop is, in pixels; a red text lies over a black one and is left out."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    found = []
    for text in figure.axes[0].texts:
        if text.get_text().strip() and text.get_color() != "C3":
            found.append((text.get_text(), text.get_window_extent(renderer)))
    frames = [patch.get_window_extent(renderer) for patch in figure.axes[0].patches[:4]]
    effect = figure.axes[1].get_tightbbox(renderer)
    return found, frames, effect, figure.bbox


def assert_legible(figure):
    """No two texts overlap, each is in the picture, and one that begins in a box ends in it."""
    found, frames, effect, page = boxes_of(figure)
    for (a, one), (b, other) in itertools.combinations(found, 2):
        apart = one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
        assert apart, f"{a!r} overlaps {b!r}"
    for text, place in found:
        assert page.x0 <= place.x0 and place.x1 <= page.x1 and page.y0 <= place.y0 and place.y1 <= page.y1, text
        assert not place.overlaps(effect), f"{text!r} overlaps the panel"
        for frame in frames:
            if place.overlaps(frame):
                inside = frame.x0 <= place.x0 and place.x1 <= frame.x1 and frame.y0 <= place.y0
                assert inside and place.y1 <= frame.y1, f"{text!r} leaves its box"
    assert not any(effect.overlaps(frame) for frame in frames) and page.x1 >= effect.x1 and page.y1 >= effect.y1


@pytest.mark.parametrize("title", ["copy", "reverse addition", "forward addition"])
def test_all_text_is_legible(voted, title):
    """After the last step, which has the texts of all others."""
    run = voted[title]
    for r, kind in itertools.product(answering_rounds(run), KINDS):
        asked, truth, kept = asked_again(run, r)
        if not len(rows_of_kind(asked, truth, kept, kind)): continue
        assert_legible(framework_figure(run, r, LAST_STEP, example_of(run, r, kind)))


def test_every_recorded_run_can_be_drawn():
    """Without an example, one run of each kind at its last round: any task, any filter, any number of models."""
    kinds = {}
    for entry in recorded():
        run = Run(entry["folder"])
        kinds[run.config.task, run.config.loop.filter, run.config.loop.members] = run
    assert len(kinds) > 8
    for run in kinds.values(): assert_legible(framework_figure(run, -1))


def test_long_answers_and_many_models_fit(sums):
    example = Example("1" * 99 + "=", ["1" * 80, "2" * 99, "3" * 7, "4" * 99, "5" * 99], "1" * 80, "1" * 99)
    figure = framework_figure(sums, 1, LAST_STEP, example)
    assert_legible(figure)
    assert sum(text.startswith("model ") for text in texts(figure.axes[0])) == framework.MOST_MODELS


def test_steps_come_one_after_the_other(sums):
    example = example_of(sums, 1, "dropped")
    told = [" ".join(texts(framework_figure(sums, 1, step, example).axes[0])) for step in range(LAST_STEP + 1)]
    marks = [example.prompt, "different answers", "This problem is dropped.", "This problem is not among them.",
             "next round: level 8"]
    for step, mark in enumerate(marks): assert [mark in text for text in told] == [k >= step for k in range(5)], mark
    curves = [len(framework_figure(sums, 1, step).axes[1].lines) for step in range(LAST_STEP + 1)]
    assert curves == [2, 2, 2, 2, 4], "accuracy after the round is shown last"


def test_a_round_that_keeps_nothing_trains_nothing(sums):
    told = " ".join(texts(framework_figure(sums, 3).axes[0]))
    assert "No model has a label to learn from" in told and "none was kept" in told
    assert "next round" not in " ".join(texts(framework_figure(sums, 5).axes[0]))


def test_who_gets_the_problems(sums):
    run = climbing(sums, (1.0, 0.5))
    one = run.rounds[1]
    two = replace(one, filter=2 * one.filter)
    first = [framework.problem_lines(run, r, None)[0].text for r in (one, two)]
    assert first == ["The model gets 10,", "Each of 2 models gets 10 of its own,"]
    run.config = replace(run.config, loop=replace(run.config.loop, shared=True))
    assert framework.problem_lines(run, two, None)[0].text == "All 2 models get the same 10,"


@pytest.mark.parametrize("round, step, sentence", [(1, 5, "step 5 must be"), (1, -1, "step -1 must be")])
def test_steps_that_do_not_exist(sums, round, step, sentence):
    with pytest.raises(ValueError, match=sentence): framework_figure(sums, round, step)


def test_a_run_with_its_base_alone(sums):
    for shares, sentence in (((1.0,), "has only its base"), ((), "has no round yet")):
        alone = climbing(sums, shares)
        with pytest.raises(ValueError, match=sentence): framework_figure(alone, 1)
        with pytest.raises(ValueError, match=sentence):
            draw_framework(FRAMEWORK, Arms({"a": [alone]}, {"a": []}))


@pytest.mark.parametrize("round, drawn, asked", [(-1, 11, True), (0, 1, True), (1, 1, True), (2, 2, False),
                                                 (64, 64, False), (999, 64, False)])
def test_the_gallery_shows_a_problem_where_there_are_models(voted, round, drawn, asked):
    figure = draw_framework(FRAMEWORK, Arms({"copy": [voted["copy"]]}, {}), round)
    told = texts(figure.axes[0])
    assert any(text.startswith(f"copy, round {drawn}: ") for text in told)
    assert any(text.startswith("model 1") for text in told) == asked
    assert ("no answer can be shown." in told) != asked
    assert_legible(figure)


# controls

def test_controls_at_random_settings(voted, lengths):
    at = torch.Generator().manual_seed(0)

    def travel(title, kind, number, step):
        return framework_figure(voted[title], 1, step, example_of(voted[title], 1, kind, number))

    def filtered(title, beyond, slack): return length_figure(voted[title], beyond, slack)

    views = [explore(travel, title=list(voted), kind=list(KINDS), number=range(1, 11), step=range(LAST_STEP + 1)),
             explore(filtered, title=list(voted), beyond=range(1, MOST_BEYOND + 1), slack=range(MOST_SLACK + 1)),
             explore(lambda round: draw_why_length(WHY_LENGTH, lengths, round), round=range(11))]
    for view in views:
        for _ in range(5):
            for control in view.controls.values():
                choices = getattr(control, "options", None) or range(control.min, control.max + 1)
                control.value = choices[int(torch.randint(len(choices), (), generator=at))]
            assert bytes(view.image.value).startswith(b"\x89PNG")
            told = view.problem.value
            assert told == "" or "choose another kind" in told or "there are" in told


def test_a_kind_that_is_not_there_leaves_the_controls_usable(voted):
    def draw(kind): return framework_figure(voted["copy"], 1, LAST_STEP, example_of(voted["copy"], 1, kind))

    view = explore(draw, kind=list(KINDS))
    before = bytes(view.image.value)
    view.controls["kind"].value = "kept and wrong"
    assert "there is none" in view.problem.value and bytes(view.image.value) == before
    view.controls["kind"].value = "dropped"
    assert view.problem.value == "" and bytes(view.image.value) != before


def test_the_gallery_explores_a_run_of_ones_own(sums):
    box = explore_figure("forward_addition", sums)
    assert box.controls["round"].max == len(sums.rounds) - 1 and box.problem.value == ""
    assert isinstance(draw_figure("framework", seed=1, round=1), Picture), "a seed whose models were not kept"
    with pytest.raises(ValueError, match=re.escape("why_length shows copy {")): explore_figure("why_length", sums)


def test_truth_is_used_for_measuring_only(sums, monkeypatch):
    """With false truth the same labels are kept."""
    asked, truth, kept = asked_again(sums, 1)
    false = Truth(torch.full_like(truth.answer, PAD))
    monkeypatch.setattr(framework, "Truth", lambda answer: false)
    _, _, again = framework.asked_again.__wrapped__(sums, 1)
    assert torch.equal(kept.index, again.index) and torch.equal(kept.label, again.label)
