"""A run's folder and its name: what makes two runs the same, what a crash leaves, and what is refused."""
import ast
import dataclasses
import hashlib
import json
import os
import pickle
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch

import self_improve
from self_improve import records
from self_improve.loop import Labels, pack, unpack
from self_improve.model import Decoder, to_hf
from self_improve.records import (Config, LoopConfig, Round, Run, configure, data_folders, find_run, flatten, identity, load_tensors, record, recorded,
                                  save_tensors, to_config, write_atomic)
from self_improve.tasks import ARITHMETIC, EOS, PAD, Copy, Stream
from self_improve.train import TrainConfig

# As run folders hold them. A changed default changes the second hash, and the meaning of every folder out there: that is a new schema.
WHOLE = """{"task": "copy", "options": {}, "low": 1, "high": 3, "size": 5000000, "weight": 0.0, "cap": "generous", "model": {"layers": 1, "heads": 2,
"width": 16, "ffn": 16, "vocab": 18, "positions": "nope", "context": 1024, "theta": 10000.0, "std": 0.02, "eps": 1e-06}, "train": {"steps": 8, "lr": 0.002,
"warmup": 0.1, "decay": 0.2, "tail": 0.0, "batch": 8, "optimiser": "adamw", "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-08, "weight_decay": 0.01, "clip": 1.0,
"fresh": true, "rounded": false}, "loop": {"rounds": 2, "steps": 4, "lr": 0.001, "warmup": 0.1, "decay": 0.5, "tail": 0.0, "problems": 32, "filter": "none",
"members": 2, "shared": false, "schedule": "steps:1", "newest": 0.5, "evaluate": 16, "final": 16, "ahead": 5}, "model_seed": 0, "data_seed": 0}"""
PARTIAL = """{"task": "reverse", "low": 2, "high": 7, "model": {"layers": 2, "width": 96, "positions": "rope"}, "train": {"steps": 77, "lr": 0.0033,
"optimiser": "muon"}, "loop": {"filter": "length:1+vote:2/3", "members": 3, "steps": 33, "rounds": 5}, "model_seed": 3, "data_seed": 4}"""
STORED = [("{}", "ede0de807492408040925c13f91e20c5a5152f167d2e5fc064c61aa4b71f7267"), (WHOLE, "8a99ff3a366ef61b70e8db5160b9a6bc9562ea589840a1c1e0efd9353568a6f1"), (PARTIAL, "d47f6bbbc83f21879b63023d1120fc4cd3e0ebe73eeaa57e510ca760d06f66a0")]


def a_round(r, **more): return Round(r, [r + 3], r + 3, 4, [2.5], [0.5], [dict(made=4, kept=2, right=1, possible=2)], {"1": dict(accuracy=0.5, n=8, low=0.2, high=0.8)}, [], **more)


@pytest.fixture
def run(tmp_path, tiny):
    run = Run.create(tmp_path / "run", tiny(), "copy", "smoke")
    for r in range(2):
        run.save_model(Decoder(run.config.model, r), r, 0)
        run.add(a_round(r))
    return run


def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


# identity

@pytest.mark.parametrize("text, name", STORED, ids=["defaults", "whole", "partial"])
def test_stored_configurations_keep_their_names(text, name):
    config = to_config(json.loads(text))
    assert identity(config) == name
    assert identity(to_config(json.loads(json.dumps(asdict(config))))) == name, "through a file and back"


def test_fields_at_their_default_are_not_part_of_a_name():
    told = [records.SCHEMA, {"loop.steps": 7, "task": "reverse"}]
    assert identity(Config(task="reverse", loop=LoopConfig(steps=7))) == hashlib.sha256(json.dumps(told, separators=(",", ":")).encode()).hexdigest()


def test_a_field_added_later_leaves_old_names_alone(monkeypatch):
    old = identity(Config(high=4))
    @dataclass(frozen=True)
    class Later(Config):
        colour: str = "blue"
    monkeypatch.setattr(records, "Config", Later)
    assert identity(Later(high=4)) == old != identity(Later(high=4, colour="red"))


@pytest.mark.parametrize("key, value", [("task", "reverse"), ("high", 9), ("size", 99), ("weight", 3.0), ("cap", "released"), ("model.width", 32), ("model.positions", "alibi"),
                                        ("train.steps", 9), ("train.fresh", False), ("loop.filter", "length"), ("loop.newest", 0.4), ("loop.shared", True),
                                        ("model_seed", 1), ("data_seed", 1)])
def test_what_decides_the_outcome_decides_the_name(key, value):
    assert identity(configure(Config(), {key: value})) != identity(Config())


@pytest.mark.parametrize("key", ["loop.rounds", "loop.evaluate", "loop.final"])
def test_how_long_and_how_closely_one_looks_does_not(key):
    assert identity(configure(Config(), {key: 77})) == identity(Config())


def test_equal_configurations_have_one_name():
    """A whole number where a real one is meant, as written in code, on the command line or in JSON."""
    for key, value in (("weight", 10), ("train.lr", 1), ("loop.newest", 1), ("train.clip", 2)):
        room, _, name = key.rpartition(".")
        as_int = replace(Config(), **({room: replace(getattr(Config(), room), **{name: value})} if room else {name: value}))
        assert as_int == configure(Config(), {key: str(value)}) and identity(as_int) == identity(configure(Config(), {key: str(value)})), key


# changing a configuration

def test_configure():
    config = configure(Config(), {"loop.rounds": "3", "train.lr": "1e-4", "train.fresh": "false", "loop.filter": "length:1", "weight": "2", "high": 4})
    assert (config.loop.rounds, config.train.lr, config.train.fresh, config.loop.filter, config.weight, config.high) == (3, 1e-4, False, "length:1", 2.0, 4)
    assert flatten(config)["loop.rounds"] == 3 and configure(Config(), {}) == Config()
    assert (configure(Config(), {"model.width": "9", "model.heads": "3"}).model.heads) == 3   # neither would do alone


@pytest.mark.parametrize("key, near", [("loop.round", "loop.rounds"), ("steps", "steps"), ("train.learning_rate", "train"), ("loop", ""), ("", ""), ("nonsense", "loop.rounds")])
def test_unknown_keys_are_refused(key, near):
    with pytest.raises(ValueError, match=f"unknown key '{key}'.*{near}"): configure(Config(), {key: "1"})


@pytest.mark.parametrize("key, value", [
    ("loop.rounds", "x"), ("loop.rounds", "1.5"), ("loop.rounds", 1.5), ("loop.rounds", ""), ("loop.rounds", "-1"), ("loop.steps", "-1"), ("loop.problems", "0"), ("loop.members", "0"),
    ("loop.evaluate", "0"), ("loop.final", "0"), ("loop.ahead", "-1"), ("loop.newest", "0"), ("loop.newest", "1.5"), ("loop.newest", "nan"), ("loop.filter", "lenght"),
    ("loop.filter", "vote"), ("loop.filter", "vote:2/3"), ("loop.filter", "verifier"), ("loop.schedule", "leaps:2"), ("loop.schedule", "steps:0"), ("loop.schedule", "steps:-1"),
    ("loop.lr", "nan"), ("loop.lr", "inf"), ("train.lr", "nan"), ("train.lr", "inf"), ("train.lr", "0"), ("train.lr", "fast"), ("train.batch", "0"), ("train.fresh", "maybe"), ("train.optimiser", "sgd"),
    ("train.steps", "-1"), ("train.beta1", "2"), ("model.heads", "3"), ("model.layers", "0"), ("model.vocab", "5"), ("model.positions", "none"), ("model.std", "-1"), ("low", "0"), ("low", "11"),
    ("high", "0"), ("size", "0"), ("weight", "-1"), ("weight", "nan"), ("cap", "huge"), ("task", "cpy"), ("options", "x")], ids=lambda x: str(x))
def test_impossible_values_are_refused_by_name(key, value):
    """Here, where nothing has been written yet; the sentence holds the value."""
    with pytest.raises(ValueError) as e: configure(Config(), {key: value})
    assert str(value) in str(e.value) or key == "loop.filter" and "vote" in str(e.value) or value == "verifier"
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("data", [{"colour": 1}, {"loop": {"colour": 1}}, {"train": {"steps": -1}}, {"task": "cpy"}])
def test_json_that_is_no_configuration_is_refused(data):
    with pytest.raises(ValueError): to_config(data)


# files

def test_tensors_are_the_same_bytes_for_the_same_numbers(tmp_path):
    tensors = {"b": torch.arange(6).reshape(2, 3).T, "a": torch.zeros(0, 4, dtype=torch.uint8)}
    save_tensors(tmp_path / "one", tensors)
    save_tensors(tmp_path / "two", dict(reversed(tensors.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = load_tensors(tmp_path / "one")
    assert set(again) == {"a", "b"} and all(torch.equal(again[k], tensors[k]) for k in again)
    save_tensors(tmp_path / "none", {})
    assert load_tensors(tmp_path / "none") == {}


@pytest.mark.parametrize("data", [b"", b"garbage", b"\xff" * 64, b"{}"], ids=repr)
def test_garbage_is_no_tensor_file(tmp_path, data):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="w.safetensors"): load_tensors(tmp_path / "w.safetensors")


class Trap:
    """Unpickling it leaves a file behind."""
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


def test_a_pickle_is_refused_unread(tmp_path):
    (tmp_path / "raw").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "saved")
    for name in ("raw", "saved"):
        with pytest.raises(ValueError, match=name): load_tensors(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_no_module_unpickles():
    for path in Path(self_improve.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import): assert not {a.name for a in node.names} & {"pickle", "shelve", "dill", "joblib"}, path
            if isinstance(node, ast.Call): assert ast.unparse(node.func) not in ("torch.load", "torch.save", "np.load", "numpy.load"), path


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    """A full disk shows at the latest when the file is flushed."""
    write_atomic(tmp_path / "x" / "file", b"old")
    def full(_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError): write_atomic(tmp_path / "x" / "file", b"new")
    assert contents(tmp_path) == {"x/file": b"old"}


# the folder

def test_a_folder_tells_what_was_put_in(run):
    again = Run(run.folder)
    assert again.config == run.config and identity(again.config) == json.loads((run.folder / "config.json").read_text())["identity"]
    assert again.rounds == run.rounds and (again.experiment, again.scale, again.frontier, again.done) == ("copy", "smoke", 4, False)
    assert {"version", "python", "torch", "hardware", "threads", "started"} <= set(again.info)
    for r in range(2): assert all(torch.equal(a, b) for a, b in zip(again.model(r).state_dict().values(), Decoder(run.config.model, r).state_dict().values()))
    assert torch.equal(again.model().head.weight, again.model(1).head.weight)


def test_derived_figures_of_a_round():
    r = replace(a_round(1), filter=[dict(made=4, kept=2, right=1, possible=2), dict(made=4, kept=0, right=0, possible=2)])
    assert (r.kept, r.purity, r.at(1), r.at(99)) == (0.25, 0.5, 0.5, None)
    assert (replace(r, filter=[]).kept, replace(r, filter=r.filter[1:]).purity) == (None, None)


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_cut_short_by_a_crash_does_not_count(run, cut):
    path = run.folder / "rounds.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = Run(run.folder)
    assert len(again.rounds) == (2 if cut == 1 else 1)   # one byte less is the newline alone: the line is whole
    again.add(a_round(len(again.rounds)))
    assert [r.round for r in Run(run.folder).rounds] == list(range(len(again.rounds)))


@pytest.mark.parametrize("change", [lambda lines: [lines[0][:30]] + lines[1:], lambda lines: ["[]"] + lines[1:], lambda lines: ["{}"] + lines[1:], lambda lines: lines[1:],
                                    lambda lines: [lines[0]] * 2, lambda lines: [lines[0].replace("levels", "level")] + lines[1:], lambda lines: ["\udcff"] + lines])
def test_a_damaged_line_is_refused(run, change):
    path = run.folder / "rounds.jsonl"
    text = "".join(line + "\n" for line in change(path.read_text().splitlines()))
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="rounds.jsonl"): Run(run.folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "\udcff", '{"architectures": ["LlamaForCausalLM"]}', '{"schema": 2}', '{"schema": 1, "config": {}, "experiment": "", "scale": "", "provenance": {}}',
                                  '{"schema": 1, "config": {"loop": 3}, "experiment": "", "scale": "", "provenance": {}, "identity": ""}',
                                  '{"schema": 1, "config": {"colour": 3}, "experiment": "", "scale": "", "provenance": {}, "identity": ""}',
                                  '{"schema": 1, "config": {"high": 4}, "experiment": "", "scale": "", "provenance": {}, "identity": "x"}'])
def test_a_corrupt_or_foreign_folder_is_refused_and_left_alone(tmp_path, tiny, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    for attempt in (lambda: Run(tmp_path), lambda: Run.create(tmp_path, tiny())):
        with pytest.raises(ValueError, match=str(tmp_path)): attempt()
    assert contents(tmp_path) == before


def test_only_an_empty_folder_or_its_own_is_taken(tmp_path, tiny, run):
    before = contents(run.folder)
    with pytest.raises(ValueError, match=f"another run.*{identity(tiny(high=4))[:8]}"): Run.create(run.folder, tiny(high=4))
    assert contents(run.folder) == before
    assert len(Run.create(run.folder, tiny(loop=dict(rounds=9))).rounds) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for place in (tmp_path / "full", tmp_path / "full" / "notes.txt"):
        with pytest.raises(ValueError, match="not empty and no run"): Run.create(place, tiny())
    assert contents(tmp_path / "full") == {"notes.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty", tiny()).rounds == []


def test_clearing_removes_a_run_and_nothing_else(run):
    (run.folder / "notes.txt").write_text("mine")
    run.clear()
    assert contents(run.folder) == {"notes.txt": b"mine"}


def test_missing_and_misfit_weights(run, tiny):
    path = run.path("weights", 1, 0)
    save_tensors(path, to_hf(Decoder(tiny(model=replace(tiny().model, width=32)).model)))
    with pytest.raises(ValueError, match=f"{path.name}.*embed_tokens.*16"): run.model()
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match=path.name): run.model()
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing"): run.model()
    with pytest.raises(ValueError, match="no finished round"): Run.create(run.folder.parent / "new", tiny()).model()


def test_provenance_needs_neither_git_nor_proc(monkeypatch):
    """A bare machine, or one of another system."""
    monkeypatch.setenv("PATH", "")
    def missing(path, *_, **__): raise FileNotFoundError(2, "No such file or directory", str(path))
    monkeypatch.setattr(records, "open", missing, raising=False)
    assert records.provenance()["commit"] is None


# labels

def answers(width, *texts): return torch.tensor([[EOS if ch == "$" else ARITHMETIC.ids[ch] for ch in t] + [PAD] * (width - len(t)) for t in texts], dtype=torch.uint8)


def test_labels_are_stored_as_differences_from_the_truth(tmp_path):
    stream, index = Stream(5, "self", 1, 4, 3), torch.tensor([0, 2, 7, 9, 700])
    block = Copy().draw(4, stream, index)
    label = torch.zeros(5, 9, dtype=torch.uint8)
    label[:, :5] = block.answer
    label[1], label[3] = answers(9, "12345678$", "1$")   # longer and shorter than the truth
    save_tensors(tmp_path / "labels", packed := pack([Labels(4, index, label, block)]))
    assert sum(len(packed[k]) for k in packed if "label" in k) == 2
    again, = unpack(load_tensors(tmp_path / "labels"), Copy(), Stream(5, "self", 1, round=3))
    assert again.level == 4 and torch.equal(again.index, index) and torch.equal(again.label, label)
    assert torch.equal(again.block.prompt, block.prompt) and torch.equal(again.block.answer, block.answer)


@pytest.mark.parametrize("width", [3, 5, 6, 9])
def test_labels_without_errors_or_narrower_than_the_truth(width):
    block = Copy().draw(4, Stream(0, "self", level=4, round=1), 3)
    label = torch.zeros(3, max(5, width), dtype=torch.uint8)
    label[:, :5] = block.answer
    if width < 5: label = answers(width, "1$", "22$", "$")
    again, = unpack(pack([Labels(4, torch.arange(3), label, block)]), Copy(), Stream(0, "self", round=1))
    assert torch.equal(again.label, torch.nn.functional.pad(label, (0, again.label.shape[1] - label.shape[1])))


def test_levels_come_back_in_their_order(tmp_path):
    """Names in a file are sorted as text, where 10 comes before 9; the order of rows decides what training draws."""
    sets = [Labels(level, torch.arange(2), (b := Copy().draw(level, Stream(0, "self", level=level, round=1), 2)).answer, b) for level in (8, 9, 10, 11)]
    save_tensors(tmp_path / "labels", pack(sets))
    assert [s.level for s in unpack(load_tensors(tmp_path / "labels"), Copy(), Stream(0, "self", round=1))] == [8, 9, 10, 11]


# recorded runs

def test_records_are_found_through_their_index(run, tmp_path, monkeypatch):
    run.save_model(Decoder(run.config.model), 2, 0)
    run.add(a_round(2))
    kept = record(run, tmp_path / "data", weights=[-1])
    assert set(contents(kept)) == {"config.json", "rounds.jsonl", "weights/002-0.safetensors"}
    monkeypatch.setenv("SELF_IMPROVE_DATA", str(tmp_path / "data"))
    entry, = recorded()
    assert entry["folder"] == kept and entry["identity"] == identity(run.config) and entry["frontier"] == 5 and entry["rounds"] == 2
    assert find_run(run.config, tmp_path / "nowhere").rounds == run.rounds
    assert find_run(configure(run.config, {"loop.rounds": 3}), tmp_path / "nowhere") is None, "it has too few rounds"
    assert find_run(configure(run.config, {"high": 4}), tmp_path) is None
    record(run, tmp_path / "data")
    assert len(recorded()) == 1, "recording it again replaces it"


def test_where_records_are_looked_for(tmp_path, monkeypatch):
    for name in ("argument", "variable"): (tmp_path / name).mkdir()
    monkeypatch.setenv("SELF_IMPROVE_DATA", str(tmp_path / "variable"))
    assert data_folders(tmp_path / "argument")[:2] == [tmp_path / "argument", tmp_path / "variable"]
    monkeypatch.setenv("SELF_IMPROVE_DATA", str(tmp_path / "gone"))
    assert tmp_path / "gone" not in data_folders()


def test_runs_of_ones_own_are_found(run, tmp_path):
    run.add(a_round(2))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert find_run(run.config, tmp_path).folder == run.folder


def test_every_recorded_run_can_be_read():
    for entry in recorded():
        run = Run(entry["folder"])
        assert identity(run.config) == entry["identity"] and run.rounds and run.frontier == entry["frontier"]
        assert {f.name for f in dataclasses.fields(TrainConfig)} >= set(json.loads((run.folder / "config.json").read_text())["config"]["train"])
