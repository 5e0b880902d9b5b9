"""What is printed about a run: lines, tables that are never cut, bars on a terminal only."""
import io
import sys

import torch

from self_improve.experiments import experiment
from self_improve.records import Round, find_run
from self_improve.report import (
    COLUMNS,
    HEADER,
    PIPE_WIDTH,
    Printer,
    Status,
    group_runs,
    levels_text,
    line,
    over_seeds,
    plural,
    round_cells,
    rounds_table,
    time_left,
)

ROUND = Round(3, [13], 13, 200, loss=[0.25, None], label_accuracy=[1.0, 0.5], accuracy={
    str(level): {"accuracy": 1 / level, "n": 100} for level in range(1, 15)}, seconds={"label": 1.0, "train": 2.5},
    filter=[{"made": 10, "kept": 8, "right": 6, "possible": 9}])


def test_a_round_as_cells_under_its_columns():
    cells = [cell.strip() for cell in round_cells(ROUND)]
    assert cells == ["3", "13", "0.2500", "75.0 %", "80.0 %", "75.0 %", "7.7 %", "7.1 %", "–", "–", "3.5 s"]
    assert len(line(ROUND)) == len(HEADER) and len(cells) == len(COLUMNS)
    for column in COLUMNS: assert column in HEADER


def test_of_pairs_the_last_one_is_the_level():
    pairs = Round(1, [(1, 7), (7, 2)], 6, 5, accuracy={"6,6": {"accuracy": 1.0, "n": 10}})
    cells = round_cells(pairs)
    assert cells[1] == "7,2" and cells[6] == " 100 %" and cells[2] == "–"


def test_levels_fill_the_width():
    wide, narrow = levels_text(ROUND, 200).splitlines(), levels_text(ROUND, 40).splitlines()
    assert len(wide) == 3 and len(narrow) == 8 and max(map(len, narrow[1:])) <= 40
    assert wide[0] == "accuracy by level after round 3, 100 problems each:"


def test_a_count_and_its_word(): assert (plural(1, "round"), plural(2, "round")) == ("1 round", "2 rounds")


def test_time_left():
    assert time_left([1, 2], 0) == "done" and "2 rounds" in time_left([5], 2)
    assert "20 s" in time_left([9, 10, 10, 10], 2) and "min" in time_left([9, 100, 100, 100], 9)


def screen(terminal):
    """What a person sees, or what a pipe gets."""
    return Printer(io.StringIO(), force_terminal=terminal, width=160)


def test_bars_on_a_terminal():
    printer = screen(True)
    status = Status(9, printer)
    status.start()
    status.about = ", level 13"
    status(3, "train model 1 of 2", 20, 80, torch.tensor(1.5))
    status(3, "train model 2 of 2", 40, 80, torch.tensor(0.25))
    assert len(status.bars) == 2, "models side by side have a bar each"
    status.progress.refresh()
    status(3, "measure", 0, 1, None)
    assert list(status.bars) == ["measure"], "a phase that is over has none"
    status.stop()
    text = printer.file.getvalue()
    assert "round 3 of 9, level 13" in text and "train model 1 of 2, loss 1.5000" in text
    assert "20/80" in text and "40/80" in text


def test_no_bars_in_a_pipe():
    printer = screen(False)
    status = Status(9, printer)
    status.start()
    status(3, "train", 20, 80, torch.tensor(1.5))
    status.stop()
    assert printer.file.getvalue() == ""


def test_a_table_is_never_cut():
    printer = Printer(io.StringIO(), force_terminal=True, width=40)
    run = find_run(experiment("copy"), runs=None)
    printer.show(rounds_table(run))
    text = printer.file.getvalue()
    assert "…" not in text and "99.7 %" in text and printer.width == 40


def test_a_notebook_is_no_terminal(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert not Printer().is_terminal and Printer().width == PIPE_WIDTH


def test_runs_of_one_configuration_are_a_group():
    run = find_run(experiment("copy"), runs=None)
    other = find_run(experiment("reverse"), runs=None)
    groups = group_runs([run, other, run])
    assert [len(members) for members in groups.values()] == [2, 1]
    found = over_seeds([run, run])[0]
    assert found["accuracy"]["20"]["deviation"] == 0 and found["round"] == len(run.rounds) - 1
