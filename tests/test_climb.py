"""Climb-100: who may compete, hard sums, fresh problems, rounds computed again, and the board."""
import json
import math
from dataclasses import replace

import pytest
import torch

from self_improve import climb
from self_improve.arithmetic import ReverseAddition
from self_improve.cli import main
from self_improve.climb import (
    CHAIN,
    PROBLEMS,
    board_text,
    chained_digits,
    chained_problems,
    check_rules,
    climbed,
    fresh_problems,
    growth,
    measure_climb,
    reference_seconds,
    repeat_round,
    repeatable_rounds,
    t_tail,
    welch_p,
)
from self_improve.commands import sample_rounds
from self_improve.config import configure
from self_improve.experiments import experiment, smoke
from self_improve.labelling import measure
from self_improve.loop import SelfImprovement
from self_improve.model import Decoder
from self_improve.records import Run, record
from self_improve.streams import Stream
from self_improve.tasks import make_task


@pytest.fixture
def entry(tmp_path):
    """A whole run of two models."""
    config = smoke("copy", {"loop.members": 2})
    run = Run.create(tmp_path / "entry", config, "copy", "smoke")
    for _ in SelfImprovement(config, run, threads="one"): pass
    return Run(run.folder)


# the rules

@pytest.mark.parametrize("changes, sentence", [
    ({"task": "reverse"}, "reverse is not in Climb-100"), ({"low": 2}, "low=2: every length counts"),
    ({"high": 11}, "high=11: labels may be given for lengths"),
    ({"cap": "released"}, "knows the length of the truth"), ({"loop.filter": "oracle"}, "knows the truth"),
    ({"loop.schedule": "accelerated-by-truth"}, "knows the truth"),
    ({"tag": "mine"}, "objects of its own")])
def test_who_may_not_compete(changes, sentence):
    config = configure(experiment("copy"), changes)
    with pytest.raises(ValueError, match=sentence): check_rules(config)
    check_rules(experiment("copy", "laptop"))
    check_rules(configure(experiment("copy"), {"loop.schedule": "accelerated"}))


# hard sums

def longest_chain(a: int, b: int) -> int:
    """Columns that one carry runs through, that which makes it included, by hand."""
    longest = length = carry = 0
    while a or b:
        column = a % 10 + b % 10
        if column >= 10: length = 1
        elif column == 9 and carry: length += 1
        else: length = 0
        carry = column + carry >= 10
        longest = max(longest, length)
        a, b = a // 10, b // 10
    return longest


@pytest.mark.parametrize("level", [1, 2, 9, 10, 11, 37, 100])
def test_every_hard_sum_has_a_long_chain(level):
    digits = chained_digits(level, Stream(3, "verify-hard", level=level), 200)
    assert digits.shape == (200, 2, level) and digits.dtype == torch.uint8 and int(digits.max()) <= 9
    for a, b in digits.tolist():
        numbers = [sum(d * 10**k for k, d in enumerate(number)) for number in (a, b)]
        assert longest_chain(*numbers) >= min(CHAIN, level)


def test_hard_sums_are_right_and_differ():
    task = ReverseAddition()
    block = chained_problems(task, 30, Stream(1, "verify-hard", level=30), 100)
    for prompt, answer in zip(block.prompt, block.answer, strict=True):
        a, b = task.show(prompt)[:-1].split("+")
        assert task.show(answer).rstrip("$")[::-1].lstrip("0") == str(int(a[::-1]) + int(b[::-1])).lstrip("0")
    assert len({tuple(row) for row in block.prompt.tolist()}) == 100
    # the chains begin at every column that leaves room for them
    columns = chained_digits(30, Stream(1, "verify-hard", level=30), 500).sum(1)
    parts = columns.unfold(1, CHAIN, 1)
    assert ((parts[..., 0] >= 10) & (parts[..., 1:] == 9).all(2)).any(0).all()


@pytest.mark.parametrize("level", [1, 2, 10, 40])
def test_hard_sums_are_problems_of_the_task(level):
    """No number begins with zero: the task refuses to read such a sum."""
    task = ReverseAddition()
    for prompt in chained_problems(task, level, Stream(5, "verify-hard", level=level), 300).prompt:
        assert torch.equal(task.parse(task.show(prompt)).prompt[0], prompt)


def test_random_sums_have_short_chains():
    """Which is why the test has others: of random sums of 100 digits few have a chain of ten."""
    stream = Stream(0, "eval", level=100)
    block = ReverseAddition().draw((100, 100), stream, torch.arange(300))
    found = 0
    for prompt in block.prompt:
        a, b = ReverseAddition().show(prompt)[:-1].split("+")
        found += longest_chain(int(a[::-1]), int(b[::-1])) >= CHAIN
    assert found < 10


# fresh problems

def test_half_of_the_sums_are_hard_and_none_of_the_strings():
    task = make_task("reverse_addition")
    block = fresh_problems(task, 40, 7, 20)
    chains = []
    for prompt in block.prompt:
        a, b = task.show(prompt)[:-1].split("+")
        chains.append(longest_chain(int(a[::-1]), int(b[::-1])))
    assert len(block) == 20 and min(chains[10:]) >= CHAIN > min(chains[:10])
    copy = make_task("copy")
    assert len(fresh_problems(copy, 40, 7, 20)) == 20
    again, other = fresh_problems(copy, 5, 7, 9), fresh_problems(copy, 5, 8, 9)
    assert torch.equal(again.prompt, fresh_problems(copy, 5, 7, 9).prompt)
    assert not torch.equal(again.prompt, other.prompt)
    used = [copy.draw(5, Stream(7, purpose, level=5), torch.arange(9)).prompt for purpose in ("eval", "tune", "probe")]
    assert not any(torch.equal(again.prompt, prompts) for prompts in used), "nobody has seen them"


def test_accuracy_is_that_of_the_stored_weights(entry, monkeypatch):
    """With the evaluation's problems in place of fresh ones it is the accuracy that the record has."""
    def evaluation(task, level, seed, n): return task.draw(level, Stream(seed, "eval", level=level), torch.arange(n))
    monkeypatch.setattr(climb, "fresh_problems", evaluation)
    told = []
    found = measure_climb(entry, entry.config.data_seed, 5, 16, tell=lambda *args: told.append(args))
    assert found == {k: pytest.approx(entry.rounds[-1].accuracy[str(k)]["accuracy"]) for k in range(1, 6)}
    assert told == list(found.items())
    models = [entry.model(-1, k) for k in range(2)]
    assert found[3] == pytest.approx(measure(models, entry.config.parsed_task, [3], 0, 16)["3"]["accuracy"], abs=1e-6)


# rounds computed again

def test_a_round_computed_again_is_the_same(entry):
    assert repeatable_rounds(entry) == [0, 1, 2]
    for r in range(3): assert repeat_round(entry, r)
    for k in range(2): entry.path("weights", 0, k).unlink()
    assert repeatable_rounds(entry) == [2]


def test_a_round_that_was_taken_back_is_taken_back_again(entry, monkeypatch):
    """Its weights are those of the round before."""
    for k in range(2): entry.save_model(entry.model(1, k), 2, k)
    assert not repeat_round_or_none(entry, 2)
    monkeypatch.setattr(climb, "train_member", lambda m, r, progress: (m.model.head.weight.data.zero_(), (None, []))[1])
    assert repeat_round(entry, 2)


def repeat_round_or_none(run, r):
    """Whether a round computed again is the same; None where it is not even alike."""
    try: return repeat_round(run, r)
    except ValueError: return None


def test_weights_that_no_round_leads_to_are_told(entry):
    torch.manual_seed(0)
    model = Decoder(entry.config.model, 99)
    with torch.no_grad(): model.head.weight[3] += 9
    entry.save_model(model, 2, 1)
    with pytest.raises(ValueError, match="round 2, model 1: computed again it answers .* differently"):
        repeat_round(entry, 2)
    entry.save_model(model, 0, 1)
    with pytest.raises(ValueError, match="round 0, model 1: computed again it answers .* differently"):
        repeat_round(entry, 0)


# the command

def test_the_command_says_what_it_finds(entry, capsys):
    command = ["verify-climb", str(entry.folder), "--count", "8", "--rounds", "3"]
    assert main(command) == 2 and "has come to 5, not to 100: --top 5" in capsys.readouterr().err
    assert main([*command, "--top", "5", "--seed", "4"]) == 1
    said = capsys.readouterr()
    assert "fresh problems of seed 4, 8 of every length from 1 to 5" in said.out
    assert "5 of 5 lengths below 99%" in said.out and "round 2, computed again: the same to the bit" in said.out
    assert "round 0, computed again: the same to the bit" in said.out and "this is no entry of Climb-100" in said.out
    for words in (["--rounds", "-1"], ["--count", "1"], ["--top", "0"]):
        assert main([*command, "--top", "5", *words]) == 2
        assert f"{words[0]} {words[1]} must be" in capsys.readouterr().err


def test_a_round_that_is_not_what_it_says_is_no_mistake_of_the_users(entry, capsys):
    model = Decoder(entry.config.model, 99)
    with torch.no_grad(): model.head.weight[3] += 9
    entry.save_model(model, 0, 1)
    assert main(["verify-climb", str(entry.folder), "--top", "5", "--count", "8"]) == 1
    said = capsys.readouterr()
    assert "round 0, model 1: computed again" in said.out and said.err == ""


def perfect(run, seed, top, n): return dict.fromkeys(range(1, 6), 1.0)


def test_a_good_entry_passes(entry, capsys, monkeypatch):
    monkeypatch.setattr("self_improve.commands.measure_climb", perfect)
    assert main(["verify-climb", str(entry.folder), "--top", "5"]) == 0
    assert "this is an entry of Climb-100" in capsys.readouterr().out


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_entry_without_all_its_weights_is_none(entry, capsys, monkeypatch, lost):
    """A base or a round that nobody can compute again may have seen the truth."""
    monkeypatch.setattr("self_improve.commands.measure_climb", perfect)
    # the last weights are read to be measured
    if lost == 2: entry.path("labels", 2, 0).unlink()
    else: entry.path("weights", lost, 0).unlink()
    assert main(["verify-climb", str(entry.folder), "--top", "5", "--rounds", "3"]) == 1
    assert "lacks weights or labels" in capsys.readouterr().out or lost == 2


def test_the_sample_of_rounds_comes_from_the_seed(tmp_path, entry):
    run = made(tmp_path, entry, "a")
    run.rounds = run.rounds[:1] * 50
    samples = {tuple(sample_rounds(run, 4, seed)) for seed in range(20)}
    assert all(len(set(sample)) == 4 and sample[0] == 0 for sample in samples) and len(samples) > 15
    assert sample_rounds(run, 0, 1) == [] and sample_rounds(run, 1, 1) == [0]
    assert sample_rounds(run, 99, 1) == list(range(50))


# the board

def made(tmp_path, entry, name, **changes):
    """A run to 100 on paper: the lines of a small one, with levels and accuracies written over."""
    folder = tmp_path / name
    config = configure(entry.config, {"loop.final": PROBLEMS, **changes.pop("settings", {})})
    run = Run.create(folder, config, "copy", "smoke")
    share = changes.get("share", 1.0)
    for r in entry.rounds:
        accuracy = {str(k): {"accuracy": share, "n": PROBLEMS} for k in range(1, 101)}
        seconds = {"label": 30.0 if r.round else 0.0, "train": 30.0, "measure": 999.0}
        run.add(replace(r, frontier=3 if r.round == 0 else 50 * r.round, accuracy=accuracy, seconds=seconds))
    return Run(folder)


def test_minutes_are_those_of_training_and_labels(tmp_path, entry):
    found = climbed(made(tmp_path, entry, "a"))
    assert found.minutes == pytest.approx(0.5 + 2) and found.lowest == 1.0 and found.reference is None
    assert climbed(made(tmp_path, entry, "b", share=0.98)) is None
    assert climbed(made(tmp_path, entry, "c", settings={"loop.filter": "oracle"})) is None
    assert climbed(entry) is None


def test_a_base_taken_from_another_run_does_not_count(tmp_path, entry):
    run = made(tmp_path, entry, "a")
    lines = (run.folder / "rounds.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {"base_from": "copy-smoke-none (identity 0)"}
    (run.folder / "rounds.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    assert climbed(Run(run.folder)) is None, "from random weights: the base has to be its own"


def test_the_board_has_a_row_for_each_recipe(tmp_path, entry):
    data = tmp_path / "data"
    # a folder of records without one
    (data / "runs").mkdir(parents=True)
    (data / "runs" / "index.json").write_text('{"schema": 1, "runs": []}')
    assert "has reached the top yet" in board_text(data)
    for seed in (0, 1):
        run = made(tmp_path, entry, f"seed-{seed}", settings={"model_seed": seed, "data_seed": seed})
        run.note({}, reference_seconds=1.25)
        record(Run(run.folder), data)
    record(made(tmp_path, entry, "other", settings={"loop.lr": 0.5}), data)
    lines = board_text(data).splitlines()
    assert len(lines) == 4 and sum("| 0, 1 | 2, 2 | 1.2 s, 1.2 s | 100.0 % |" in line for line in lines) == 1


# time

def test_how_a_round_grows(tmp_path, entry):
    run = made(tmp_path, entry, "a")
    with pytest.raises(ValueError, match="too few rounds"): growth(run)
    rounds = [replace(run.rounds[1], round=k, frontier=10 * k, seconds={"train": 3.0 * k**1.5}) for k in range(1, 9)]
    run.rounds[1:] = rounds
    assert growth(run) == pytest.approx(1.5)


# statistics

def test_students_distribution():
    """The 95 % points of printed tables."""
    for freedom, t in ((1, 6.314), (2, 2.920), (3, 2.353), (10, 1.812), (100, 1.660)):
        assert t_tail(t, freedom) == pytest.approx(0.05, abs=2e-4)
        assert t_tail(-t, freedom) == pytest.approx(0.95, abs=2e-4)
    assert t_tail(0.0, 4.5) == pytest.approx(0.5, abs=1e-4)


def test_when_a_recipe_is_faster():
    assert welch_p([29, 30, 31], [39, 40, 41]) < 0.01 < welch_p([29, 30, 45], [39, 40, 41])
    assert welch_p([39, 40, 41], [29, 30, 31]) > 0.99 and welch_p([1, 1, 1], [2, 2, 2]) == 0.0
    assert welch_p([30, 31, 33], [60, 62, 66]) == pytest.approx(welch_p([1, 31 / 30, 1.1], [2, 62 / 30, 2.2]))
    with pytest.raises(ValueError, match="three seeds on each side"): welch_p([1, 2], [3, 4, 5])


def test_the_reference_job_takes_time():
    assert 0 < reference_seconds(2, 1) < 60 and math.isfinite(reference_seconds(1, 1))
