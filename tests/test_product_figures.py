"""The overview, the squares of products, chains of thought step by step, and the vote."""
from dataclasses import replace

import pytest
import torch

from self_improve import voting
from self_improve.experiments import experiment
from self_improve.figures import Arms, arms_of, kept_rounds, paper_numbers
from self_improve.filter import Vote
from self_improve.gallery import FIGURES, draw_figure
from self_improve.overview import (
    GRAYS,
    OVERVIEW,
    PANELS,
    draw_paper_overview,
    figure_catalogue,
    half_point,
    margin_rows,
    mean_cells,
    outline,
    overview_figure,
    paper_curves,
    paper_square,
    teaching_order,
)
from self_improve.paper import accelerated
from self_improve.plots import Picture, draw_cells, pair_cells
from self_improve.product_figures import (
    CHAINS,
    MULTIPLICATION,
    PRODUCT_ARMS,
    ask_models,
    chain_figure,
    chain_steps,
    label_shares,
    marked,
    orders_figure,
    paper_squares_figure,
    product_row,
    product_rows,
    product_words,
    products_beside,
    read_chain,
    square_figure,
)
from self_improve.recording import queue_path, read_queue
from self_improve.records import Run, find_run, recorded
from self_improve.scoring import score
from self_improve.streams import Stream
from self_improve.tasks import draw_problems, make_task, rows_equal
from self_improve.voting import (
    BEYOND,
    LOOKED_AT,
    WHY_VOTING,
    after_vote,
    asked_beyond,
    lift_rows,
    members_figure,
    vote_figure,
    vote_score,
    votes_of,
)
from self_improve.widgets import explore

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def products(): return arms_of(MULTIPLICATION)


@pytest.fixture(scope="module")
def asked_run(products): return next(run for run in products.runs["our recipe"] if kept_rounds(run))


@pytest.fixture(scope="module")
def copied():
    return next(run for run in arms_of(WHY_VOTING).runs["copying"] if kept_rounds(run))


@pytest.fixture(scope="module")
def alone():
    """A recorded run of one model."""
    runs = (Run(entry["folder"]) for entry in recorded())
    return next(run for run in runs if run.config.task == "copy" and run.config.loop.members == 1)


def texts(figure, color):
    return [text.get_text() for ax in figure.axes for text in ax.texts if text.get_color() == color]


# the paper's numbers

@pytest.mark.parametrize("round, pair, share", [
    (1, (1, 6), 0.917), (1, (6, 6), 0.07), (1, (7, 1), 0.002), (1, (5, 5), 1.0), (7, (6, 7), 0.689),
    (7, (7, 7), 0.046), (7, (6, 6), 1.0), (31, (10, 10), 0.273), (31, (9, 2), 0.966), (31, (1, 10), 1.0)])
def test_the_printed_squares(round, pair, share):
    cells, labeled, _ = paper_square(round)
    assert cells[pair] == share and labeled == 5 and len(cells) in (49, 100)


def test_a_printed_square_knows_what_was_taught():
    taught = [paper_square(round)[2] for round in (1, 7, 31)]
    assert [len(pairs) for pairs in taught] == [0, 6 * 6 - 5 * 5, 9 * 9 - 5 * 5]
    assert max(map(max, taught[2])) == 9
    with pytest.raises(ValueError, match="no square of round 2: it has 1, 7, 31"): paper_square(2)


def test_numbers_of_the_paper_have_a_source():
    told = paper_numbers("overview")
    assert told["tag"] == "F" and all(entry["tag"] for name, entry in told["told"].items() if name != "note")
    assert all(entry["tag"] and entry["shows"] for entry in paper_numbers("figures")["figures"])
    with pytest.raises(ValueError, match="no data/paper/figure99.json"): paper_numbers("figure99")


def test_rounds_are_counted_from_base_0():
    panels = paper_numbers("overview")["panels"]
    assert list(paper_curves(panels["copy"])) == [0, 10, 20, 30, 40, 50]
    curves = paper_curves(panels["forward_addition"])
    assert list(curves) == [0, 9, 19, 29, 39, 49] and curves[0][0] == 10 and curves[49][0] == 59
    assert list(paper_curves(panels["maze_hops"])) == [0, 4, 9, 16]


@pytest.mark.parametrize("shares, level", [
    ({1: 1.0, 2: 0.0}, 1.5), ({1: 0.5, 2: 0.0}, 1.0), ({1: 1.0, 2: 0.9}, None), ({1: 0.4, 2: 0.1}, None), ({}, None),
    ({3: 0.9, 1: 1.0, 5: 0.1}, 4.0), ({1: 1.0, 2: 0.2, 3: 0.8, 4: 0.4}, 3.75)])
def test_half_of_the_answers(shares, level):
    assert half_point(shares) == (level if level is None else pytest.approx(level))


def test_the_order_of_the_papers_lists():
    standard = teaching_order(experiment("multiplication", "paper"))
    fast = teaching_order(accelerated("multiplication"))
    beyond = {(a, b) for a in range(1, 11) for b in range(1, 11) if max(a, b) > 5}
    assert set(standard) == set(fast) == beyond
    assert max(standard.values()) == 40 and max(fast.values()) == 18
    # a pair and its mirror come together
    assert all(standard[a, b] == standard[b, a] for a, b in beyond)
    assert [standard[n, n] for n in range(6, 11)] == [6, 13, 21, 30, 40]
    assert [fast[n, n] for n in range(6, 11)] == [4, 8, 12, 15, 18]


# squares

@pytest.mark.parametrize("cells, sides", [
    ([], 0), ([(1, 1)], 4), ([(1, 1), (1, 2)], 6), ([(1, 1), (2, 2)], 8),
    ([(a, b) for a in (1, 2) for b in (1, 2)], 8)])
def test_an_outline_runs_where_there_is_no_neighbor(cells, sides):
    ax = Picture().subplots()
    outline(ax, cells, {})
    assert len(ax.collections[0].get_segments()) == sides


def test_an_outline_lies_inside_its_cells():
    ax = Picture().subplots()
    outline(ax, [(1, 3)], {})
    for x, y in (end for segment in ax.collections[0].get_segments() for end in segment):
        assert 2.5 <= x <= 3.5 and 0.5 <= y <= 1.5


@pytest.mark.parametrize("colors, dark", [("viridis", [0.0, 0.3, 0.6]), (GRAYS, [0.0, 0.1])])
def test_numbers_can_be_read_on_their_cells(colors, dark):
    ax = Picture().subplots()
    shares = [0.0, 0.1, 0.3, 0.6, 0.65, 1.0]
    draw_cells(ax, {(1, b): share for b, share in enumerate(shares, 1)}, colors)
    white = [share for share, text in zip(shares, ax.texts, strict=True) if text.get_color() == "white"]
    assert set(dark) <= set(white) and not {0.65, 1.0} & set(white)


def test_a_square_of_several_seeds_is_their_mean(products):
    runs = products.runs["our recipe"]
    squares = [pair_cells(run.rounds[3]) for run in runs]
    mean = mean_cells(runs, 3)
    assert len(runs) == 3 and len(mean) == 49
    assert mean[5, 7] == pytest.approx(sum(square[5, 7] for square in squares) / 3)
    assert mean_cells(runs[:1], 99) == pair_cells(runs[0].rounds[-1])


def test_a_run_without_a_round_is_told(products, monkeypatch):
    run = products.runs["our recipe"][0]
    monkeypatch.setattr(run, "rounds", [])
    with pytest.raises(ValueError, match="has no round yet"): square_figure(products, "our recipe")
    with pytest.raises(ValueError, match="has no round yet"): product_row("ours", run)


@pytest.mark.parametrize("round", [-1, 0, 2, 5, 99])
@pytest.mark.parametrize("seed", [None, 0, 2])
def test_figures_at_the_ends_of_their_rounds(round, seed):
    for spec in (MULTIPLICATION, OVERVIEW, WHY_VOTING):
        assert isinstance(draw_figure(spec.name, "tiny", seed, round), Picture)


def test_what_is_missing_shows_its_command(products):
    lacking = Arms({**products.runs, "vote": []}, {**products.missing, "vote": ["self-improve run x --seed 7"]})
    figure = MULTIPLICATION.draw(MULTIPLICATION, lacking, -1)
    # five arms and the legend of the frames
    assert len(figure.axes) == 6
    assert figure.axes[4].get_title().startswith("vote:2/3+length:0+confidence:0.3+least:50\n")
    assert any("self-improve run x\n   --seed 7" in text for text in texts(figure, "black"))
    with pytest.raises(ValueError, match="'vote' is not recorded yet: self-improve run x --seed 7"):
        square_figure(lacking, "vote")
    with pytest.raises(ValueError, match="unknown filter 'luck': the arms are no filter, length"):
        square_figure(products, "luck")
    with pytest.raises(ValueError, match="multiplication is not recorded yet: self-improve run"):
        draw_figure("multiplication", "paper")
    with pytest.raises(ValueError, match="no experiment at this scale"): draw_figure("multiplication", "laptop")


def test_an_arm_without_any_seed_is_told():
    none = Arms({title: [] for title in PRODUCT_ARMS}, {title: [] for title in PRODUCT_ARMS})
    with pytest.raises(ValueError, match="'vote' is not recorded yet: it has no exp"): square_figure(none, "vote")
    assert {row["filter"] for row in product_rows(none)} == {f"{title}: not recorded yet" for title in PRODUCT_ARMS}
    assert all("not recorded yet" in sentence for sentence in product_words(none))
    assert {row["ours, worst taught pair at the end"] for row in products_beside(none)} == {"not recorded yet"}


def test_the_arms_are_those_of_the_queue(products):
    queue = {item.name: item.settings for item in read_queue(queue_path())}
    filters = {settings.get("loop.filter") for _, settings in PRODUCT_ARMS.values()}
    for name in ("none", "length", "vote", "both"):
        assert queue[f"multiplication-tiny-{name}-0"]["loop.filter"] in filters


# what records say

def test_a_row_counts_what_the_record_holds(products):
    run = next(run for run in products.runs["our recipe"] if run.config.data_seed == 0)
    row = product_row("ours", run)
    last = {level: measured["accuracy"] for level, measured in run.rounds[-1].accuracy.items()}
    taught = ["7,1", "7,2", "1,7", "7,3", "2,7", "7,4", "7,5", "3,7", "4,7", "7,6", "5,7", "6,7"]
    assert row["pairs taught"] == 12 and row["of these learned"] == sum(last[pair] >= 0.95 for pair in taught)
    assert row["worst taught"] == min(last[pair] for pair in taught)
    kept, right = (sum(report[name] for r in run.rounds for report in r.filter) for name in ("kept", "right"))
    assert row["right labels kept"] == right / kept
    assert row["right labels made"] == pytest.approx(label_shares(run)[0])
    assert "11 of 12 self-taught pairs" in next(s for s in product_words(products) if "our recipe, seed 0" in s)


def test_labels_are_counted_by_how_many_were_made(products, monkeypatch):
    run = products.runs["our recipe"][0]
    report = {"made": 10, "kept": 4, "right": 3, "possible": 9}
    few = replace(run.rounds[1], label_accuracy=[0.5], filter=[report])
    many = replace(run.rounds[1], label_accuracy=[1.0], filter=[report | {"made": 30, "kept": 0, "right": 0}])
    monkeypatch.setattr(run, "rounds", [run.rounds[0], few, many])
    assert label_shares(run) == (35 / 40, 3 / 4)
    monkeypatch.setattr(run, "rounds", run.rounds[:1])
    assert label_shares(run) == (None, None)


def test_the_papers_products_stand_beside_ours(products):
    rows = {row["filter"]: row for row in products_beside(products)}
    assert rows["no filter"]["the paper"] == "6 × 6 at 13.7 % in round 6 [B N]"
    assert rows["vote and length"]["the paper"] == "worst of 56 taught pairs 96.6 % in round 30 [F]"
    assert rows["length"]["the paper"] == "no number known" and "seed 0: 32.1 %" in str(rows["our recipe"].values())


def test_pictures_of_the_paper_are_drawn():
    assert len(paper_squares_figure().axes) == 3 and len(draw_paper_overview().axes) == 4
    axes = orders_figure().axes
    assert [ax.get_title() for ax in axes] == ["standard: 40 rounds", "accelerated: 18 rounds", "ours: 5 rounds"]
    assert len(axes[0].texts) == len(axes[1].texts) == 75 and len(axes[2].texts) == 12


# chains of thought

@pytest.mark.parametrize("level", [(1, 1), (3, 1), (1, 4), (2, 2), (3, 3), (6, 7), (7, 7)])
def test_every_step_of_a_true_chain_follows(level):
    task = make_task("multiplication")
    _, block = draw_problems(task, level, Stream(3, "figure", level=level), 20)
    for prompt, answer in zip(block.prompt, block.answer, strict=True):
        a, b = (number[::-1] for number in task.show(prompt)[:-1].split("*"))
        chain = task.show(answer)
        steps = chain_steps(a, b, chain, chain)
        # partial products, running totals between them, and the product
        assert len(steps) == level[1] + max(0, level[1] - 2) + 1
        assert all(step.follows and step.written == step.right for step in steps)
        assert int(steps[-1].right[::-1]) == int(a) * int(b) and steps[-1].name == "product"


RIGHT = "9570+09570(94380)+009570(942480)+0007722=9421632"


@pytest.mark.parametrize("wrong, follows", [
    # a wrong partial product, and all that follows from it
    ("9570+09571(94381)+009570(942490)+0007722=9421732", [1, 0, 1, 1, 1, 1, 1]),
    # a wrong sum, taken over by the next one
    ("9570+09570(95380)+009570(952480)+0007722=9521632", [1, 1, 0, 1, 1, 1, 1]),
    # the last step is missing, and the product is that of the steps before
    ("9570+09570(94380)+009570=942480", [1, 1, 1, 1, 0, 0, 1]),
    # the end is missing
    ("9570+09570(94380)+009570(942480)+0007", [1, 1, 1, 1, 1, 0, 0]),
    ("9570", [1, 0, 0, 0, 0, 0, 0]), ("", [0] * 7), ("+(=)", [0] * 7)])
def test_a_wrong_step_is_told_from_one_that_follows_from_it(wrong, follows):
    steps = chain_steps("253", "9333", wrong, RIGHT)
    assert [step.follows for step in steps] == [bool(follow) for follow in follows]
    written = dict(read_chain(wrong))
    assert [step.written for step in steps] == [written.get(key, "") for key, _ in read_chain(RIGHT)]
    assert [step.name for step in steps] == ["3 × 253", "3 × 253", "so far", "3 × 253", "so far", "9 × 253", "product"]


def test_a_step_too_many_is_shown():
    steps = chain_steps("12", "34", "840+0630+0000=8040", "840+0630=8040")
    assert steps[-1].right == "" and steps[-1].name == "? × 12" and not steps[-1].follows


@pytest.mark.parametrize("written, right, layers", [
    ("12", "12", ("12", "  ", "  ")), ("13", "12", ("1 ", " 3", " 2")), ("1", "123", ("1  ", " ··", " 23")),
    ("123", "1", ("1  ", " 23", "   ")), ("", "", ("", "", "")), ("", "9", (" ", "·", "9"))])
def test_marks(written, right, layers):
    assert tuple(layer.replace("\N{NO-BREAK SPACE}", " ") for layer in marked(written, right)) == layers


def test_a_chain_is_drawn_with_its_errors(asked_run):
    last = kept_rounds(asked_run)[-1]
    asked, truth = ask_models(asked_run, last, (7, 7), CHAINS)
    right = rows_equal(asked.outputs.flatten(0, 1), truth.answer.repeat(3, 1)).view(3, CHAINS).all(0)
    wrong = (~right).nonzero()[:, 0].tolist()
    figure = chain_figure(asked_run, 7, 7, wrong[0])
    red, gray = texts(figure, "C3"), texts(figure, "gray")
    assert red and gray and any("steps wrong" in text for text in texts(figure, "black"))
    # an easy product is right, and nothing is red
    easy = chain_figure(asked_run, 2, 2, 0, last)
    assert not texts(easy, "C3") and sum("all steps right" in text for text in texts(easy, "black")) == 3


@pytest.mark.parametrize("a, b, problem, sentence", [
    (0, 1, 0, "0 digits: a factor has 1 to 8"), (1, 9, 0, "9 digits"), (1, 1, CHAINS, "problem 8 is not there"),
    (1, 1, -1, "problem -1 is not there")])
def test_no_chain_past_what_there_is(asked_run, a, b, problem, sentence):
    with pytest.raises(ValueError, match=sentence): chain_figure(asked_run, a, b, problem)


def test_chains_belong_to_products_with_weights(asked_run, copied, products):
    with pytest.raises(ValueError, match="is a run of copy: chains of thought belong to multiplication"):
        chain_figure(copied, 2, 2)
    bare = next(run for run in products.runs["our recipe"] if not kept_rounds(run))
    with pytest.raises(ValueError, match="keeps no weights: its models cannot be asked"): chain_figure(bare, 2, 2)
    with pytest.raises(ValueError, match="keeps no weights of that round"): chain_figure(asked_run, 2, 2, 0, 3)


@pytest.mark.parametrize("seed", range(2))
def test_the_controls_of_products_at_random(asked_run, products, seed):
    at = torch.Generator().manual_seed(seed)

    def ask(a, b, problem, round): return chain_figure(asked_run, a, b, problem, round)

    box = explore(ask, a=range(1, 6), b=range(1, 6), problem=range(CHAINS), round=kept_rounds(asked_run))
    squares = explore(lambda filter, round: square_figure(products, filter, round),
                      filter=["our recipe", *PRODUCT_ARMS], round=range(9))
    for _ in range(4):
        for name in ("a", "b"): box.controls[name].value = int(torch.randint(1, 6, (), generator=at))
        box.controls["problem"].value = int(torch.randint(CHAINS, (), generator=at))
        assert box.problem.value == "" and bytes(box.image.value).startswith(PNG)
        squares.controls["round"].value = int(torch.randint(9, (), generator=at))
        assert bytes(squares.image.value).startswith(PNG)
    for title in PRODUCT_ARMS:
        squares.controls["filter"].value = title
        assert (squares.problem.value == "") == bool(products.runs[title])
        assert bytes(squares.image.value).startswith(PNG), "the last good picture stays"


# models that are asked again

def test_models_are_asked_on_problems_that_no_run_has_used(copied):
    asked, truth = ask_models(copied, 0, 11, 50)
    assert asked.outputs.shape[:2] == (3, 50) and not hasattr(asked, "truth")
    _, block = draw_problems(copied.config.parsed_task, 11, Stream(copied.config.data_seed, "figure", level=11), 50)
    assert torch.equal(asked.prompts, block.prompt) and torch.equal(truth.answer, block.answer)
    for purpose in ("eval", "self", "base"):
        other = draw_problems(copied.config.parsed_task, 11, Stream(copied.config.data_seed, purpose, level=11), 50)[1]
        assert not torch.equal(other.prompt, block.prompt)
    assert ask_models(copied, 0, 11, 50)[0] is asked


def test_a_vote_of_all_is_the_filter_of_the_same_name(copied):
    asked, truth = asked_beyond(copied, 0, 2)
    for needed in (2, 3): assert vote_score(asked, truth, 3, needed) == score(asked, Vote(needed, 3)(asked), truth)
    pairs = [replace(asked, outputs=asked.outputs[list(two)]) for two in ((0, 1), (0, 2), (1, 2))]
    kept = [Vote(2, 2)(pair) for pair in pairs]
    assert vote_score(asked, truth, 2, 2).kept == sum(map(len, kept))


def test_one_vote_keeps_each_models_own_answers(copied):
    asked, truth = asked_beyond(copied, 0, 2)
    own = vote_score(asked, truth, 3, 1)
    right = sum(int(rows_equal(output, truth.answer).sum()) for output in asked.outputs)
    assert own.right == right and own.made == 3 * len(asked) and own == vote_score(asked, truth, 1, 1)
    strict = [vote_score(asked, truth, 3, needed).share for needed in (1, 2, 3)]
    assert strict == sorted(strict, reverse=True)


@pytest.mark.parametrize("models, needed", [(3, 4), (2, 3), (4, 2), (0, 0), (3, 0)])
def test_votes_that_cannot_be(copied, models, needed):
    with pytest.raises(ValueError, match=f"{needed} of {models} models: there are 3"):
        vote_score(*asked_beyond(copied, 0, 1), models, needed)


def test_a_vote_past_the_frontier(copied):
    figure = vote_figure(copied, 0, 3, 3, 1)
    assert [ax.get_title().split()[0] for ax in figure.axes] == ["kept", "precision", "recall"]
    widths = [line.get_linewidth() for line in figure.axes[0].lines]
    assert widths.index(max(widths)) == 2, "the chosen vote is bold"
    # two of the same votes are one curve less
    assert len(vote_figure(copied, 0, 2, 1, BEYOND).axes[0].lines) == 3
    assert isinstance(vote_figure(copied, kept_rounds(copied)[-1], 1, 1, BEYOND), Picture)


def test_a_vote_that_keeps_nothing_has_no_precision(copied, monkeypatch):
    asked, truth = asked_beyond(copied, 0, 1)
    # every model says something else
    apart = asked.outputs.clone()
    for member in range(3): apart[member, :, 0] = 3 + member
    monkeypatch.setattr(voting, "asked_beyond", lambda *_: (replace(asked, outputs=apart), truth))
    assert "precision nothing kept" in [ax.get_title() for ax in vote_figure(copied, 0, 3, 3, 1).axes]


@pytest.mark.parametrize("round, beyond, sentence", [
    (0, 0, "0 levels past the frontier: choose 1 to 5"), (0, BEYOND + 1, "6 levels past"),
    (3, 1, "keeps no weights of round 3: it keeps those of 0, 10, 64"), (999, 1, "keeps no weights of round 999")])
def test_no_vote_where_nobody_answers(copied, round, beyond, sentence):
    with pytest.raises(ValueError, match=sentence): vote_figure(copied, round, 3, 2, beyond)
    with pytest.raises(ValueError, match=sentence): members_figure(copied, round, beyond, 0)


def test_one_model_cannot_vote(alone):
    with pytest.raises(ValueError, match="has one model: a vote needs two or more"): vote_figure(alone)


def test_each_model_has_a_line(copied):
    asked, truth = asked_beyond(copied, 0, 2)
    right = rows_equal(asked.outputs.flatten(0, 1), truth.answer.repeat(3, 1)).view(3, -1)[:, :LOOKED_AT]
    shared = int((right.sum(0) == 3).nonzero()[0])
    figure = members_figure(copied, 0, 2, shared)
    assert not texts(figure, "C3") and sum("said by 3 of 3" in text for text in texts(figure, "black")) == 3
    split = int((right.sum(0) == 2).nonzero()[0])
    figure = members_figure(copied, 0, 2, split)
    assert len(texts(figure, "C3")) == 1 and sum("said by 1 of 3" in text for text in texts(figure, "black")) == 1
    with pytest.raises(ValueError, match=f"problem {LOOKED_AT} is not there"): members_figure(copied, 0, 2, LOOKED_AT)


@pytest.mark.parametrize("seed", range(2))
def test_the_controls_of_the_vote_at_random(copied, seed):
    at = torch.Generator().manual_seed(seed)

    def draw(models, needed, beyond): return vote_figure(copied, 0, models, needed, beyond)

    box = explore(draw, models=[3, 2, 1], needed=[2, 3, 1], beyond=range(1, BEYOND + 1))
    for _ in range(4):
        for name, most in (("models", 3), ("needed", 3), ("beyond", BEYOND)):
            box.controls[name].value = int(torch.randint(1, most + 1, (), generator=at))
        models, needed = box.controls["models"].value, box.controls["needed"].value
        assert (box.problem.value == "") == (needed <= models) and bytes(box.image.value).startswith(PNG)


# label quality from records

def test_records_that_hold_votes_show_them(products, monkeypatch):
    run = products.runs["our recipe"][0]
    steps = [["vote", 4, 3], ["length", 2, 2]]
    report = {"made": 10, "kept": 2, "right": 2, "possible": 9, "steps": steps}
    voted = replace(run.rounds[1], label_accuracy=[0.2, 0.4, 0.3], filter=[report, report],
                    votes={"7,1": {"1": [6, 1], "2": [3, 2]}, "1,7": {"2": [1, 1]}})
    monkeypatch.setattr(run, "rounds", [run.rounds[0], voted])
    assert after_vote(voted) == 6 / 8 and after_vote(run.rounds[0]) is None
    assert votes_of([run, run], 1) == {"1": [12, 2], "2": [8, 6]} and votes_of([run], 0) == {}
    arms = Arms({"products": [run]}, {"products": []})
    left, right = WHY_VOTING.draw(WHY_VOTING, arms, 1).axes
    names = [text.get_text() for text in left.get_legend().texts]
    assert names == ["single models", "after the vote", "kept for training"]
    # right and wrong on top of each other, for one and for two models
    assert [bar.get_height() for bar in right.patches] == pytest.approx([0.1, 0.3, 0.5, 0.1])
    row = lift_rows(arms)[0]
    assert row["round"] == 1 and row["single models"] == pytest.approx(0.3) and row["kept"] == 1.0


def test_older_records_say_that_they_hold_no_votes(copied):
    figure = WHY_VOTING.draw(WHY_VOTING, Arms({"copying": [copied]}, {"copying": []}), 5)
    assert any("older than the histogram" in text for text in texts(figure, "black"))
    figure = WHY_VOTING.draw(WHY_VOTING, Arms({"copying": [copied]}, {"copying": []}), 0)
    assert any("round 0 labels nothing" in text for text in texts(figure, "black"))


def test_a_vote_lifts_the_labels_of_every_record():
    rows = lift_rows(arms_of(WHY_VOTING))
    assert len(rows) >= 6 and all(row["kept"] >= row["single models"] for row in rows)


# the overview

def test_panels_have_rounds_of_their_own():
    arms = arms_of(OVERVIEW)
    figure = overview_figure(OVERVIEW, arms, {"copying": 0, "multiplication": 2})
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0].startswith("forward addition, up to round ") and titles[1] == "copying, up to round 0"
    assert titles[3].startswith("multiplication, round 2") and len(figure.axes) == len(PANELS)
    # a curve, its legend and a line at the frontier
    assert len(figure.axes[1].lines) == 2


def test_a_round_that_few_seeds_have_says_so():
    figure = overview_figure(OVERVIEW, arms_of(OVERVIEW), {"copying": 64})
    words = [text.get_text() for text in figure.axes[1].get_legend().texts]
    assert words[0] == "round 0" and words[-1] == "round 64,\n1 of 3 seeds"


def test_a_panel_without_a_record_shows_its_command():
    arms = arms_of(OVERVIEW)
    lacking = Arms(arms.runs | {"copying": []}, arms.missing | {"copying": ["self-improve run copy"]})
    assert any("self-improve run copy" in text for text in texts(overview_figure(OVERVIEW, lacking, {}), "black"))
    with pytest.raises(ValueError, match="overview is not recorded yet"):
        overview_figure(OVERVIEW, Arms({title: [] for title in PANELS}, lacking.missing), {})


def test_margins_of_the_paper_and_ours():
    rows = margin_rows(arms_of(OVERVIEW))
    copying = next(row for row in rows if row["panel"] == "copying" and row["whose"] == "the paper")
    assert copying["first: margin"] == "4.8" and copying["last: margin"] == "33.1"
    run = find_run(experiment("copy"), runs=None)
    ours = next(row for row in rows if row["panel"] == "copying" and row["whose"] == "ours, seed 0")
    assert ours["last: trained to"] == run.rounds[-1].frontier and ours["last: round"] == run.rounds[-1].round
    assert all("multiplication" != row["panel"] for row in rows)


def test_the_catalogue_names_what_is_here():
    rows = figure_catalogue({"overview": "2 inconclusive"})
    here = [row for row in rows if row["notebook"] != "not yet"]
    assert [row["notebook"] for row in here] == ["nbs/figures/overview.ipynb"]
    assert here[0]["verdicts"] == "2 inconclusive"
    assert all(row["verdicts"] == "" for row in rows if row["notebook"] == "not yet")
    known = {entry["ours"] for entry in paper_numbers("figures")["figures"]}
    assert set(FIGURES) <= known, "a figure of ours that no figure of the paper has"
