"""A run's folder: what is written, what a crash leaves, what is refused, and how runs are found."""
import ast
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import self_improve
from self_improve import files
from self_improve.config import configure, identity
from self_improve.files import load_tensors, save_tensors, save_weights, write_atomic
from self_improve.model import Decoder, ModelConfig, to_llama_weights
from self_improve.optimizers import TrainConfig
from self_improve.records import (
    Round,
    Run,
    data_folders,
    find_base,
    find_run,
    frame,
    has_base,
    record,
    recorded,
    rounds_frame,
)
from self_improve.sampler import decode
from self_improve.streams import Stream
from self_improve.tasks import BOS, PAD, Copy, concat_columns, draw_problems


def a_round(r, **more):
    report = dict(made=4, kept=2, right=1, possible=2)
    measured = dict(accuracy=0.5, n=8, low=0.2, high=0.8)
    return Round(r, [r + 3], r + 3, 4, [2.5], [0.5], [report], {"1": measured, str(r + 3): measured}, **more)


@pytest.fixture
def run(tmp_path, tiny):
    run = Run.create(tmp_path / "run", tiny(), "copy", "smoke")
    for r in range(2):
        run.save_model(Decoder(run.config.model, r), r, 0)
        run.add(a_round(r))
    return run


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def same_parameters(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


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
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & {"pickle", "shelve", "dill", "joblib"}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("torch.load", "torch.save", "np.load", "numpy.load"), path


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
    assert again.config == run.config
    assert identity(again.config) == json.loads((run.folder / "config.json").read_text())["identity"]
    assert again.rounds == run.rounds and (again.experiment, again.scale) == ("copy", "smoke")
    assert (again.frontier, again.done) == (4, False)
    assert {"version", "python", "torch", "hardware", "threads", "started"} <= set(again.info)
    for r in range(2): assert same_parameters(again.model(r), Decoder(run.config.model, r))
    assert torch.equal(again.model().head.weight, again.model(1).head.weight)
    assert torch.equal(again.model(-2).head.weight, again.model(0).head.weight)


def test_levels_that_are_pairs_come_back_as_pairs(run):
    run.add(replace(a_round(2), levels=[(1, 6), (6, 1)]))
    assert Run(run.folder).rounds[-1].levels == [(1, 6), (6, 1)]


def test_a_line_says_where_its_base_came_from_only_if_it_was_shared(run):
    run.add(a_round(2, base_from="other (identity 0a05d1d2)"))
    lines = [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
    assert ["base_from" in line for line in lines] == [False, False, True]
    assert [r.base_from for r in Run(run.folder).rounds] == ["", "", "other (identity 0a05d1d2)"]


def test_derived_figures_of_a_round():
    two = [dict(made=4, kept=2, right=1, possible=2), dict(made=4, kept=0, right=0, possible=2)]
    r = replace(a_round(1), filter=two)
    assert (r.kept, r.precision, r.at(1), r.at(99)) == (0.25, 0.5, 0.5, None)
    assert (replace(r, filter=[]).kept, replace(r, filter=r.filter[1:]).precision) == (None, None)


def test_a_round_in_which_a_number_stands_for_a_square():
    r = replace(a_round(1), accuracy={"2,2": dict(accuracy=0.25)})
    assert r.at(2) == r.at((2, 2)) == 0.25 and r.at((2, 1)) is None


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_cut_short_by_a_crash_does_not_count(run, cut):
    path = run.folder / "rounds.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = Run(run.folder)
    # one byte less is the newline alone: the line is whole
    assert len(again.rounds) == (2 if cut == 1 else 1)
    again.add(a_round(len(again.rounds)))
    assert [r.round for r in Run(run.folder).rounds] == list(range(len(again.rounds)))


DAMAGES = {
    "cut": lambda lines: [lines[0][:30]] + lines[1:],
    "list": lambda lines: ["[]"] + lines[1:],
    "empty": lambda lines: ["{}"] + lines[1:],
    "first line lost": lambda lines: lines[1:],
    "line twice": lambda lines: [lines[0]] * 2,
    "field renamed": lambda lines: [lines[0].replace("levels", "level")] + lines[1:],
    "levels are a number": lambda lines: [lines[0].replace("[3]", "3")] + lines[1:],
    "not text": lambda lines: ["\udcff"] + lines,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_refused(run, damage):
    path = run.folder / "rounds.jsonl"
    text = "".join(line + "\n" for line in DAMAGES[damage](path.read_text().splitlines()))
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="rounds.jsonl is damaged at line"): Run(run.folder)


CONFIG = '{"schema": 1, "config": %s, "experiment": "", "scale": "", "provenance": {}%s}'


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "7", "\udcff", '{"architectures": ["LlamaForCausalLM"]}', '{"schema": 2}',
    CONFIG % ("{}", ""), CONFIG % ('{"loop": 3}', ', "identity": ""'), CONFIG % ('{"colour": 3}', ', "identity": ""'),
    CONFIG % ('{"high": 4}', ', "identity": "x"')])
def test_a_corrupt_or_foreign_folder_is_refused_and_left_alone(tmp_path, tiny, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    for attempt in (lambda: Run(tmp_path), lambda: Run.create(tmp_path, tiny())):
        with pytest.raises(ValueError, match=str(tmp_path)): attempt()
    assert contents(tmp_path) == before


def test_only_an_empty_folder_or_its_own_is_taken(tmp_path, tiny, run):
    before = contents(run.folder)
    with pytest.raises(ValueError, match=f"another run.*{identity(tiny(high=4))[:8]}"):
        Run.create(run.folder, tiny(high=4))
    assert contents(run.folder) == before
    longer = Run.create(run.folder, tiny(loop=dict(rounds=9)))
    assert len(longer.rounds) == 2 and longer.config.loop.rounds == 9
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


def test_a_fresh_start_keeps_nothing_of_the_old_rounds(run, tiny):
    assert Run.create(run.folder, tiny(), fresh=True).rounds == []
    assert set(contents(run.folder)) == {"config.json"}


def test_missing_and_misfit_weights(run, tiny):
    path = run.path("weights", 1, 0)
    save_tensors(path, to_llama_weights(Decoder(replace(tiny().model, width=32))))
    with pytest.raises(ValueError, match=f"{path.name} does not fit this run: .*32.*16"): run.model()
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match=path.name): run.model()
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing"): run.model()
    for r in (2, -3):
        with pytest.raises(ValueError, match=f"no round {r}: it has rounds 0 to 1"): run.model(r)
    with pytest.raises(ValueError, match="no finished round"): Run.create(run.folder.parent / "new", tiny()).model()


def test_a_model_of_ones_own_is_saved_under_its_own_names(run):
    def factory(config, seed):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Embedding(config.vocab, 4), torch.nn.Linear(4, config.vocab))
    model = factory(run.config.model, 5)
    run.save_model(model, 1, 0)
    assert set(load_tensors(run.path("weights", 1, 0))) == {"0.weight", "1.weight", "1.bias"}
    assert same_parameters(run.model(1, factory=factory), model)
    with pytest.raises(ValueError, match="001-0.safetensors does not fit this run"): run.model(1)
    run.note({"model": {"class": "mine.Model"}})
    with pytest.raises(ValueError, match="run has a model of its own, mine.Model: give it as factory="): run.model(1)
    assert same_parameters(run.model(1, factory=factory), model)


def test_what_replaces_parts_of_a_configuration_is_noted(run):
    assert run.overrides == {} and "overrides" not in json.loads((run.folder / "config.json").read_text())
    run.note({"filter": {"class": "mine.Swap", "fields": {"share": "0.5"}}}, threads_mode="one")
    again = Run(run.folder)
    assert again.overrides == {"filter": {"class": "mine.Swap", "fields": {"share": "0.5"}}}
    assert again.info == run.info and again.info["threads_mode"] == "one" and again.info["started"]
    assert again.rounds == run.rounds and identity(again.config) == identity(run.config)


def test_provenance_needs_neither_git_nor_proc(monkeypatch):
    """A bare machine, or one of another system."""
    monkeypatch.setenv("PATH", "")

    def missing(path, *_, **__): raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(files, "open", missing, raising=False)
    found = files.provenance()
    assert found["commit"] is None and found["hardware"] == files.platform.processor()


# two processes

HOLDER = """
import sys
from self_improve.records import Run
with Run(sys.argv[1]).writing():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_only_one_process_writes_a_folder(run, tiny):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.folder)],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        before = contents(run.folder)
        with pytest.raises(ValueError, match="run is being written by process [0-9]+: wait for its end") as error:
            with run.writing(): pass
        assert "\n" not in str(error.value)
        # reading is free; emptying is not
        assert len(Run(run.folder).rounds) == 2
        with pytest.raises(ValueError, match="by process [0-9]+"): Run.create(run.folder, tiny(), fresh=True)
        assert contents(run.folder) == before
    finally: holder.communicate("")
    with run.writing(), run.writing(): pass
    assert not list(run.folder.glob(".lock")), "nothing is left of it"


def test_a_folder_is_free_again_after_an_error(run):
    with pytest.raises(KeyError):
        with run.writing(): raise KeyError
    with run.writing(): assert list(run.folder.glob(".lock"))


# tables

def test_a_table_has_a_row_for_each_run_round_and_level(run, tmp_path, tiny):
    other = Run.create(tmp_path / "other", tiny(data_seed=7, loop=dict(members=3, filter="vote")), "copy", "smoke")
    other.add(a_round(0, base_from="run"))
    table = frame([run, other])
    assert len(table) == 2 * 2 + 2 and len(run.frame()) == 4
    assert table["run"].tolist() == ["run"] * 4 + ["other"] * 2
    assert table["level"].tolist() == ["1", "3", "1", "4", "1", "3"] and table["size"].tolist() == [1, 3, 1, 4, 1, 3]
    last = table.iloc[-1]
    assert (last["data_seed"], last["filter"], last["members"], last["experiment"]) == (7, "vote", 3, "copy")
    assert (last["accuracy"], last["low"], last["n"], last["precision"], last["kept"]) == (0.5, 0.2, 8, 0.5, 0.5)


def test_a_table_of_rounds(run):
    run.add(replace(a_round(2), levels=[(1, 6), (6, 1)], loss=[None], events=["model 0: …"], filter=[]))
    table = run.rounds_frame()
    assert table["round"].tolist() == [0, 1, 2] and table["levels"].tolist() == ["3", "4", "1,6 6,1"]
    assert table["loss"].tolist()[:2] == [2.5, 2.5] and table["loss"].isna().tolist() == [False, False, True]
    assert table["events"].tolist() == [0, 0, 1] and table["accuracy"].tolist() == [0.5] * 3
    assert len(rounds_frame([run, run])) == 6 and len(rounds_frame([])) == 0


def test_pandas_is_imported_only_for_tables():
    code = "import sys, self_improve.records; print(sorted({'pandas', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# Hugging Face

@pytest.mark.parametrize("positions", ["nope", "rope"])
def test_a_hugging_face_folder_gives_the_same_answers(tmp_path, tiny, positions):
    """Read by the library's own loader: logits, and greedy answers by its own generation."""
    transformers = pytest.importorskip("transformers")
    config = tiny(model=ModelConfig(layers=2, heads=2, width=16, ffn=24, positions=positions))
    run = Run.create(tmp_path / "run", config)
    model = Decoder(config.model, 1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1: p.mul_(20)
    run.save_model(model, 0, 0)
    run.add(a_round(0))
    run.save_pretrained(tmp_path / "hf")
    llama = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    tokens = torch.randint(0, 18, (4, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(llama(tokens).logits, model(tokens), atol=1e-5, rtol=1e-5)
    _, block = draw_problems(Copy(), 4, Stream(0, "eval", level=4), 16)
    text = concat_columns(16, BOS, block.prompt).long()
    generated = llama.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=9, do_sample=False)
    ours = decode(model, block.prompt, 9).tokens.long()
    new = generated[:, text.shape[1]:]
    assert torch.equal(torch.nn.functional.pad(new, (0, 9 - new.shape[1]), value=PAD), ours)
    assert len(set(map(tuple, ours.tolist()))) > 1, "these models say one thing only: this test would show nothing"


def test_positions_that_llama_lacks_are_refused(tmp_path, tiny):
    config = tiny(model=ModelConfig(layers=1, heads=2, width=16, ffn=16, positions="alibi"))
    run = Run.create(tmp_path / "run", config)
    run.save_model(Decoder(config.model), 0, 0)
    run.add(a_round(0))
    with pytest.raises(ValueError, match="alibi"): run.save_pretrained(tmp_path / "hf")


# recorded runs, and bases

def test_records_are_found_through_their_index(run, tmp_path, monkeypatch):
    run.save_model(Decoder(run.config.model), 2, 0)
    run.add(a_round(2))
    kept = record(run, tmp_path / "data", weights=[-1])
    assert set(contents(kept)) == {"config.json", "rounds.jsonl", "weights/002-0.safetensors"}
    monkeypatch.setenv("SELF_IMPROVE_DATA", str(tmp_path / "data"))
    entry, = recorded()
    assert entry["folder"] == kept and entry["identity"] == identity(run.config)
    assert entry["frontier"] == 5 and entry["rounds"] == 2
    nowhere = tmp_path / "nowhere"
    assert find_run(run.config, nowhere).rounds == run.rounds
    assert find_run(configure(run.config, {"loop.rounds": 3}), nowhere) is None, "it has too few rounds"
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


OTHER_ROUNDS = {"loop.filter": "length", "loop.steps": 9, "loop.schedule": "steps:2", "weight": 3.0, "cap": "released"}
OTHER_BASE = {"high": 4, "data_seed": 1, "model_seed": 1, "train.steps": 6, "model.ffn": 32, "size": 9}


def test_a_base_is_found_by_what_decides_it(run, tmp_path):
    """Among one's own runs; whatever the rounds are like, and only if its weights are there."""
    for key, value in OTHER_ROUNDS.items():
        assert find_base(configure(run.config, {key: value}), tmp_path).folder == run.folder, key
    for key, value in OTHER_BASE.items(): assert find_base(configure(run.config, {key: value}), tmp_path) is None, key
    assert find_base(configure(run.config, {"loop.members": 2}), tmp_path) is None, "there are weights of one member"
    assert find_base(configure(run.config, {"train.fresh": False}), tmp_path) is None, "there are no moments"
    save_weights(run.path("weights", 0, 1), Decoder(run.config.model, 9))
    save_tensors(run.path("moments", 0, 0), {})
    assert find_base(configure(run.config, {"loop.members": 2}), tmp_path).folder == run.folder
    assert find_base(configure(run.config, {"train.fresh": False}), tmp_path).folder == run.folder
    run.path("weights", 0, 0).unlink()
    assert find_base(run.config, tmp_path) is None


def test_a_run_without_rounds_or_with_another_model_is_no_base(run, tmp_path, tiny):
    mine = {"class": "mine.Model"}
    assert has_base(run, run.config) and not has_base(run, run.config, mine)
    run.note({"model": mine})
    assert find_base(run.config, tmp_path) is None and has_base(run, run.config, mine)
    assert not has_base(Run.create(tmp_path / "new", tiny()), tiny())


def test_a_recorded_base_is_found(run, tmp_path, monkeypatch):
    record(run, tmp_path / "data", weights=[0])
    monkeypatch.setenv("SELF_IMPROVE_DATA", str(tmp_path / "data"))
    found = find_base(configure(run.config, {"loop.steps": 9}), None)
    assert found.folder.parent == tmp_path / "data" / "runs" and same_parameters(found.model(0), run.model(0))


def test_every_recorded_run_can_be_read():
    for entry in recorded():
        run = Run(entry["folder"])
        assert identity(run.config) == entry["identity"] and run.rounds and run.frontier == entry["frontier"]
        stored = json.loads((run.folder / "config.json").read_text())["config"]["train"]
        assert {f.name for f in dataclasses.fields(TrainConfig)} >= set(stored)
        assert len(run.rounds_frame()) == len(run.rounds)
