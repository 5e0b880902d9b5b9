"""Numbers from records: shares, minutes, what has been run and how it went."""
import json
import re
from dataclasses import asdict, replace

from self_improve.cli import main
from self_improve.experiments import EXPERIMENTS, experiment
from self_improve.records import Round, Run, find_run, record, recorded
from self_improve.tables import (
    RESULT_COLUMNS,
    catalogue,
    label_totals,
    labels_right,
    levels_beyond,
    lowest_accuracy,
    minutes,
    percent,
    results,
    tuned_seeds,
)

SQUARE = {}
for a in range(1, 4):
    for b in range(1, 4): SQUARE[f"{a},{b}"] = {"accuracy": 0.9999 if a < 3 else 0.5, "n": 100}
REPORT = {"made": 10, "kept": 9, "right": 8, "possible": 10}
PAIRS = [
    Round(0, [1, 2], 2, 5, loss=[0.1], accuracy=SQUARE),
    Round(1, [(1, 3), (3, 1)], 2, 5, loss=[0.1], accuracy=SQUARE, filter=[REPORT, REPORT]),
]


def test_a_share_is_all_only_when_it_is_all():
    shares = (None, 0, 0.5, 0.95, 0.9996, 0.9999999, 1)
    assert [percent(x).strip() for x in shares] == ["–", "0.0 %", "50.0 %", "95.0 %", "99.9 %", "99.9 %", "100 %"]
    assert {len(percent(x)) for x in shares} == {6}


def test_minutes_are_of_all_phases():
    base = Round(0, [1, 3], 3, 5, seconds={"train": 60.0, "measure": 6.0})
    assert minutes([base, Round(1, [4], 4, 5, seconds={"train": 6})]) == 1.2


def test_the_catalogue_says_what_is_recorded():
    rows = {(row["experiment"], row["scale"]): row for row in catalogue()}
    assert set(rows) >= {(name, scale) for name, known in EXPERIMENTS.items() for scale in known.scales}
    assert rows["copy", "tiny"]["recorded"] and rows["copy", "tiny"]["minutes"] > 0
    assert not rows["copy", "paper"]["recorded"] and rows["copy", "paper"]["minutes"] is None
    # the record of copying went on to round 64; its experiment ends at 10
    assert rows["copy", "tiny"]["minutes"] < 10


def test_pairs_beyond_the_square():
    nothing_kept = replace(PAIRS[1], filter=[REPORT | {"kept": 0, "right": 0}])
    assert levels_beyond(PAIRS) == ["1,3", "3,1"] and levels_beyond([PAIRS[0], nothing_kept]) == []
    assert lowest_accuracy(PAIRS) == 0.5 and lowest_accuracy(PAIRS[:1]) == 0.9999


def test_the_share_of_right_labels():
    assert label_totals(PAIRS) == {"made": 20, "kept": 18, "right": 16}
    assert labels_right(PAIRS) == 8 / 9 and labels_right(PAIRS[:1]) is None


def test_the_table_counts_pairs_beyond_the_square(tmp_path):
    words = ["run", "multiplication", "--scale", "smoke", "--set", "loop.rounds=1", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    run = Run(tmp_path / "run")
    folder = record(run, tmp_path)

    def row(kept):
        # an untrained model keeps nothing: what it kept is written in
        for report in run.rounds[1].filter: report["kept"] = report["right"] = kept
        text = "".join(json.dumps(asdict(r)) + "\n" for r in run.rounds)
        (folder / "rounds.jsonl").write_text(text)
        return results(tmp_path).splitlines()[2]
    assert "| 2 + 2 pairs |" in row(5) and "| 2 |" in row(0)
    assert "|      – |" in row(0), "nothing kept: no share of it is right"


def test_a_run_that_went_on_has_two_rows():
    run = find_run(experiment("copy"), runs=None)
    rows = [row for row in results().splitlines() if row.startswith("| copy, tiny | vote | 0* |")]
    assert len(run.rounds) == 65 and [row.split(" | ")[3] for row in rows] == ["10", "64"]
    assert results().splitlines()[0] == "| " + " | ".join(RESULT_COLUMNS) + " |"


def test_columns_by_a_second_route():
    """Worst model, and the last round's precision, from the lines of the file itself."""
    rows = [[cell.strip() for cell in row.strip("| ").split("|")] for row in results().splitlines()[2:]]
    for entry in recorded():
        lines = [json.loads(line) for line in (entry["folder"] / "rounds.jsonl").read_text().splitlines()]
        config = Run(entry["folder"]).config
        if config.task in ("multiplication", "forward_addition") or len(lines) > 20: continue
        last = lines[-1]
        upto = [m for level, m in last["accuracy"].items() if int(level) <= last["frontier"]]
        worst = min(min(m.get("members", [m["accuracy"]])) for m in upto)
        kept, right = [sum(report[key] for report in last["filter"]) for key in ("kept", "right")]
        about = (config.task, config.loop.filter, str(config.data_seed), str(last["round"]))
        mine = [r for r in rows if (r[0].split(",")[0], r[1].split(" ")[0].rstrip(","), r[2].strip("*"), r[3]) == about]
        usual = experiment(config.task).loop.members
        # single models without a filter have a table of their own
        if config.loop.members != usual: continue
        # a control keeps nothing
        precision = percent(right / kept).strip() if kept else "–"
        assert [mine[0][6], mine[0][8]] == [percent(worst).strip(), precision]


def test_seeds_that_settings_were_chosen_on_and_filters_that_know():
    assert tuned_seeds("copy", "tiny") == [0, 1] and tuned_seeds("reverse", "tiny") == []
    for line in results().splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        # all four checks of a verifier leave right paths alone; one of them, such as `verifier:moves`, does not
        knows = {"verifier", "oracle"} & set(re.split(r"[+ †,]+", cells[1]))
        assert ("†" in cells[1]) == bool(knows), cells[1]
        assert cells[2].endswith("*") == (int(cells[2].strip("*")) in tuned_seeds(cells[0].split(",")[0], "tiny"))
