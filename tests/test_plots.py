"""Figures from records: data in, a picture out."""
from dataclasses import replace

import pytest

from self_improve.experiments import experiment
from self_improve.loop import SelfImprovement
from self_improve.plots import (
    CURVES,
    accuracy_curves,
    cell_text,
    climb_and_avalanche,
    frontier_accuracy,
    heatmap,
    label_quality,
    progress_picture,
    taught_pairs,
)
from self_improve.records import Round


def make_round(number, accuracy, kept=(10, 9, 8), **more):
    """A round of a run whose levels are numbers, or pairs written as text."""
    measured = {level: {"accuracy": a, "n": 100, "low": a - 0.01, "high": a + 0.01} for level, a in accuracy.items()}
    made, stayed, right = kept
    reports = [{"made": made, "kept": stayed, "right": right, "possible": made}] if number else []
    fields = {"levels": [3 + number], "frontier": 3 + number, "loss": [0.1], "filter": reports}
    return Round(**{"round": number, "steps": 5, "accuracy": measured} | fields | more)


CLIMB = [make_round(number, {str(level): 1 / level for level in range(1, 9)}) for number in range(4)]
SQUARE = {f"{a},{b}": 0.9999 if a < 3 else 0.5 for a in range(1, 4) for b in range(1, 4)}
PAIRS = [make_round(0, SQUARE, levels=[1, 2], frontier=2), make_round(1, SQUARE, levels=[(1, 3), (3, 1)], frontier=2)]


def lines_with(ax, style): return [line for line in ax.lines if line.get_linestyle() == style]


def test_a_curve_a_round_and_a_dotted_line_at_its_frontier():
    ax = accuracy_curves(CLIMB, "climb").axes[0]
    assert [line.get_label() for line in lines_with(ax, "-")] == [f"round {k}" for k in range(4)]
    assert [line.get_xdata()[0] for line in lines_with(ax, ":")] == [3, 4, 5, 6]
    assert list(lines_with(ax, "-")[0].get_ydata()) == [1 / level for level in range(1, 9)]
    assert ax.get_title() == "climb" and len(ax.collections) == 4, "an interval around each curve"


def test_many_rounds_are_about_eight_curves_and_the_last():
    rounds = [make_round(number, {"1": 1.0}) for number in range(66)]
    shown = [line.get_label() for line in lines_with(accuracy_curves(rounds).axes[0], "-")]
    assert len(shown) <= CURVES + 1 and shown[-1] == "round 65"
    assert len(lines_with(accuracy_curves(rounds, every=1).axes[0], "-")) == 66


def test_a_square_shows_its_numbers():
    figure = heatmap(PAIRS[0])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 9 and set(texts) == {"0.999", "0.5"}, "rounded down: 1 only when it is all"
    framed = heatmap(PAIRS[0], taught={(3, 1), (1, 1)})
    assert len(framed.axes[0].lines) == len(figure.axes[0].lines) + 1, "what lies in the square has its frame already"


def test_cells_are_rounded_down():
    assert [cell_text(share) for share in (0, 0.5, 0.9999, 1)] == ["0", "0.5", "0.999", "1"]


def test_the_progress_of_any_task():
    assert len(progress_picture(CLIMB).axes) == 1
    squares = progress_picture([PAIRS[0], PAIRS[1], replace(PAIRS[1], round=2)])
    assert len(squares.axes) == 3 and len(progress_picture(PAIRS[:1]).axes) == 1
    # a pair taught in round 1 is framed from then on
    assert [len(ax.lines) for ax in squares.axes] == [1, 3, 3]


def test_pairs_count_as_taught_when_something_was_kept():
    nothing_kept = replace(PAIRS[1], filter=[{"made": 10, "kept": 0, "right": 0, "possible": 10}])
    assert taught_pairs(PAIRS) == {(1, 3), (3, 1)} and taught_pairs([PAIRS[0], nothing_kept]) == set()


def test_precision_leaves_out_rounds_that_kept_nothing():
    nothing = make_round(2, {"1": 1.0}, kept=(10, 0, 0))
    line, = label_quality({"vote": [CLIMB[0], CLIMB[1], nothing, CLIMB[3]]}).axes[0].lines
    assert list(line.get_xdata()) == [1, 3] and list(line.get_ydata()) == [8 / 9, 8 / 9] and line.get_label() == "vote"


def test_accuracy_at_the_frontier():
    line, = frontier_accuracy({"vote": CLIMB}).axes[0].lines
    assert list(line.get_xdata()) == [3, 4, 5, 6] and list(line.get_ydata()) == [1 / 3, 1 / 4, 1 / 5, 1 / 6]


def test_both_sides_in_one_picture():
    left, right = climb_and_avalanche(CLIMB, CLIMB).axes
    assert left.get_legend() is not None and right.get_legend() is None and left.get_xlabel() == "digits to copy"


def test_a_picture_is_a_png_without_a_version():
    png = accuracy_curves(CLIMB)._repr_png_()
    assert png.startswith(b"\x89PNG") and b"Software" not in png and b"matplotlib" not in png
    assert png == accuracy_curves(CLIMB)._repr_png_()


@pytest.mark.parametrize("name", ["copy", "multiplication"])
def test_a_run_of_the_loop_can_be_drawn(name):
    rounds = list(SelfImprovement(experiment(name, "smoke")))
    assert progress_picture(rounds, name)._repr_png_().startswith(b"\x89PNG")
