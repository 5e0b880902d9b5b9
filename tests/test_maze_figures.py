"""The figures of mazes: arms, panels, checks of paths and one path, at their extremes and at random."""
import copy

import pytest
import torch

from self_improve.blocks import EOS
from self_improve.claims import curve, guess_rate
from self_improve.config import configure, identity
from self_improve.experiments import experiment
from self_improve.figures import ALL, Arms, arms_of, kept_rounds, mean_curve, only, paper_numbers, round_at
from self_improve.gallery import FIGURES, draw_figure, explore_figure, own_arms
from self_improve.maze_figures import (
    COLORS,
    COMPARED,
    MARKERS,
    MAZE_HOPS,
    MAZE_NODES,
    MAZE_VERIFIER,
    PROBLEMS,
    answers_of,
    arm_rows,
    beside_paper,
    by_round,
    compare_figure,
    compare_filters,
    draw_checks,
    draw_maze_climb,
    draw_steps,
    guess_curve,
    label_share,
    labels_text,
    missing_lines,
    past_frontier_rows,
    path_figure,
    runs_with_weights,
    steps_of,
    whole_number,
)
from self_improve.maze_text import MAZE, parse_maze
from self_improve.mazes import MazeHops
from self_improve.plots import Picture
from self_improve.recording import queue_path, read_queue
from self_improve.rounds import Round
from self_improve.streams import Stream
from self_improve.tasks import draw_problems
from self_improve.widgets import explore

SPECS = (MAZE_HOPS, MAZE_NODES, MAZE_VERIFIER)
EXAMPLE = "98>16#33:16,9-64:9,58-98:9-9:64,98,33-58:64-16:33="


@pytest.fixture(scope="module")
def hops(): return arms_of(MAZE_HOPS)


@pytest.fixture(scope="module")
def recipe(hops): return hops.runs["recipe"][0]


def with_rounds(run, rounds):
    """A run in memory with other rounds."""
    other = copy.copy(run)
    other.rounds = rounds
    return other


def labelled(shares):
    """Rounds whose labels are so often right."""
    rounds = [Round(0, [1, 5], 5, 1, accuracy={"8": {"accuracy": 0.5, "n": 9}})]
    for number, share in enumerate(shares, 1):
        report = {"made": 100, "kept": 80, "right": round(80 * share), "possible": 90}
        rounds.append(Round(number, [5 + number], 5 + number, 1, label_accuracy=[share], filter=[report],
                            accuracy={"7": {"accuracy": 0.7, "n": 9}, "8": {"accuracy": share, "n": 9}}))
    return rounds


# arms

def test_the_figures_are_in_the_gallery():
    for spec in SPECS: assert FIGURES[spec.name] is spec and len(spec.arms) <= min(len(COLORS), len(MARKERS))


def test_every_maze_in_the_queue_is_an_arm():
    """What is recorded one day finds its panel."""
    wanted = [item for item in read_queue(queue_path()) if item.experiment.startswith("maze") and item.scale == "tiny"]
    assert len(wanted) >= 6
    for item in wanted:
        base = experiment(item.experiment, "tiny")
        name = identity(configure(base, item.settings))
        found = []
        for spec in SPECS:
            for task, settings in spec.arms.values():
                if task == item.experiment: found.append(identity(configure(base, settings)))
        assert name in found, item.name


def test_only_one_arm(hops):
    assert only(hops, ALL) is hops
    assert only(hops, "vote").runs == {"vote": hops.runs["vote"]}
    with pytest.raises(ValueError, match="no arm is called 'oracel': the arms are no filter, vote, recipe, control"):
        only(hops, "oracel")


def test_a_missing_arm_says_its_command():
    arms = Arms({"a": [], "b": ["a run"], "c": []}, {"a": ["make a", "make a again"], "b": ["more"], "c": []})
    assert missing_lines(arms) == ["a, not recorded yet: make a"]


# curves

def test_the_mean_is_taken_where_all_have_a_value():
    assert mean_curve([{1: 0.2, 2: 0.4, 3: 1.0}, {2: 0.6, 1: 0.4}]) == {1: pytest.approx(0.3), 2: pytest.approx(0.5)}
    assert mean_curve([{1: 1.0}, {}]) == {}


def test_a_maze_that_is_its_path_leaves_nothing_to_guess():
    assert guess_curve(MazeHops(5), (4,)) == {4: 1.0}
    assert guess_curve(MazeHops(9), (3,)) == {3: guess_rate(MazeHops(9), 3)} and guess_curve(MazeHops(9), ()) == {}


def test_shares_by_round_leave_out_what_is_not_known(recipe):
    run = with_rounds(recipe, labelled([0.9, 0.5]))
    assert by_round(run, label_share) == {1: 0.9, 2: 0.5}
    assert by_round(run, lambda r: r.kept) == {1: 0.8, 2: 0.8}
    assert by_round(with_rounds(recipe, labelled([])), label_share) == {}


# the climb

@pytest.mark.parametrize("upto, shown, frontier", [(-1, 3, 8), (0, 0, 5), (1, 1, 6), (3, 3, 8), (99, 3, 8)])
def test_a_climb_is_drawn_at_a_round(hops, upto, shown, frontier):
    figure = draw_maze_climb(MAZE_HOPS, only(hops, "recipe"), upto)
    arm, labels, hardest = figure.axes
    assert f"round {shown}, 3 seeds" in arm.get_title() and "recipe (verifier+least:100)" in arm.get_title()
    # pale rounds, the guesser, the chosen round, and the line at the frontier
    assert len(arm.lines) == shown + 3 and set(arm.lines[-1].get_xdata()) == {frontier}
    runs = hops.runs["recipe"]
    right = mean_curve([curve(round_at(run, upto)) for run in runs])
    assert list(arm.lines[-2].get_ydata()) == pytest.approx(list(right.values()))
    guesses = guess_curve(runs[0].config.parsed_task, tuple(right))
    assert list(arm.lines[-3].get_ydata()) == list(guesses.values())
    assert list(labels.lines[0].get_xdata()) == [1, 2, 3] and list(hardest.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert set(labels.lines[-1].get_xdata()) == {shown} == set(hardest.lines[-1].get_xdata())
    assert "8 hops" in hardest.get_ylabel() and arm.get_xlabel() == "hops"


def test_one_seed_has_no_band_and_three_have_one(hops):
    three = draw_maze_climb(MAZE_HOPS, only(hops, "recipe")).axes[0]
    one = draw_maze_climb(MAZE_HOPS, only(arms_of(MAZE_HOPS, seeds=(1,)), "recipe")).axes[0]
    assert len(three.collections) == 1 and len(one.collections) == 0 and "seed 1" in one.get_title()


def test_an_arm_without_a_record_shows_its_command(recipe):
    arms = Arms({"no filter": [], "recipe": [recipe]}, {"no filter": ["self-improve run x --seed 0"], "recipe": []})
    missing = draw_maze_climb(MAZE_HOPS, arms).axes[0]
    assert "not recorded yet" in missing.texts[0].get_text() and "self-improve run x" in missing.texts[0].get_text()
    with pytest.raises(ValueError, match="maze_hops is not recorded yet: self-improve run x --seed 0"):
        draw_maze_climb(MAZE_HOPS, only(arms, "no filter"))


def test_arms_keep_their_color_when_they_stand_alone(hops):
    together, alone = draw_maze_climb(MAZE_HOPS, hops), draw_maze_climb(MAZE_HOPS, only(hops, "control"))
    legend = {text.get_text(): line.get_color() for text, line in
              zip(together.legends[0].get_texts(), together.legends[0].get_lines(), strict=True)}
    assert alone.axes[1].lines[0].get_color() == legend["control"] != legend["recipe"]


@pytest.mark.parametrize("spec", [MAZE_HOPS, MAZE_VERIFIER], ids=lambda s: s.name)
def test_an_empty_run_is_told_and_an_empty_round_is_drawn(spec, recipe):
    title = next(title for title, (name, _) in spec.arms.items() if name == "maze_hops")
    with pytest.raises(ValueError, match="has no round yet: there is nothing to draw"):
        spec.draw(spec, Arms({title: [with_rounds(recipe, [])]}, {title: []}), -1)
    empty = [Round(0, [1, 5], 5, 1), Round(1, [6], 5, 1)]
    for rounds in (empty, labelled([0.4]), labelled([])):
        figure = spec.draw(spec, Arms({title: [with_rounds(recipe, rounds)]}, {title: []}), -1)
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_runs_of_ones_own_hide_the_other_arms(recipe):
    for spec in (MAZE_HOPS, MAZE_VERIFIER):
        arms = own_arms(spec, recipe)
        assert [title for title, runs in arms.runs.items() if runs] == [
            "recipe" if spec is MAZE_HOPS else "all four checks"]
        figure = spec.draw(spec, arms, -1)
        told = [text.get_text() for ax in figure.axes for text in ax.texts]
        assert not [text for text in told if "not recorded" in text]
    assert explore_figure("maze_hops", recipe).problem.value == ""
    with pytest.raises(ValueError, match="is a run of maze_hops"): own_arms(MAZE_NODES, recipe)


# words

@pytest.mark.parametrize("shares, sentence", [
    ([0.9, 0.2], "none: the labels right before the filter fall from 90.0 % to 20.0 % in 2 rounds."),
    ([0.5, 0.1, 0.6], "rise from 50.0 % to 60.0 % in 3 rounds."),
    ([0.5, 0.1, 0.5], "stay at 50.0 %"), ([0.9], "too few rounds"), ([], "too few rounds")])
def test_labels_in_words(recipe, shares, sentence):
    assert sentence in labels_text("none", [with_rounds(recipe, labelled(shares))])


def test_the_table_of_arms(recipe):
    falls, base = with_rounds(recipe, labelled([0.9, 0.5])), with_rounds(recipe, labelled([]))
    arms = Arms({"a": [falls], "b": [], "c": [base]}, {})
    first, last = arm_rows(arms, 8)
    assert first["labels right"] == "90.0 %, 50.0 %" and first["kept"] == "80.0 %, 80.0 %" and first["seeds"] == 1
    assert first["kept ones right"] == "90.0 %, 50.0 %" and first["accuracy at 8, seed by seed"] == "50.0 %"
    assert last["labels right"] == last["kept"] == "–"


# the checks

def test_bars_are_what_the_round_kept(recipe):
    run = with_rounds(recipe, labelled([0.9, 0.5]))
    arms = Arms({"no filter": [run], "moves": []}, {"no filter": [], "moves": ["self-improve run y"]})
    for upto, right in ((1, 0.9), (2, 0.5), (-1, 0.5)):
        kept, precise, _, missing = draw_checks(MAZE_VERIFIER, arms, upto).axes
        assert [bar.get_width() for bar in kept.patches] == [0.8]
        assert [bar.get_width() for bar in precise.patches] == [right]
        assert "moves, not recorded yet: self-improve run y" in missing.texts[0].get_text()
    base = draw_checks(MAZE_VERIFIER, arms, 0).axes[0]
    assert [text.get_text() for text in base.texts] == ["no label", "not recorded yet"] and not base.patches


def test_a_chosen_arm_stands_out(recipe):
    run = with_rounds(recipe, labelled([0.9]))
    arms = Arms({"no filter": [run], "ends": [run], "moves": []}, {"no filter": [], "ends": [], "moves": ["make it"]})
    bars = draw_checks(MAZE_VERIFIER, arms, chosen="ends").axes[0].patches
    assert bars[0].get_alpha() < bars[1].get_alpha()
    with pytest.raises(ValueError, match="not recorded yet: make it"): draw_checks(MAZE_VERIFIER, arms, chosen="moves")
    with pytest.raises(ValueError, match="no arm is called 'x'"): draw_checks(MAZE_VERIFIER, arms, chosen="x")


def walked(prompt, output):
    """Whether an output follows edges, has the right ends, and repeats nothing; without the project's verifier."""
    start, goal, nodes, _ = parse_maze(prompt)
    # token by token: as text, 7 and 8 beside each other would be 78
    tokens = [MAZE.decode([token]) for token in output[: output.index(EOS)]] if EOS in output else []
    labels, signs = tokens[::2], tokens[1::2]
    well_formed = len(labels) == len(signs) + 1 and set(signs) <= {">"} and all(map(str.isdigit, labels))
    if not well_formed: return False, False, False
    path = list(map(int, labels))
    moves = all(b in nodes.get(a, ()) for a, b in zip(path[:-1], path[1:], strict=True))
    return moves, (path[0], path[-1]) == (start, goal), len(set(path)) == len(path)


@pytest.mark.parametrize("level", [3, 6])
def test_what_the_checks_keep_is_counted_by_hand(recipe, level):
    candidates, truth = answers_of(recipe.folder, 0, level)
    task = recipe.config.parsed_task
    marks = []
    for prompt, label in zip(candidates.prompts, candidates.label.tolist(), strict=True):
        marks.append(walked(task.show(prompt), label))
    moves, ends, once = torch.tensor(marks).T
    found = compare_filters(recipe, 0, level)
    assert list(found) == list(COMPARED) and found["no filter"].made == PROBLEMS
    assert found["moves"].kept == int(moves.sum()) and found["ends"].kept == int(ends.sum())
    assert found["moves and ends"].kept == int((moves & ends).sum())
    assert found["all four checks"].kept == int((moves & ends & once).sum()) == found["true answers"].kept
    assert {s.recall for s in found.values()} == {1.0} and found["all four checks"].precision == 1


def test_the_answers_are_to_problems_of_their_own(recipe):
    candidates, _ = answers_of(recipe.folder, 0, 3)
    task = recipe.config.parsed_task
    for purpose in ("base", "self", "eval"):
        _, block = draw_problems(task, 3, Stream(0, purpose, level=3), PROBLEMS)
        assert not torch.equal(block.prompt, candidates.prompts)


def test_bars_of_the_same_answers(recipe):
    ax = compare_figure(recipe, 0, 3, "moves").axes[0]
    found = compare_filters(recipe, 0, 3)
    # one solid bar and one hatched for each filter
    widths = [bar.get_width() for bar in ax.patches]
    assert widths[::2] == [s.right for s in found.values()]
    assert widths[1::2] == [s.kept - s.right for s in found.values()]
    alphas = dict(zip(found, [bar.get_alpha() for bar in ax.patches[::2]], strict=True))
    assert [title for title, alpha in alphas.items() if alpha == 1] == ["moves"]
    with pytest.raises(ValueError, match="unknown filter 'best': choose among all, no filter"):
        compare_figure(recipe, 0, 3, "best")


# one path

@pytest.mark.parametrize("output, kinds", [
    ("98>9>33>16", "right right right right"), ("98>9>64>9>33>16", "right right astray astray right right"),
    ("98>16", "right wrong"), ("9>33", "wrong right"), ("5>98", "wrong wrong"), ("#:=", "")])
def test_steps_are_marked(output, kinds):
    task = MazeHops(6)
    block = task.parse(EXAMPLE)
    picture = task.picture(block.prompt[0], block.answer[0], torch.tensor(MAZE.encode(output) + [EOS]))
    steps = steps_of(picture)
    assert [kind for _, kind in steps] == kinds.split()
    assert [str(label) for label, _ in steps] == [part for part in output.split(">") if part.isdigit()]
    ax = Picture().subplots()
    draw_steps(ax, picture, [0.5] * len(steps), {"moves": False, "ends": True})
    assert len(ax.patches) == len(steps) and "moves ✗, ends ✓" in ax.get_title("left")
    assert [text.get_text() for text in ax.texts[-4:]] == ["98", "9", "33", "16"], "the right path stands below"


def test_a_path_is_that_of_the_problem(recipe):
    figure = path_figure(recipe, 0, 6, 5)
    candidates, truth = answers_of(recipe.folder, 0, 6)
    task = recipe.config.parsed_task
    below = figure.axes[1]
    assert task.show(candidates.label[5]) in below.get_title("left")
    right = task.show(truth.answer[5]).split(">")
    assert [text.get_text() for text in below.texts[-len(right):]] == right
    assert all(0 < bar.get_height() <= 1 for bar in below.patches)


@pytest.mark.parametrize("text, sentence", [
    ("six", "'six' is no number"), ("", "'' is no number"), ("-1", "'-1' is no number"), ("1.5", "is no number"),
    ("٣", "is no number"), ("1000001", "is too large: at most 1000000"), ("9" * 5000, "is too large")])
def test_what_is_no_problem_number(text, sentence):
    with pytest.raises(ValueError, match=sentence) as refused: whole_number(text)
    assert "\n" not in str(refused.value)


def test_numbers_of_problems(): assert [whole_number(text) for text in ("0", "007", "1000000")] == [0, 7, 1_000_000]


@pytest.mark.parametrize("level, sentence", [
    (0, "level 0 is not one"), (9, "with 9 nodes a path has 1 to 8 hops"), ("x", "level 'x'")])
def test_levels_that_mazes_lack(recipe, level, sentence):
    with pytest.raises(ValueError, match=sentence): path_figure(recipe, 0, level)
    with pytest.raises(ValueError, match=sentence): compare_figure(recipe, 0, level)


def test_rounds_whose_models_are_gone(recipe, hops):
    assert kept_rounds(recipe) == [0, 3]
    assert runs_with_weights(hops)["recipe, seed 0"].folder == recipe.folder
    with pytest.raises(ValueError, match="001-0.safetensors is missing"): path_figure(recipe, 1, 6)
    with pytest.raises(ValueError, match="has no round 4"): compare_figure(recipe, 4, 6)


# widgets

def test_a_choice_that_cannot_be_drawn_leaves_the_picture(hops):
    arms = Arms(hops.runs | {"vote": []}, hops.missing | {"vote": ["self-improve run z"]})
    view = explore(lambda filter, round: draw_maze_climb(MAZE_HOPS, only(arms, filter), round),
                   filter=[ALL, *arms.runs], round=range(4))
    before = bytes(view.image.value)
    view.controls["filter"].value = "vote"
    assert "self-improve run z" in view.problem.value and bytes(view.image.value) == before
    view.controls["filter"].value = "recipe"
    assert view.problem.value == "" and bytes(view.image.value) != before


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
@pytest.mark.parametrize("seed", range(3))
def test_figures_of_mazes_at_random(spec, seed):
    """A picture, or one sentence."""
    at = torch.Generator().manual_seed(seed)

    def pick(choices): return choices[int(torch.randint(len(choices), (), generator=at))]

    arms = arms_of(spec)
    model, kept, level, number = pick(list(runs_with_weights(arms).values())), pick((0, 1, 3, 5)), pick(range(12)), 77
    title, upto = pick([ALL, *arms.runs]), pick(range(-1, 7))

    def draw_arms():
        if spec is MAZE_VERIFIER: return draw_checks(spec, arms, upto, title)
        return draw_maze_climb(spec, only(arms, title), upto)

    for draw in (lambda: path_figure(model, kept, level, number), draw_arms,
                 lambda: compare_figure(model, kept, level, pick([ALL, *COMPARED])),
                 lambda: draw_figure(spec.name, seed=seed, round=upto)):
        try: assert draw()._repr_png_().startswith(b"\x89PNG")
        except ValueError as error: assert str(error) and "\n" not in str(error)


# the paper

def test_the_paper_s_numbers_fit_together():
    paper = paper_numbers("mazes")
    for read in paper["hops"]["rounds"]:
        assert read["paper_round"] == read["round"] + 1 and read["frontier"] == paper["hops"]["labeled"] + read["round"]
        levels = list(map(int, read["accuracy"]))
        assert levels == sorted(levels) and max(levels) < paper["hops"]["nodes"]
        shares = list(read["accuracy"].values())
        assert shares == sorted(shares, reverse=True) and all(0 <= share <= 1 for share in shares)
    nodes = paper["nodes"]
    assert (nodes["trained_to"] - nodes["labeled"]) % nodes["step"] == 0
    for part in ("hops", "nodes", "verifier"): assert paper[part]["tag"]


def test_base_models_beside_the_paper_s(hops):
    rows = past_frontier_rows(paper_numbers("mazes"), hops.runs["recipe"])
    assert [row["paper"] for row in rows] == [0.92, 0.73, 0.19] and len(rows) == 3, "nine nodes end at eight hops"
    ours = [run.rounds[0].at(6) for run in hops.runs["recipe"]]
    assert rows[0]["ours, mean"] == round(sum(ours) / 3, 2)


def test_both_pictures_have_their_rounds(hops):
    paper = paper_numbers("mazes")
    left, right = beside_paper(paper, hops.runs["recipe"]).axes
    # a curve and a dashed line for each round
    assert len(left.lines) == 2 * len(paper["hops"]["rounds"]) and len(right.lines) == 2 * 4
    assert list(left.lines[0].get_ydata()) == list(paper["hops"]["rounds"][0]["accuracy"].values())
    assert "30 nodes" in left.get_title() and "9 nodes" in right.get_title()
    with pytest.raises(ValueError, match="no run to set beside"): beside_paper(paper, [])
