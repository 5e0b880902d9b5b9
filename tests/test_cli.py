"""The command: what it prints and writes, and one sentence for whatever cannot be done."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from self_improve import cli
from self_improve.model import Decoder, ModelConfig, to_hf
from self_improve.records import Run, save_tensors

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ["run", "copy", "--scale", "smoke", "--device", "cpu", "--set", "loop.members=1", "loop.rounds=1", "train.steps=2", "loop.steps=1", "--out", "here"]
FIGURES = {"accuracy", "n", "low", "high"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELF_IMPROVE_DATA", raising=False)


@pytest.fixture
def call(capsys):
    def call(*words):
        capsys.readouterr()
        try: code = cli.main(list(words))
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return call


@pytest.fixture
def document(call):
    def document(*words):
        code, out, err = call(*words, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)   # one document and nothing else
    return document


@pytest.fixture
def refused(call, tmp_path):
    """Exit code 2, one sentence that holds `said`, and not a file changed."""
    def refused(*words, said):
        before = contents(tmp_path)
        code, out, err = call(*words)
        assert code == 2 and re.fullmatch(r"self-improve: [^\n]+\n", err), err
        assert said in err and "Traceback" not in err + out
        assert contents(tmp_path) == before, "something was written or removed"
    return refused


def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in Path(folder).rglob("*")}


# run

def test_run_writes_a_folder_a_picture_and_a_table(call):
    code, out, err = call("run", "copy", "--scale", "smoke", "--device", "cpu")
    folder, = Path("runs").iterdir()
    assert code == 0 and err == "" and re.fullmatch(r"copy-[0-9a-f]{8}", folder.name)
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG") and len(Run(folder).rounds) == 3 and Run(folder).done
    assert cli.HEADER in out and str(folder) in out and len(re.findall(r"^ +[012]  +[345] ", out, re.M)) == 3
    assert all(re.search(rf"\b{level}:", out) for level in range(1, 9))
    assert "\r" not in out, "plain lines in a pipe"


def test_run_again_continues_or_says_that_all_is_done(call):
    first = call(*SMOKE)[1]
    weights = Path("here/weights/001-0.safetensors").read_bytes()
    code, out, _ = call(*SMOKE)
    assert code == 0 and "already" in out and "already" not in first
    code, out, _ = call(*SMOKE, "--set", "loop.rounds=3")
    assert code == 0 and "going on after round 1" in out and len(Run("here").rounds) == 4
    assert Path("here/weights/001-0.safetensors").read_bytes() == weights


def test_fresh_begins_again(call):
    call(*SMOKE)
    before = Run("here")
    Path("here/weights/001-0.safetensors").write_bytes(b"damaged")
    Path("here/notes.txt").write_text("mine")
    code, out, _ = call(*SMOKE, "--fresh")
    assert code == 0 and "already" not in out and [r.loss for r in Run("here").rounds] == [r.loss for r in before.rounds]
    assert Path("here/notes.txt").read_text() == "mine" and Run("here").model() is not None


def test_settings_reach_the_configuration(call):
    code, _, err = call("run", "copy", "--scale", "smoke", "--set", "loop.rounds=0", "--set", "train.steps=1", "model.positions=rope", "--filter", "length:2", "--seed", "5", "--out", "x", "--device", "cpu")
    c = Run("x").config
    assert (code, err) == (0, "") and (c.loop.rounds, c.train.steps, c.model.positions, c.loop.filter, c.model_seed, c.data_seed) == (0, 1, "rope", "length:2", 5, 5)


def test_an_interruption_keeps_whole_rounds(call, monkeypatch):
    real = cli.line
    monkeypatch.setattr(cli, "line", lambda r, *more: (_ for _ in ()).throw(KeyboardInterrupt) if r.round else real(r, *more))
    code, _, err = call(*SMOKE, "--set", "loop.rounds=2")
    assert code == 130 and "interrupted" in err and "Traceback" not in err and len(Run("here").rounds) == 2
    monkeypatch.setattr(cli, "line", real)
    assert call(*SMOKE, "--set", "loop.rounds=2")[0] == 0 and len(Run("here").rounds) == 3


# documents

def test_run_and_show_as_documents(document):
    ran = document(*SMOKE)
    shown = document("show", "here")
    assert ran == shown
    assert set(shown) == {"experiment", "scale", "filter", "schedule", "model_seed", "data_seed", "rounds", "frontier", "history", "accuracy", "seconds", "peak_mb"}
    assert [set(h) for h in shown["history"]] == [{"round", "levels", "labels_right", "kept", "purity", "frontier"}] and shown["history"][0]["levels"] == [4] and shown["filter"] == "none"
    assert (shown["experiment"], shown["scale"], shown["rounds"]) == ("copy", "smoke", 1) and shown["seconds"] >= 0 and shown["peak_mb"] > 50
    assert list(shown["accuracy"]) == [str(k) for k in range(1, shown["frontier"] + 6)], "every level to five past the frontier"
    assert all(set(a) == FIGURES and 0 <= a["low"] <= a["accuracy"] <= a["high"] <= 1 for a in shown["accuracy"].values())


def test_every_level_is_shown_however_few_are_measured_on_the_way(document):
    shown = document(*SMOKE, "--set", "loop.ahead=1", "loop.stride=3")
    assert {str(k) for k in range(1, shown["frontier"] + 2)} <= set(shown["accuracy"])


def test_a_model_among_several_has_its_figures_too(document):
    assert all(set(a) == FIGURES | {"members", "ensemble"} for a in document(*SMOKE, "--set", "loop.members=2")["accuracy"].values())


def test_list_as_a_document(document):
    listed = document("list")
    assert all(set(e) == {"experiment", "scale", "minutes", "recorded"} for e in listed)
    assert {(e["experiment"], e["scale"]) for e in listed} >= {("copy", s) for s in ("smoke", "tiny", "gpu", "paper")}
    assert len({(e["experiment"], e["scale"]) for e in listed}) == len(listed) and all(isinstance(e["recorded"], bool) for e in listed)


def test_doctor(document, call):
    facts = document("doctor")
    assert facts["torch"] == torch.__version__ and facts["device"] in ("cpu", "cuda")
    code, out, _ = call("doctor")
    assert code == 0 and all(key in out for key in facts)


def test_show_and_list_for_people(call, monkeypatch):
    call(*SMOKE)
    Path("here/accuracy.png").unlink()
    code, out, _ = call("show", "here")
    assert code == 0 and cli.HEADER in out and Path("here/accuracy.png").exists() and "accuracy by level after round 1" in out
    assert call("show", "here", "--png", "mine.png")[0] == 0 and Path("mine.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setenv("SELF_IMPROVE_DATA", "data")
    Path("here/accuracy.png").unlink()
    Path("data/runs").mkdir(parents=True)
    Path("here").rename("data/runs/kept")
    assert call("show", "data/runs/kept")[0] == 0 and Path("kept.png").exists() and not Path("data/runs/kept/accuracy.png").exists(), "a record stays as it is"
    monkeypatch.delenv("SELF_IMPROVE_DATA")
    code, out, _ = call("list")
    assert code == 0 and all(re.search(rf"copy +{scale}", out) for scale in ("smoke", "tiny", "gpu", "paper"))


def test_percent_never_rounds_up_to_all():
    assert [cli.percent(x).strip() for x in (None, 0, 0.95, 0.9996, 1)] == ["–", "0.0 %", "95.0 %", "99.9 %", "100 %"]


def test_time_left():
    assert cli.time_left([1, 2], 0) == "done" and "2 rounds" in cli.time_left([5], 2)
    assert "20 s" in cli.time_left([9, 10, 10, 10], 2) and "min" in cli.time_left([9, 100, 100, 100], 9)


def test_progress_on_a_terminal_and_in_a_pipe():
    class Screen:
        text, tty = "", True
        def isatty(self): return self.tty
        def write(self, text): self.text += text
        def flush(self): pass
    screen = Screen()
    cli.Progress(9, screen)(3, "train model 1 of 2", 20, 80, torch.tensor(1.5))
    assert screen.text.startswith("\r") and "round 3 of 9" in screen.text and "step 20 of 80" in screen.text and "1.5" in screen.text
    screen.text, screen.tty = "", False
    cli.Progress(9, screen)(3, "train", 20, 80, torch.tensor(1.5))
    assert screen.text == ""


# what cannot be done

@pytest.mark.parametrize("words, said", [
    (["run", "cpy"], "'cpy'"), (["run", "copy", "--scale", "huge"], "'huge'"), (["run", "copy", "--device", "tpu"], "'tpu'"), (["run", "copy", "--filter", "lenght"], "'lenght'"),
    (["run", "copy", "--filter", ""], "''"), (["run", "copy", "--filter", "vote:5/3"], "vote:5/3"), (["run", "copy", "--filter", "vote:3/0", "--set", "loop.members=3"], "vote:3/0"),
    (["run", "copy", "--filter", "vote"], "1"), (["run", "copy", "--filter", "vote:2/3"], "vote:2/3"), (["run", "copy", "--filter", "verifier"], "verifier"), (["run", "copy", "--filter", "confidence:2"], "confidence:2"),
    (["run", "copy", "--seed", "x"], "x"), (["run"], "experiment"), (["jump"], "jump"), ([], "run"), (["show"], "run"), (["run", "copy", "--colour", "red"], "--colour"),
    (["show", "nowhere"], "nowhere")], ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_bad_words(refused, words, said):
    """With settings of a small run before the bad word, so that one let through costs no time."""
    refused(*[*SMOKE, *words[2:]] if words[:2] == ["run", "copy"] else words, said=said)


@pytest.mark.parametrize("setting", [
    "loop.steps=-1", "loop.rounds=x", "loop.rounds=1.5", "loop.rounds=-1", "loop.rounds=", "loop.problems=0", "loop.members=0", "loop.newest=2", "loop.warmup=2", "loop.warmup=nan", "loop.lr=nan", "loop.lr=inf",
    "loop.schedule=leaps", "loop.schedule=steps:0", "model.heads=3", "model.width=0", "model.positions=none", "model.vocab=3", "model.std=-1", "model.theta=0", "train.lr=nan",
    "train.lr=-1", "train.batch=0", "train.beta1=2", "train.epsilon=-1", "train.clip=nan", "train.optimiser=sgd", "train.fresh=maybe", "low=0", "low=9", "cap=huge", "weight=nan", "task=cpy", "size=0", "options=x"])
def test_impossible_settings(refused, setting):
    refused(*SMOKE, "--set", setting, said=setting.partition("=")[2])


@pytest.mark.parametrize("setting, said", [("loop.round=3", "'loop.round'"), ("nonsense=1", "'nonsense'"), ("loop=1", "'loop'"), ("=1", "''"), ("loop.rounds", "loop.rounds")])
def test_unknown_settings(refused, setting, said): refused(*SMOKE, "--set", setting, said=said)


def test_learned_positions_that_cannot_hold_the_task(refused):
    refused(*SMOKE, "--set", "model.positions=absolute", "model.context=5", said="5")


def test_no_cuda(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("run", "copy", "--device", "cuda", said="cuda")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "llama"}', '{"schema": 1, "config": {}, "experiment": "", "scale": "", "provenance": {}}'])
@pytest.mark.parametrize("words", [SMOKE, [*SMOKE, "--fresh"], ["show", "here"]], ids=["run", "fresh", "show"])
def test_a_corrupt_or_foreign_folder(refused, text, words):
    Path("here").mkdir()
    Path("here/config.json").write_text(text)
    Path("here/rounds.jsonl").write_text("mine\n")
    refused(*words, said="here")


def test_a_folder_of_other_things(refused):
    Path("here").mkdir()
    Path("here/thesis.txt").write_text("mine")
    refused(*SMOKE, said="here")
    refused(*SMOKE, "--fresh", said="here")
    refused("show", "here", said="here")


@pytest.mark.parametrize("more", [[], ["--fresh"]], ids=["run", "fresh"])
def test_a_folder_of_another_run(call, refused, more):
    call(*SMOKE)
    refused(*SMOKE, "--seed", "9", *more, said="here")


def test_damaged_rounds(call, refused):
    call(*SMOKE)
    Path("here/rounds.jsonl").write_text("nonsense\n" + Path("here/rounds.jsonl").read_text())
    refused(*SMOKE, said="rounds.jsonl")
    refused("show", "here", said="rounds.jsonl")


def test_a_run_without_a_round(call, refused):
    call(*SMOKE)
    Path("here/rounds.jsonl").unlink()
    refused("show", "here", said="here")


@pytest.mark.parametrize("name", ["weights/001-0", "labels/001-0"])
@pytest.mark.parametrize("damage", ["missing", "garbage", "another shape"])
def test_damaged_tensors(call, refused, name, damage):
    call(*SMOKE)
    path = Path(f"here/{name}.safetensors")
    if damage == "missing": path.unlink()
    elif damage == "garbage": path.write_bytes(b"garbage")
    else: save_tensors(path, to_hf(Decoder(ModelConfig(layers=1, heads=2, width=32, ffn=16))))
    refused(*SMOKE, "--set", "loop.rounds=2", said=path.name)


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/self-improve-test", "\0"])
def test_where_no_folder_can_be(refused, out):
    Path("file").write_text("mine")
    refused(*SMOKE[:-1], out, said=out.strip("\0"))


def test_a_full_disk(refused, monkeypatch):
    def full(_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    refused(*SMOKE, said="here")


def test_a_picture_that_cannot_be_drawn(call, refused):
    call(*SMOKE)
    refused("show", "here", "--png", "nowhere/x.png", said="nowhere/x.png")
    refused("show", "here", "--png", "x.docx", said="docx")


# as people start it

def python_m(*words, cwd):
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SELF_IMPROVE_DATA")} | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "self_improve", *words], cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_as_a_module(tmp_path):
    done = python_m(*SMOKE, "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and json.loads(done.stdout)["rounds"] == 1 and (tmp_path / "here" / "accuracy.png").exists()
    done = python_m("run", "copy", "--set", "loop.steps=-1", cwd=tmp_path)
    assert done.returncode == 2 and re.fullmatch(r"self-improve: [^\n]*-1[^\n]*\n", done.stderr)


# problem and answer

def test_problems_are_those_of_the_paper(call, document):
    code, out, err = call("problem", "multiplication", "--level", "2,2", "--count", "3", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(lines) == 3 and all(set(p) == {"prompt", "answer"} for p in lines)
    for p in lines:
        a, b = (int(x[::-1]) for x in p["prompt"][:-1].split("*"))
        assert int(p["answer"].split("=")[1][::-1]) == a * b and len(p["answer"]) == 13
    assert call("problem", "multiplication", "--level", "2,2", "--count", "3", "--json")[1] == out
    assert call("problem", "multiplication", "--level", "2,2", "--count", "3", "--json", "--seed", "1")[1] != out
    assert len(json.loads(call("problem", "maze_hops", "--level", "6", "--set", "nodes=12", "--json")[1])["prompt"].split("-")) == 12


@pytest.mark.parametrize("task, level", [("reverse_addition", "12"), ("forward_addition", "3"), ("copy", "1"), ("reverse", "40"), ("multiplication", "1,7"), ("maze_hops", "29"), ("maze_nodes", "99")])
def test_one_problem_comes_with_a_picture(call, task, level):
    code, out, err = call("problem", task, "--level", level)
    assert (code, err) == (0, "") and out.splitlines()[1] == "" and len(out.splitlines()) > 3


@pytest.mark.parametrize("words, said", [
    (["copy", "--level", "0"], "level 0"), (["copy", "--level=-3"], "'-3'"), (["copy", "--level", "ten"], "'ten'"), (["copy", "--level", "5,6"], "whole number"),
    (["multiplication", "--level", "5"], "pair such as 5,6"), (["multiplication", "--level", "5,0"], "level 5,0"), (["maze_hops", "--level", "30"], "1 to 29 hops"),
    (["maze_hops", "--level", "5", "--set", "nodes=5"], "1 to 4 hops"), (["maze_nodes", "--level", "100"], "10 to 99 nodes"), (["maze_hops", "--level", "3", "--set", "nodes=100"], "100"),
    (["sorting", "--level", "3"], "'sorting'"), (["copy", "--level", "3", "--count", "0"], "--count 0"), (["maze_hops", "--level", "3", "--set", "hops=3"], "nodes"),
    (["maze_hops", "--level", "3", "--set", "nodes=many"], "nodes=many"), (["copy", "--level", "3", "--set", "nodes"], "key=value"), (["copy"], "--level")])
def test_problems_that_cannot_be(refused, words, said): refused("problem", *words, said=said)


RECORDED = next(Path(e["folder"]).name for e in cli.recorded() if e["experiment"] == "copy" and e["rounds"] > 20)


def test_a_trained_model_answers(call, document):
    told = document("answer", RECORDED, "98765432109876543210=")
    assert told["answer"] == "98765432109876543210" and told["right"] and told["ends"] and told["votes"] == 3 and 0.9 < told["confidence"] <= 1 and len(told["models"]) == 3
    wrong = document("answer", RECORDED, "9876543210987654321098765=", "--round", "0")
    assert not wrong["right"] and wrong["answer"] != "9876543210987654321098765" and wrong["confidence"] < told["confidence"]
    code, out, err = call("answer", RECORDED, "9876543210987654321098765=", "--round", "0")
    assert code == 0 and "wrong" in out and "^" in out, "what is wrong is marked"


@pytest.mark.parametrize("words, said", [((RECORDED, "12a="), "'a' at position 3"), ((RECORDED, "12"), "position 2"), ((RECORDED, "="), "position 1"), ((RECORDED, "12=34"), "give '12=' alone"), ((RECORDED, "12=", "--round", "3"), "keeps no weights"),
                                         ((RECORDED, "12=", "--round", "999"), "no round 999"), (("nowhere", "12="), "nowhere")])
def test_prompts_that_cannot_be(refused, words, said): refused("answer", *words, said=said)
