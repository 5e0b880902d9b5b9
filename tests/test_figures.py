"""The paper's figures from records, the controls around them, and the page that plays them."""
import re
from dataclasses import replace

import pytest
import torch

from self_improve import figures
from self_improve.cli import main
from self_improve.experiments import EXPERIMENTS, experiment
from self_improve.figures import (
    addition_prompt,
    answer_figure,
    arms_of,
    climb_figure,
    margin,
    paper_beside_ours,
    recorded_scales,
    round_at,
)
from self_improve.gallery import FIGURES, draw_figure, explore_figure, figure_rows, live_figure, own_arms
from self_improve.loop import SelfImprovement
from self_improve.plots import Picture
from self_improve.records import Run, find_run
from self_improve.rounds import Round
from self_improve.widgets import MOST_FRAMES, Live, explore, frames_of, player, without_network


def climb(n=4):
    """Rounds that climb by one level each and reach one further past the frontier every second round."""
    rounds = []
    for r in range(n):
        reach = 3 + r + 1 + r // 2
        accuracy = {str(k): {"accuracy": 1.0 if k <= reach else 0.1, "n": 9} for k in range(1, reach + 4)}
        rounds.append(Round(r, [3 + r], 3 + r, 5, accuracy=accuracy))
    return rounds


@pytest.fixture(scope="module")
def sums(): return arms_of(FIGURES["reverse_addition"]).runs["reverse addition"][0]


# pictures

def test_the_margin_is_counted_past_the_frontier():
    assert [margin(r) for r in climb()] == [1, 1, 2, 2]


@pytest.mark.parametrize("upto, curves, frontier", [(-1, 4, 6), (0, 1, 3), (2, 3, 5), (3, 4, 6), (99, 4, 6)])
def test_a_climb_is_drawn_up_to_a_round(upto, curves, frontier):
    figure = climb_figure({"copy": climb()}, upto, "digits")
    left, right = figure.axes
    # a curve for each round, and the line at the frontier
    assert len(left.lines) == curves + 1 and set(left.lines[-1].get_xdata()) == {frontier}
    assert left.get_xlabel() == "digits" and left.get_title() == f"copy, round {curves - 1}"
    assert list(right.lines[0].get_xdata()) == list(range(curves))
    assert right.get_xlim() == (-0.5, 3.5), "the axes stay where they are while a slider moves"


def test_a_row_for_each_run():
    assert len(climb_figure({"a": climb(), "b": climb(2)}, 3).axes) == 4
    with pytest.raises(ValueError, match="the run 'b' has no round yet"): climb_figure({"a": climb(), "b": []})


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_from_records(name):
    spec = FIGURES[name]
    assert spec.paper and "tiny" in recorded_scales(spec)
    last = max(len(run.rounds) for runs in arms_of(spec).runs.values() for run in runs) - 1
    for upto in (-1, 0, last): assert isinstance(draw_figure(name, round=upto), Picture)
    rows = paper_beside_ours(spec)
    assert len(rows) == len(spec.claims) and all(row["verdict"] and row["the paper"] for row in rows)


def test_what_is_not_recorded_says_how_to_record_it():
    with pytest.raises(ValueError, match="reverse_addition is not recorded yet: "
                                         "self-improve run reverse_addition --scale paper --seed 0"):
        draw_figure("reverse_addition", "paper")
    with pytest.raises(ValueError, match="unknown figure 'copi': the figures are framework, over"): draw_figure("copi")
    with pytest.raises(ValueError, match="unknown scale 'huge'"): draw_figure("reverse_addition", "huge")


def test_settings_of_an_arm_are_in_the_command():
    spec = replace(FIGURES["copy_and_reverse"], arms={"copy": ("copy", {"loop.lr": 0.123})})
    arms = arms_of(spec, "tiny", (0, 5))
    assert arms.runs == {"copy": []}
    assert arms.missing["copy"][1] == "self-improve run copy --scale tiny --seed 5 --set loop.lr=0.123"


def test_an_experiment_without_the_scale_has_nothing_to_record(monkeypatch):
    monkeypatch.delitem(EXPERIMENTS["reverse_addition"].scales, "laptop")
    arms = arms_of(FIGURES["reverse_addition"], "laptop")
    assert arms.missing == {"reverse addition": []}
    with pytest.raises(ValueError, match="no experiment at this scale"): draw_figure("reverse_addition", "laptop")


# one's own runs

def test_a_run_of_ones_own_takes_the_place_of_its_arm(sums):
    spec = FIGURES["reverse_addition"]
    arms = own_arms(spec, sums)
    assert arms.runs == {"reverse addition": [sums]} and arms.missing == {"reverse addition": []}
    box = explore_figure("reverse_addition", sums)
    assert box.controls["round"].max == len(sums.rounds) - 1 and box.problem.value == ""


def test_of_two_arms_that_fit_the_closer_one_is_taken():
    spec = replace(FIGURES["copy_and_reverse"], arms={"any": ("copy", {}), "voted": ("copy", {"loop.filter": "vote"})})
    copied = arms_of(FIGURES["copy_and_reverse"]).runs["copy"][0]
    assert own_arms(spec, copied).runs == {"any": [], "voted": [copied]}


def test_a_run_that_fits_no_arm_is_refused(sums):
    with pytest.raises(ValueError, match="is a run of reverse_addition with filter vote.least:100: copy_and_"):
        own_arms(FIGURES["copy_and_reverse"], sums)


def test_a_run_without_a_round_is_told(sums, monkeypatch):
    monkeypatch.setattr(sums, "rounds", [])
    with pytest.raises(ValueError, match="has no round yet"): round_at(sums, 0)


def test_the_table_of_figures_counts_verdicts():
    rows = figure_rows()
    assert [row["notebook"] for row in rows] == [f"[{name}](nbs/figures/{name}.ipynb)" for name in FIGURES]
    assert len({frozenset(row) for row in rows}) == 1


# answers

def test_a_prompt_from_numbers_as_people_write_them(sums):
    prompt = addition_prompt(sums, "12", "345")
    task = sums.config.parsed_task
    assert task.show(prompt[0]) == "21+543=" and task.show(task.solve(prompt)[0]).rstrip("$") == "7530"


@pytest.mark.parametrize("a, b, sentence", [
    ("x", "1", "'x' is no number"), ("1", "", "'' is no number"), ("1", "-2", "'-2' is no number"),
    ("١٢", "1", "is no number"), ("1" * 131, "1", "131 digits: at most 130"), ("012", "1", "leading digit")])
def test_what_is_no_sum(sums, a, b, sentence):
    with pytest.raises(ValueError, match=sentence): answer_figure(sums, a, b)


def test_an_answer_shows_each_model_and_each_wrong_digit(sums, monkeypatch):
    figure = answer_figure(sums, "123", "456")
    assert len(figure.axes) == 3
    for ax in figure.axes:
        digits = [text.get_text() for text in ax.texts]
        # units are written first and stand on the right
        assert digits[:3] == ["9", "7", "5"] and ax.get_xlim()[0] > ax.get_xlim()[1]
        assert all(text.get_color() == "black" for text in ax.texts)
    decode = figures.decode

    def garbled(model, prompt, cap, **more):
        output = decode(model, prompt, cap, **more)
        tokens = output.tokens.clone()
        tokens[0, 1] = sums.config.parsed_task.vocab.ids["4"]
        # and it ends too soon
        tokens[0, 2:] = torch.zeros_like(tokens[0, 2:])
        tokens[0, 2] = sums.config.parsed_task.vocab.ids["$"] if "$" in sums.config.parsed_task.vocab.ids else 1
        return replace(output, tokens=tokens)

    monkeypatch.setattr(figures, "decode", garbled)
    first = answer_figure(sums, "123", "456").axes[0]
    red = [text.get_text() for text in first.texts if text.get_color() == "C3"]
    right = [text.get_text() for text in first.texts if text.get_color() == "gray"]
    assert red[:2] == ["4", "·"] and right[:2] == ["7", "5"]


def test_a_run_that_has_just_begun_is_told(tmp_path, tiny):
    SelfImprovement(tiny(), tmp_path)
    with pytest.raises(ValueError, match="has no round yet"): explore_figure("copy_and_reverse", Run(tmp_path))


def test_an_answer_in_normal_order_is_not_mirrored(tmp_path, tiny):
    config = tiny(task="forward_addition", loop={"rounds": 1, "members": 1})
    list(SelfImprovement(config, tmp_path))
    left, right = answer_figure(Run(tmp_path), "123", "456").axes[0].get_xlim()
    assert left < right


def test_weights_that_were_not_kept_are_told(sums):
    with pytest.raises(ValueError, match="003-0.safetensors is missing"): answer_figure(sums, "1", "2", 3)
    answer_figure(sums, "1", "2", 0)


# controls

def test_controls_call_the_function_and_nothing_else():
    calls = []

    def draw(round, name, text, flag):
        calls.append((round, name, text, flag))
        if text == "bad": raise ValueError("'bad' is not good")
        return climb_figure({name: climb()}, round)

    view = explore(draw, round=range(0, 4), name=["a", "b"], text="x", flag=True)
    assert calls == [(3, "a", "x", True)] and bytes(view.image.value).startswith(b"\x89PNG")
    before = bytes(view.image.value)
    view.controls["round"].value = 0
    view.controls["name"].value = "b"
    view.controls["flag"].value = False
    assert calls[-1] == (0, "b", "x", False) and bytes(view.image.value) != before
    good = bytes(view.image.value)
    view.controls["text"].value = "bad"
    assert bytes(view.image.value) == good and "is not good" in view.problem.value, "the last good picture stays"
    view.controls["text"].value = "y"
    assert view.problem.value == ""


def test_what_a_sentence_quotes_is_no_markup():
    def draw(text): raise ValueError(f"{text!r} is no number")
    view = explore(draw, text="<img src=x>")
    assert "<img" not in view.problem.value and "&lt;img" in view.problem.value


def test_a_mistake_in_the_code_is_not_hidden():
    def draw(round): raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError): explore(draw, round=range(3))


@pytest.mark.parametrize("name", FIGURES)
def test_figures_at_random_settings(name):
    """Each at a few settings of its controls; what is not recorded is told, and the controls stay usable."""
    at = torch.Generator().manual_seed(len(name))
    view = explore_figure(name)
    most = view.controls["round"].max + 1
    for _ in range(2):
        view.controls["round"].value = int(torch.randint(most, (), generator=at))
        view.controls["seed"].value = int(torch.randint(3, (), generator=at))
        assert bytes(view.image.value).startswith(b"\x89PNG")
        assert view.problem.value == "" or "is not recorded yet: self-improve run" in view.problem.value


# climbs that run while one looks

def smoke_live(**more):
    return live_figure("copy_and_reverse", "copy", "smoke", **more)


def test_a_live_climb_draws_every_round_and_ends():
    live = smoke_live()
    drawn = []
    draw, live.draw = live.draw, lambda rounds: drawn.append(len(rounds)) or draw(rounds)
    live.start()
    assert live.start_button.disabled and not live.stop_button.disabled
    live.wait(60)
    assert drawn == [1, 2, 3] and live.said.value == "finished with round 2"
    assert bytes(live.image.value).startswith(b"\x89PNG")
    assert live.stop_button.disabled and not live.start_button.disabled


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_stopped_climb_keeps_its_rounds_and_goes_on_as_if_it_had_not_stopped(after):
    whole, live = smoke_live(), smoke_live()
    whole.start()
    whole.wait(60)
    progress = live.progress

    def stop_in_time(round, *more):
        if round == after and not live.asked_to_stop.is_set() and len(live.rounds) == after: live.stop()
        progress(round, *more)

    live.progress = stop_in_time
    live.start()
    live.wait(60)
    assert len(live.rounds) == after and "start goes on" in live.said.value
    live.progress = progress
    live.loop.ensemble.progress = progress
    live.start()
    live.wait(60)
    assert [r.accuracy for r in live.rounds] == [r.accuracy for r in whole.rounds]
    assert [r.loss for r in live.rounds] == [r.loss for r in whole.rounds]


def test_a_live_climb_is_started_once():
    live = smoke_live()
    live.start()
    first = live.thread
    live.start()
    assert live.thread is first
    live.wait(60)


def test_a_mistake_in_a_live_climb_is_told():
    def begin(progress): raise ValueError("<b>no</b> such run")
    live = Live(begin, lambda rounds: None)
    live.start()
    live.wait(10)
    assert "&lt;b&gt;no&lt;/b&gt; such run" in live.said.value and not live.start_button.disabled


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_the_code_of_a_live_climb_is_not_hidden():
    def begin(progress): raise ZeroDivisionError("0")
    live = Live(begin, lambda rounds: None)
    live.start()
    live.wait(10)
    assert "ZeroDivisionError" in live.said.value


def test_an_arm_that_a_figure_lacks():
    with pytest.raises(ValueError, match="no arm 'sideways': its arms are 'copy', 'reverse'"):
        live_figure("copy_and_reverse", "sideways")


# the player

@pytest.mark.parametrize("n", [1, 2, MOST_FRAMES, MOST_FRAMES + 1, 500])
def test_frames_are_spread(n):
    chosen = frames_of(list(range(n)))
    assert len(chosen) == min(n, MOST_FRAMES) and chosen[0] == 0 and chosen[-1] == n - 1
    assert chosen == sorted(set(chosen))


def test_the_page_loads_nothing_and_is_small(tmp_path):
    path = tmp_path / "copy.html"
    rounds = find_run(experiment("copy"), runs=None).rounds
    page = player(lambda r: climb_figure({"copy": rounds}, r), list(range(len(rounds))), path)
    assert path.read_text() == page and len(page) < 3 * 2**20
    assert not re.search(r"https?://|src=\"(?!data:)|<link|fa fa-", page)
    assert len(re.findall(r"frames\[\d+\] = \"data:image/png", page)) == MOST_FRAMES
    assert "▶" in page and "|◀" in page


def test_what_the_page_would_load_is_taken_out():
    assert without_network('<link rel="x"\nhref="https://a/b.css"><i class="fa fa-play"></i>') == "▶"


# the command

def test_the_command_draws_and_says_what_the_records_say(tmp_path, capsys):
    for kind, begins in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        file = tmp_path / f"x.{kind}"
        assert main(["figure", "reverse_addition", "--out", str(file)]) == 0 and file.read_bytes().startswith(begins)
    assert "reproduced" in capsys.readouterr().out
    page = tmp_path / "x.html"
    assert main(["figure", "reverse_addition", "--html", str(page), "--seed", "1"]) == 0
    assert page.exists() and "7 of the rounds 0 to 6" in capsys.readouterr().out
    assert main(["figure", "reverse_addition", "--round", "-7"]) == 2
    assert "--round -7 must be" in capsys.readouterr().err


@pytest.mark.parametrize("words, sentence", [
    (["copi"], "unknown figure 'copi'"), (["reverse_addition", "--scale", "gpu"], "is not recorded yet"),
    (["reverse_addition", "--out", "x.jpg"], "a picture's name ends in .png, .pdf, .svg")])
def test_what_cannot_be_drawn(tmp_path, capsys, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["figure", *words]) == 2 and sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_reproduce_runs_what_is_missing_once_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "copy_and_reverse", "--scale", "smoke", "--seed", "0,4", "--quiet", "--out", "a.png"]
    assert main(words) == 0 and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(runs) == 4
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/rounds.jsonl")}
    (tmp_path / "a.png").unlink()
    capsys.readouterr()
    assert main(words) == 0 and (tmp_path / "a.png").exists()
    assert written == {path: path.stat().st_mtime_ns for path in written}, "nothing is run twice"


@pytest.mark.parametrize("words, sentence", [
    (["copi"], "unknown figure 'copi'"), (["copy_and_reverse", "--scale", "huge"], "unknown scale 'huge'"),
    (["copy_and_reverse", "--scale", "smoke", "--out", "a.jpg"], "a picture's name ends in"),
    (["copy_and_reverse", "--seed", "x"], "write a whole number"),
    (["copy_and_reverse", "--threads", "many"], "--threads 'many'"),
    (["reverse_addition", "--scale", "laptop"], "has no experiment at this scale")])
def test_what_cannot_be_reproduced(tmp_path, capsys, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(EXPERIMENTS["reverse_addition"].scales, "laptop")
    assert main(["reproduce", *words]) == 2 and sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, sentence", [(["--round", "99"], "has rounds 0 to 6"), (["--seed", "-3"], "--seed -3")])
def test_a_round_or_seed_that_is_not_there(tmp_path, capsys, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["figure", "reverse_addition", *words]) == 2 and sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_page_has_a_title_and_its_characters(tmp_path):
    page = player(lambda r: climb_figure({"copy": climb()}, r), [0, 1], tmp_path / "x.html", "a <b> & c")
    assert page.startswith("<!doctype html>") and '<meta charset="utf-8">' in page
    assert page.count("a &lt;b&gt; &amp; c") == 2


def test_the_loop_is_drawn_where_no_such_problem_was_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "framework", "--scale", "smoke", "--quiet", "--out", "a.png"]) == 0
    assert (tmp_path / "a.png").exists()
