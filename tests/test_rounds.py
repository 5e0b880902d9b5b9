"""Lines of a record: what is read, what is refused and why, older records, and rounds that wait to be measured."""
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from loop_tools import Stop, plain, same_weights, stop_at

import self_improve
from self_improve import ensemble
from self_improve.loop import SelfImprovement
from self_improve.records import Run, find_base, find_run
from self_improve.rounds import RECORD_SCHEMA, Round, migrate, parse_round, round_line

STORED = sorted((Path(self_improve.__file__).parent.parent / "data" / "runs").glob("*/rounds.jsonl"))
every_stored = pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)

REPORT = dict(made=4, kept=2, right=1, possible=2, steps=[["vote", 3, 1], ["length", 2, 1]])
MEASURED = dict(accuracy=0.5, n=8, low=0.2, high=0.8, members=[0.25, 0.75], ensemble=0.5)
# no field has its default
FULL = Round(
    3, [4, (5, 6)], 4, 100, [2.5, None], [0.5, 1.0], [REPORT, REPORT], {"4": MEASURED, "5,6": dict(accuracy=1, n=1)},
    {"5": 0.99}, {"6": 0.75}, [2, 1], ["model 1: nothing kept"], {"label": 0.5, "train": 3}, 120, 1e15,
    "other (identity 0a05d1d2)",
    {"4": {"0": [1, 0], "3": [7, 6]}}, {"4": {"-1": [0, 2], "endless": [0, 1]}}, {"4": [1, 2, 0]},
    {"4": [[0, "12=", "1…"]]}, 0.125)


def line(drop=(), **changes):
    """The line of a full round with some values changed; pairs as JSON has them."""
    values = {name: value for name, value in asdict(FULL).items() if name not in drop}
    return json.dumps(values | changes).encode()


# without the truth

def test_what_a_schedule_gets_is_the_same_whatever_the_truth_is():
    worse = replace(
        FULL, label_accuracy=[0.0, 0.0], filter=[REPORT | dict(right=0, possible=0, steps=[])] * 2, accuracy=None,
        probe={}, votes={}, lengths={}, positions={}, wrong={})
    seen = FULL.without_truth()
    assert seen == worse.without_truth() and seen.kept == FULL.kept and seen.trained == FULL.trained
    assert seen.at(4) is None and seen.lowest(4) is None
    with pytest.raises(KeyError, match="right"): _ = seen.precision
    # what needs no truth is all there
    kept = {"round", "levels", "frontier", "steps", "loss", "acceptance", "repeats", "events", "seconds", "peak_mb",
            "flops", "base_from", "flips"}
    assert all(getattr(seen, name) == getattr(FULL, name) for name in kept)


# there and back

def test_a_full_round_comes_back():
    empty = Round(0, [], 0, 0)
    assert all(getattr(FULL, f.name) != getattr(empty, f.name) for f in fields(Round)), "it shows too little"
    written = round_line(FULL)
    assert parse_round(written.encode()) == FULL and written.endswith("}\n") and written.count("\n") == 1
    assert set(json.loads(written)) == {f.name for f in fields(Round)}


@pytest.mark.parametrize("changes", [
    dict(levels=[(1, 6), (6, 1)]), dict(levels=[]), dict(accuracy=None), dict(accuracy={}), dict(flips=0.0),
    dict(flips=None), dict(loss=[None]), dict(votes={}, wrong={}), dict(flops=0, base_from=""), dict(events=["…"])],
    ids=str)
def test_a_changed_round_comes_back(changes):
    done = replace(FULL, **changes)
    again = parse_round(round_line(done).encode())
    assert again == done and round_line(again) == round_line(done)


def test_what_says_nothing_is_not_written():
    bare = Round(0, [1, 3], 3, 10)
    later = {"acceptance", "repeats", "base_from", "votes", "lengths", "positions", "wrong", "flips"}
    assert set(json.loads(round_line(bare))) == {f.name for f in fields(Round)} - later
    assert json.loads(round_line(replace(bare, flips=0.0)))["flips"] == 0.0, "no answer changed: that says something"
    assert parse_round(round_line(bare).encode()) == bare


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_written(number):
    with pytest.raises(ValueError): round_line(replace(FULL, loss=[number]))


# what is refused

NO_COUNT = [-1, 1.0, True, "1", None, [1]]
NO_SHARE = [1.1, -0.1, True, "0.5", [0.5]]
NO_NUMBER = ["1", True, [1.0], {}]
NO_COUNTS = [None, [], {"4": [1]}, {"4": {"3": 3}}, {"4": {"3": [1.5]}}, {"4": {"3": [-1]}}, {"4": {"3": [True]}}]
NO_REPORT = [
    [], 3, {}, REPORT | {"made": "4"}, REPORT | {"made": True}, REPORT | {"right": -1}, REPORT | {"possible": 0.5},
    {k: v for k, v in REPORT.items() if k != "possible"}, REPORT | {"kept": 5}, REPORT | {"right": 3},
    REPORT | {"steps": "all"}]
NOT_MEASURED = [
    0.5, [], {}, dict(accuracy=0.5), dict(n=8), MEASURED | {"n": -1}, MEASURED | {"n": 8.0}, MEASURED | {"accuracy": 2},
    MEASURED | {"accuracy": None}, MEASURED | {"low": -0.1}, MEASURED | {"high": "1"}, MEASURED | {"ensemble": True},
    MEASURED | {"members": [1.5]}, MEASURED | {"members": "x"}, MEASURED | {"members": None}, MEASURED | {"members": 1}]
# field → values that it cannot have
WRONG = {
    "round": NO_COUNT, "frontier": NO_COUNT, "steps": NO_COUNT, "peak_mb": NO_COUNT,
    "levels": [3, None, {}, [-1], [True], ["4"], [1.5], [[1]], [[1, 2, 3]], [[1, -2]], [[1, [2]]]],
    "loss": [0.5, None, *([x] for x in NO_NUMBER)], "label_accuracy": [0.5, None, [None], *([x] for x in NO_SHARE)],
    "filter": [None, {}, *([x] for x in NO_REPORT)],
    "accuracy": [0.5, [], *({"4": x} for x in NOT_MEASURED)], "probe": [None, [], {"4": None}, {"4": 2}, {"4": True}],
    "acceptance": [None, [], {"4": None}, {"4": 2}, {"4": True}], "repeats": [2, None, *([x] for x in NO_COUNT)],
    "events": [None, "x", [1], [None]], "seconds": [None, [], {"train": "1"}, {"train": None}, {"train": True}],
    "flops": [None, *NO_NUMBER], "base_from": [None, 1, ["x"]], "flips": NO_SHARE,
    "votes": NO_COUNTS, "lengths": NO_COUNTS,
    "positions": [None, [], {"4": 1}, {"4": [-1]}, {"4": [True]}, {"4": {"0": [1]}}],
    "wrong": [None, [], {"4": ["x"]}, {"4": [[1.5, "p", "o"]]}, {"4": [[-1, "p", "o"]]}, {"4": [[0, ["p"]]]}],
}


def test_every_field_has_values_that_are_refused():
    assert set(WRONG) == {f.name for f in fields(Round)}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG.items() for value in values], ids=str)
def test_a_field_with_an_impossible_value_is_refused(name, value):
    with pytest.raises(ValueError, match=f"its {name} is not what a round has: ") as error:
        parse_round(line(**{name: value}))
    assert "\n" not in str(error.value) and len(str(error.value)) < 120


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("name", ["loss", "flops", "flips", "seconds"])
def test_constants_that_json_lacks_are_refused(name, constant):
    text = line(**{name: {"train": "@"} if name == "seconds" else ["@"]}).decode().replace('"@"', constant)
    with pytest.raises(ValueError, match=f"^{constant} is no number"): parse_round(text.encode())


# JSON's numbers have no end: one that no float holds, with a point and without
@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + 400 * "0"], ids=["point", "minus", "whole"])
@pytest.mark.parametrize("name, value", [
    ("loss", ["@"]), ("label_accuracy", ["@"]), ("seconds", {"train": "@"}), ("flops", "@"), ("flips", "@"),
    ("probe", {"4": "@"}), ("accuracy", {"4": {"accuracy": "@", "n": 1}})])
def test_numbers_that_no_float_holds_are_refused(name, value, number):
    text = line(**{name: value}).decode().replace('"@"', number)
    with pytest.raises(ValueError, match=f"its {name} is not what a round has"): parse_round(text.encode())


@pytest.mark.parametrize("depth", [1000, 100_000])
@pytest.mark.parametrize("opened", ["[", '{"a":', '{"round": [', '{"wrong": {"4": ['])
def test_deep_brackets_are_refused(opened, depth):
    with pytest.raises(ValueError, match="nested too deeply"): parse_round((opened + "[" * depth).encode())


@pytest.mark.parametrize("name", ["round", "levels", "frontier", "steps"])
def test_a_missing_field_is_named(name):
    with pytest.raises(ValueError, match=f"^it has no {name}$"): parse_round(line(drop=[name]))


def test_other_fields_may_be_missing():
    names = ("round", "levels", "frontier", "steps")
    others = [f.name for f in fields(Round) if f.name not in names]
    assert parse_round(line(drop=others)) == Round(*[getattr(FULL, name) for name in names])


@pytest.mark.parametrize("text, sentence", [
    (b"[]", "it is no object"), (b"3", "it is no object"), (b"null", "it is no object"), (line(colour=3), "'colour'"),
    (line(Round=3), "unknown field 'Round'")], ids=["list", "number", "null", "colour", "capital"])
def test_what_is_no_round_is_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence): parse_round(text)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{}", line()[:-1], line() + b"{}"], ids=repr)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError): parse_round(text)


# figures

@pytest.mark.parametrize("level, lowest", [(4, 0.25), ((5, 6), 1), (7, None), ((6, 5), None)])
def test_the_worst_member(level, lowest): assert FULL.lowest(level) == lowest


def test_the_worst_member_of_what_was_not_measured():
    for accuracy in (None, {}, {"4": {}}): assert replace(FULL, accuracy=accuracy).lowest(4) is None


# older records

def test_there_are_stored_records(): assert len(STORED) >= 20


@every_stored
def test_stored_lines_are_read_and_written_as_they_are(path):
    lines = path.read_bytes().splitlines(keepends=True)
    for number, text in enumerate(lines):
        done = parse_round(text)
        # the oldest records have no probe; what goes on gets an empty one
        values = json.loads(text)
        whole = values if "probe" in values else json.loads(round_line(done))
        assert done.round == number and json.loads(round_line(done)) == whole | values
        if "probe" in values: assert round_line(done).encode() == text
    assert lines


@every_stored
def test_a_stored_record_is_read_with_its_own_schema(path):
    stored, run = json.loads((path.parent / "config.json").read_text()), Run(path.parent)
    assert run.schema == stored["schema"] and run.unmeasured is None and run.rounds
    if run.schema == 1: assert run.info == {"code": None, "cpu_capability": None} | stored["provenance"]


def test_migration():
    old = {"schema": 1, "config": {"high": 3}, "provenance": {"torch": "2.4", "commit": "abc"}}
    about = {"code": None, "cpu_capability": None, "torch": "2.4", "commit": "abc"}
    assert migrate(old) == {"schema": RECORD_SCHEMA, "config": {"high": 3}, "provenance": about} and old["schema"] == 1
    assert migrate({"schema": 1})["provenance"] == {"code": None, "cpu_capability": None}
    now = {"schema": 2, "provenance": {"code": "x"}}
    assert RECORD_SCHEMA == 2 and migrate(now) == now


@pytest.mark.parametrize("schema", [0, 3, "1", None])
def test_another_schema_is_refused(schema, tmp_path, tiny):
    with pytest.raises(ValueError, match=f"schema {schema!r}; this one reads 1 and 2.*update the package"):
        migrate({"schema": schema})
    change_config(Run.create(tmp_path / "run", tiny()).folder, schema=schema)
    with pytest.raises(ValueError, match=f"run cannot be read: .*schema {schema!r}"): Run(tmp_path / "run")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=1))


@pytest.mark.parametrize("provenance", [[], ["x"], 3, None, "x"], ids=repr)
def test_an_older_record_that_is_damaged_is_refused(provenance, tmp_path, tiny):
    change_config(Run.create(tmp_path / "run", tiny()).folder, schema=1, provenance=provenance)
    with pytest.raises(ValueError, match="run cannot be read: its provenance is no table"):
        Run(tmp_path / "run")


def test_an_older_run_that_goes_on_becomes_one_of_this_schema(tmp_path, tiny, talkative):
    short, longer = tiny(loop=dict(rounds=1)), tiny(loop=dict(rounds=2))
    list(SelfImprovement(short, tmp_path / "run"))
    path = tmp_path / "run" / "config.json"
    about = json.loads(path.read_text())["provenance"]
    for key in ("code", "cpu_capability"): del about[key]
    change_config(tmp_path / "run", schema=1, provenance=about)
    before = path.read_bytes()
    old = Run(tmp_path / "run")
    assert old.schema == 1 and old.info["code"] is None and list(SelfImprovement(short, old)) == []
    assert path.read_bytes() == before, "reading it, or finding nothing to do, changes nothing"
    again, straight = SelfImprovement(longer, Run.create(tmp_path / "run", longer)), SelfImprovement(longer)
    list(again), list(straight)
    assert same_weights(again, straight) and plain(Run(tmp_path / "run").rounds) == plain(straight.rounds)
    stored = json.loads(path.read_text())
    assert stored["schema"] == Run(tmp_path / "run").schema == 2 and stored["config"]["loop"]["rounds"] == 2
    assert stored["provenance"] == about | {"code": None, "cpu_capability": None}, "nobody knows what code began it"


# stored, and not measured

ARMS = [dict(), dict(train=dict(fresh=False), loop=dict(members=2))]


@pytest.mark.parametrize("arm", ARMS, ids=["one", "two members with moments"])
@pytest.mark.parametrize("r", [0, 1, 2])
def test_a_round_that_waits_is_measured_first(r, arm, tmp_path, tiny, talkative, monkeypatch):
    """Interrupted while round r was measured: readers do not see it, and going on trains nothing for it again."""
    config, folder = tiny(**arm), tmp_path / "run"
    straight = SelfImprovement(config)
    list(straight)
    with pytest.raises(Stop): list(SelfImprovement(config, folder, progress=stop_at(r, "measure")))
    run = Run(folder)
    assert [done.round for done in run.rounds] == list(range(r)) and not run.done
    assert run.unmeasured.round == r and run.unmeasured.accuracy is None and find_run(config, tmp_path) is None
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == r + 1
    trained, step = [], ensemble.Trainer.step
    monkeypatch.setattr(ensemble.Trainer, "step", lambda trainer, *args: trained.append(1) or step(trainer, *args))
    again = SelfImprovement(config, folder)
    rounds = iter(again)
    measured = next(rounds)
    assert trained == [] and plain([measured]) == plain([straight.rounds[r]])
    assert Run(folder).unmeasured is None and len(Run(folder).rounds) == r + 1
    list(rounds)
    assert same_weights(again, straight) and plain(Run(folder).rounds) == plain(straight.rounds)
    assert len(trained) == config.loop.members * (2 - r) * config.loop.steps


def test_a_round_that_waits_keeps_its_weights(tmp_path, tiny, talkative):
    """The last round for a reader is the last one measured; the other one is there by its number."""
    config = tiny()
    straight = SelfImprovement(config, tmp_path / "straight")
    list(straight)
    with pytest.raises(Stop): list(SelfImprovement(config, tmp_path / "run", progress=stop_at(1, "measure")))
    run = Run(tmp_path / "run")
    for r, stored in ((-1, 0), (0, 0), (1, 1)):
        assert torch.equal(run.model(r).head.weight, straight.run.model(stored).head.weight), r
    with pytest.raises(ValueError, match="no round 2"): run.model(2)
    assert run.frontier == config.high and len(run.rounds_frame()) == 1


def test_a_base_that_waits_is_no_base_yet(tmp_path, tiny, talkative):
    with pytest.raises(Stop): list(SelfImprovement(tiny(), tmp_path / "run", progress=stop_at(0, "measure")))
    assert find_base(tiny(), tmp_path) is None and Run(tmp_path / "run").frontier is None
    list(SelfImprovement(tiny(), tmp_path / "run"))
    assert find_base(tiny(), tmp_path).folder == tmp_path / "run"


@pytest.mark.parametrize("r", [0, 1])
def test_a_round_in_the_middle_that_was_never_measured_is_damage(r, tmp_path, tiny, talkative):
    list(SelfImprovement(tiny(), tmp_path / "run"))
    path = tmp_path / "run" / "rounds.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    lines[r]["accuracy"] = None
    path.write_text("".join(json.dumps(values) + "\n" for values in lines))
    with pytest.raises(ValueError, match=f"damaged at line {r + 1}: this round was never measured, and others follow"):
        Run(tmp_path / "run")
    path.write_text("".join(json.dumps(values) + "\n" for values in lines[:r + 1]))
    assert Run(tmp_path / "run").unmeasured.round == r
