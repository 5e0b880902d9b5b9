"""Every number in the README is read from a record."""
import json
import re
from pathlib import Path

import pytest
from readme_parts import filled, parts

from self_improve.config import configure, identity
from self_improve.experiments import EXPERIMENTS, experiment
from self_improve.records import Run, find_run, recorded
from self_improve.tables import first_fall, unfiltered_runs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path, computed", parts().items(), ids=lambda x: x.name if isinstance(x, Path) else "")
def test_computed_parts_are_what_the_records_say(path, computed):
    text = path.read_text(encoding="utf-8")
    assert filled(text, computed) == text, "python tests/readme_parts.py writes it anew"


def test_a_part_without_its_place_is_found():
    assert filled("a <!-- x -->1<!-- end -->", {"x": "2"}) == "a <!-- x -->2<!-- end -->"
    assert filled("<!-- x -->\n1\n<!-- end -->", {"x": "2\n3"}) == "<!-- x -->\n2\n3\n<!-- end -->"
    with pytest.raises(AssertionError, match="x: 0 places"): filled("nothing", {"x": "2"})


def test_the_need_for_a_filter_does_not_go_away_with_width():
    """As the README says of widths 64 to 192; strings written backwards hang on the seed."""
    groups = unfiltered_runs(ROOT / "data")
    for width in (64, 96, 128, 192): assert [first_fall(run) is None for run in groups["copy", width]] == [False] * 3
    assert {first_fall(run) is None for run in groups["reverse", 64]} == {True, False}


def test_the_speed_is_what_the_bench_recorded():
    record = json.loads((ROOT / "data" / "bench" / "tiny-cpu.json").read_text())
    training, answers, rounds = record["training"], record["labelling"], record["round"]
    said = re.search(r"<!-- bench -->(.*?)<!-- end -->", README, re.S).group(1)
    measured = [[t["ratio"] for t in training], [a["vote"]["ratio"] for a in answers],
                [r["ratio"] for r in rounds], [a["one_model"]["ratio"] for a in answers]]
    ranges = [(float(a), float(b)) for a, b in re.findall(r"(\d+\.\d+) to (\d+\.\d+)", said)]
    assert ranges == [(min(m), max(m)) for m in measured]
    assert all(a["same_answers"] == 1.0 for a in answers)
    times = re.search(r"in (\S+) times the time that one takes", said).group(1)
    assert times == str(record["together"][0]["label"]["times"])


def test_the_pictures_are_in_the_notebooks():
    for name in ("00_start", "60_loop", "80_plots"):
        cells = json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        assert any("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", [])), name


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_record_is_whole_and_indexed():
    entries = recorded(ROOT / "data")
    folders = {p.name for p in (ROOT / "data" / "runs").iterdir() if p.is_dir()}
    assert entries and {e["folder"].name for e in entries} == folders
    for e in entries:
        run = Run(e["folder"])
        assert e["identity"] == identity(run.config) and run.done and run.experiment in EXPERIMENTS
        assert e["rounds"] == len(run.rounds) - 1 and e["frontier"] == run.frontier
        assert {"commit", "torch", "hardware", "threads"} <= run.info.keys()


@pytest.mark.parametrize("name, reached", [("copy", 20), ("reverse", 20), ("reverse_addition", 13), ("maze_nodes", 13)])
def test_the_main_claim_over_three_seeds(name, reached):
    """Ten digits beyond the labelled ones for strings, five for sums, five nodes for mazes.

    Every level up to there is at 0.95 or better, on 1,000 problems each, without the truth.
    """
    for seed in range(3):
        run = find_run(configure(experiment(name), {"model_seed": seed, "data_seed": seed}), runs=None)
        assert run is not None and "oracle" not in run.config.loop.filter
        last = run.rounds[experiment(name).loop.rounds]
        assert last.frontier >= reached
        for level in range(run.config.low, reached + 1):
            assert last.accuracy[str(level)]["accuracy"] >= 0.95 and last.accuracy[str(level)]["n"] >= 1000


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name, reached", [("maze_hops", 8), ("maze_nodes", 18)])
def test_mazes_climb_on_right_labels_alone(name, reached, seed):
    """Every level past the labelled ones is mostly right in the end, the furthest far more than at the beginning.

    No wrong label was ever kept.
    """
    run = find_run(configure(experiment(name), {"model_seed": seed, "data_seed": seed}), runs=None)
    base, last = run.rounds[0].accuracy, run.rounds[experiment(name).loop.rounds]
    assert last.frontier == reached and "oracle" not in run.config.loop.filter
    assert all(f["right"] == f["kept"] >= 100 for r in run.rounds[1:] for f in r.filter)
    levels = range(run.config.high, reached + 1)
    assert all(last.accuracy[str(level)]["accuracy"] >= 0.8 for level in levels)
    furthest = max(map(int, base))
    assert last.accuracy[str(furthest)]["accuracy"] > base[str(furthest)]["accuracy"] + 0.3


@pytest.mark.parametrize("seed, side, pure", [(0, 0.95, 0.98), (1, 0.95, 0.98), (2, 0.6, 0.9)])
def test_multiplication_climbs_along_both_sides(seed, side, pure):
    """Seven digits by one to six, from little or nothing to nearly everything; one to five by seven, too.

    Few wrong labels are among those kept; but with seed 2 a shared mistake got in, as the README says.
    """
    run = find_run(configure(experiment("multiplication"), {"model_seed": seed, "data_seed": seed}), runs=None)
    base, last = run.rounds[0].accuracy, run.rounds[experiment("multiplication").loop.rounds].accuracy
    bounds = {f"7,{k}": 0.95 for k in range(1, 7)} | {f"{k},7": side for k in range(1, 6)}
    for level, least in bounds.items():
        assert last[level]["accuracy"] >= max(least, base[level]["accuracy"] + 0.5), level
        assert last[level]["n"] >= 1000, level
    reports = [f for r in run.rounds for f in r.filter]
    assert sum(f["right"] for f in reports) >= pure * sum(f["kept"] for f in reports)


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_lessons_can_start_at_the_base(name):
    """Its weights are stored, in two megabytes or less a run."""
    run = find_run(experiment(name), runs=None)
    files = [run.path("weights", 0, m) for m in range(run.config.loop.members)]
    assert all(f.exists() for f in files) and sum(f.stat().st_size for f in files) <= 2 * 2**20


def test_no_text_stands_behind_a_mark_at_the_beginning_of_a_line():
    """Markdown takes such a line for HTML, and shows its stars and brackets as they are."""
    for path in parts():
        assert re.findall(r"^ {0,3}<!--.*?-->.*\S", path.read_text(encoding="utf-8"), re.M) == []
