"""The command: what it prints and writes, and one sentence for whatever cannot be done."""
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from self_improve import actions, cli, report
from self_improve.config import setting_comments
from self_improve.experiments import EXPERIMENTS
from self_improve.files import save_tensors
from self_improve.filter import FILTERS
from self_improve.model import Decoder, ModelConfig, to_llama_weights
from self_improve.records import Run, recorded
from self_improve.tables import percent
from self_improve.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["loop.members=1", "loop.rounds=1", "train.steps=2", "loop.steps=1"]
SMOKE = ["run", "copy", "--scale", "smoke", "--device", "cpu", "--set", *SMALL, "--out", "here"]
FIGURES = {"accuracy", "n", "low", "high"}
MY_TASKS = '''
from dataclasses import dataclass
from typing import ClassVar
from self_improve.tasks import EOS, Block, Task, Vocab, concat_columns, random_digits, register

@register
@dataclass(frozen=True)
class MySorting(Task):
    name: ClassVar[str] = "my_sorting"
    vocab: ClassVar[Vocab] = Vocab("0123456789=")

    def shapes(self, level, purpose="self"): return [self.check_level(level)]

    def draw(self, shape, stream, rows):
        digits = random_digits(stream, rows, shape) + self.vocab.ids["0"]
        prompts = concat_columns(len(digits), digits, self.vocab.ids["="])
        return Block(prompts, self.solve(prompts))

    def solve(self, prompts): return concat_columns(len(prompts), prompts[:, :-1].sort(1).values, EOS)
'''


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELF_IMPROVE_DATA", raising=False)
    registries = (TASKS, FILTERS, EXPERIMENTS)
    before = [dict(registry) for registry in registries]
    yield
    for registry, names in zip(registries, before, strict=True):
        registry.clear()
        registry.update(names)


@pytest.fixture
def call(capsys):
    def call(*words):
        capsys.readouterr()
        code = cli.main(list(words))
        return code, *capsys.readouterr()
    return call


@pytest.fixture
def document(call):
    def document(*words):
        code, out, err = call(*words, "--json")
        assert (code, err) == (0, "")
        # one document and nothing else
        return json.loads(out)
    return document


@pytest.fixture
def refused(call, tmp_path):
    """Exit code 2, one sentence that holds `said`, and not a file changed."""
    def refused(*words, said):
        before = contents(tmp_path)
        code, out, err = call(*words)
        assert code == 2 and re.fullmatch(r"self-improve: [^\n]+\n", err), err
        assert said in err and not re.search("Traceback|Usage|╭", err + out)
        assert contents(tmp_path) == before, "something was written or removed"
    return refused


def contents(folder):
    found = {}
    for path in Path(folder).rglob("*"):
        found[path.relative_to(folder).as_posix()] = path.read_bytes() if path.is_file() else None
    return found


# run

def test_run_writes_a_folder_a_picture_and_a_table(call):
    code, out, err = call("run", "copy", "--scale", "smoke", "--device", "cpu")
    folder, = Path("runs").iterdir()
    assert code == 0 and err == "" and re.fullmatch(r"copy-[0-9a-f]{8}", folder.name)
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert len(Run(folder).rounds) == 3 and Run(folder).done
    assert report.HEADER in out and str(folder) in out and len(re.findall(r"^ +[012]  +[345] ", out, re.M)) == 3
    assert all(re.search(rf"\b{level}:", out) for level in range(1, 9))
    assert not re.search("[\r\x1b]", out), "plain lines in a pipe"


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
    before = [r.loss for r in Run("here").rounds]
    Path("here/weights/001-0.safetensors").write_bytes(b"damaged")
    Path("here/notes.txt").write_text("mine")
    code, out, _ = call(*SMOKE, "--fresh")
    assert code == 0 and "already" not in out and [r.loss for r in Run("here").rounds] == before
    assert Path("here/notes.txt").read_text() == "mine" and Run("here").model() is not None


def test_settings_reach_the_configuration(call):
    code, _, err = call("run", "copy", "--scale", "smoke", "--set", "loop.rounds=0", "--set", "train.steps=1",
                        "model.positions=rope", "--filter", "length:2", "--seed", "5", "--out", "x", "--device", "cpu")
    c = Run("x").config
    assert (code, err) == (0, "")
    assert (c.loop.rounds, c.train.steps, c.model.positions, c.loop.filter) == (0, 1, "rope", "length:2")
    assert (c.model_seed, c.data_seed) == (5, 5)


@pytest.mark.parametrize("words, spread", [
    ("run copy --set a=1", "run copy --set a=1"),
    ("--set a=1 b=2 c=3 --seed 1", "--set a=1 --set b=2 --set c=3 --seed 1"),
    ("--set a=1 --set b=2 c=3", "--set a=1 --set b=2 --set c=3"),
    ("--set a=1 copy", "--set a=1 copy"),
    ("--set a --filter none x=1", "--set a --filter none x=1"),
    ("--set a=1 -x=2", "--set a=1 -x=2"),
    ("answer run 12=", "answer run 12=")])
def test_set_takes_one_value_or_several(words, spread):
    assert cli.spread_settings(words.split()) == spread.split()


def test_the_experiment_may_follow_its_settings(call):
    assert call("run", "--scale", "smoke", "--set", "loop.rounds=0", "train.steps=1", "copy", "--out", "x")[0] == 0
    assert Run("x").config.loop.rounds == 0


def test_an_interruption_keeps_whole_rounds(call, monkeypatch):
    real = actions.line

    def interrupted(r, *more):
        if r.round: raise KeyboardInterrupt
        return real(r, *more)
    monkeypatch.setattr(actions, "line", interrupted)
    code, _, err = call(*SMOKE, "--set", "loop.rounds=2")
    assert code == 130 and "interrupted" in err and "Traceback" not in err and len(Run("here").rounds) == 2
    monkeypatch.setattr(actions, "line", real)
    assert call(*SMOKE, "--set", "loop.rounds=2")[0] == 0 and len(Run("here").rounds) == 3


def test_quiet_prints_nothing(call):
    assert call(*SMOKE, "--quiet") == (0, "", "") and Run("here").done and Path("here/accuracy.png").exists()


def test_threads_change_no_result(call):
    for mode in cli.THREADS:
        assert call(*SMOKE[:-1], mode, "--set", "loop.members=2", "--threads", mode)[0] == 0
    assert len({str([r.loss for r in Run(mode).rounds]) for mode in cli.THREADS}) == 1


# several seeds

def test_several_seeds_are_runs_one_after_the_other(call):
    code, out, err = call(*SMOKE[:-2], "--seed", "0,1,2")
    folders = sorted(Path("runs").iterdir())
    assert (code, err) == (0, "") and len(folders) == 3
    assert sorted(Run(folder).config.model_seed for folder in folders) == [0, 1, 2]
    assert "mean ± standard deviation" in out and "3 runs" in out
    highest = max(Run(folder).rounds[-1].frontier + 5 for folder in folders)
    levels = re.findall(r"^(\d+) +\d.* %", out, re.M)
    assert levels == [str(level) for level in range(1, highest + 1)] and " ± " in out


def test_several_seeds_as_a_document(document):
    found = document(*SMOKE, "--seed", "3,4")
    assert set(found) == {"runs", "groups"} and [r["model_seed"] for r in found["runs"]] == [3, 4]
    assert [Run(f"here/seed-{seed}").config.data_seed for seed in (3, 4)] == [3, 4]
    group, = found["groups"]
    assert set(group) == {"name", "runs", "round", "accuracy"} and (group["runs"], group["round"]) == (2, 1)
    assert "copy, smoke, none" in group["name"]
    for level, spread in group["accuracy"].items():
        accuracies = [run["accuracy"][level]["accuracy"] for run in found["runs"]]
        assert spread["runs"] == 2 and spread["mean"] == pytest.approx(statistics.mean(accuracies), abs=1e-6)
        assert spread["deviation"] == pytest.approx(statistics.stdev(accuracies), abs=1e-6)
    assert document("show", "here/seed-3", "here/seed-4") == found


def test_runs_are_compared_after_a_round_that_all_have(document):
    first = document(*SMOKE[:-1], "a")
    document(*SMOKE[:-1], "b", "--seed", "1", "--set", "loop.rounds=2")
    group, = document("show", "a", "b")["groups"]
    second = Run("b").rounds[1].accuracy
    assert group["round"] == 1 and set(group["accuracy"]) == set(first["accuracy"]) | set(second)
    for level in set(first["accuracy"]) & set(second):
        mean = statistics.mean([first["accuracy"][level]["accuracy"], second[level]["accuracy"]])
        assert group["accuracy"][level]["mean"] == pytest.approx(mean, abs=1e-6)


def test_several_runs_in_a_table(call, document, refused):
    call(*SMOKE[:-1], "a")
    call(*SMOKE[:-1], "b", "--seed", "1")
    call(*SMOKE[:-1], "c", "--filter", "length:5")
    code, out, err = call("show", "a", "b", "c")
    assert (code, err) == (0, "") and "2 runs" in out and "1 run " in out and "round 1" in out and "±" in out
    assert all(re.search(rf"^{name} ", out, re.M) for name in "abc") and not Path("accuracy.png").exists()
    groups = document("show", "a", "b", "c")["groups"]
    assert [group["runs"] for group in groups] == [2, 1]
    assert groups[1]["accuracy"]["1"]["deviation"] is None, "one run has no deviation"
    refused("show", "a", "b", "--png", "x.png", said="--png")


@pytest.mark.parametrize("seeds", ["x", "1,", "1,x", "1.5", "", "2,2"])
def test_seeds_that_cannot_be(refused, seeds): refused(*SMOKE, "--seed", seeds, said=f"--seed {seeds}")


# a base that exists, a run that goes on elsewhere

BASE = ["run", "copy", "--scale", "smoke", "--device", "cpu", "--set", *SMALL]


def test_a_base_is_taken_from_a_run_that_has_it(call):
    first = call(*BASE)[1]
    folder, = Path("runs").iterdir()
    code, out, _ = call(*BASE, "--filter", "length:5", "--out", "other")
    assert code == 0 and "starts from the base of" in out and folder.name in out and "starts from" not in first
    base, other = Run(folder).rounds[0], Run("other").rounds[0]
    assert folder.name in other.base_from and other.loss == base.loss and other.accuracy == base.accuracy
    code, out, _ = call(*BASE, "--filter", "length:5", "--out", "own", "--fresh-base")
    assert code == 0 and "starts from" not in out and Run("own").rounds[0].base_from == ""
    assert Run("own").rounds[0].loss == base.loss
    assert "starts from" not in call(*BASE, "--seed", "7", "--out", "seven")[1], "another seed has another base"


def test_a_run_goes_on_in_a_copy(call):
    call(*SMOKE)
    before = contents("here")
    more = ["--scale", "smoke", "--set", "loop.rounds=2"]
    code, out, err = call("run", "copy", "--from", "here", *more, "--out", "there")
    assert (code, err) == (0, "") and "going on after round 1 in there" in out
    assert contents("here") == before and len(Run("there").rounds) == 3
    whole = [*SMOKE[:-1], "whole", "--set", "loop.rounds=2"]
    call(*whole)
    assert [r.loss for r in Run("there").rounds] == [r.loss for r in Run("whole").rounds]


def test_a_copy_goes_under_runs(call):
    call(*SMOKE)
    assert call("run", "copy", "--from", "here", "--set", "loop.rounds=2", "--quiet")[0] == 0
    folder, = Path("runs").iterdir()
    assert re.fullmatch(r"copy-[0-9a-f]{8}", folder.name) and Run(folder).done


def test_what_cannot_go_on_elsewhere(call, refused):
    call(*SMOKE)
    start = ["run", "copy", "--from", "here", "--out", "there", "--set", "loop.rounds=2"]
    refused("run", "reverse", *start[2:], said="is a run of copy, not of reverse")
    refused(*start, "train.steps=3", said="only loop.ahead")
    refused(*start[:-2], said="has 1 round already")
    refused(*start[:-4], "--set", "loop.rounds=2", "--out", "here", said="exists already")
    refused(*start, "--seed", "1", said="--seed")
    refused(*start, "--from", "nowhere", said="nowhere")
    for kind in ("labels/001-0", "weights/000-0"): Path(f"here/{kind}.safetensors").unlink()
    refused(*start, said="001-0.safetensors is missing")


def test_a_run_without_its_labels_makes_them_again(call):
    call(*SMOKE, "--set", "loop.rounds=2")
    call(*SMOKE[:-1], "other")
    Path("other/labels/001-0.safetensors").unlink()
    assert call(*SMOKE[:-1], "other", "--set", "loop.rounds=2")[0] == 0
    assert [r.loss for r in Run("other").rounds] == [r.loss for r in Run("here").rounds]


# documents

def test_run_and_show_as_documents(document):
    ran = document(*SMOKE)
    shown = document("show", "here")
    assert ran == shown
    assert set(shown) == {"experiment", "scale", "filter", "schedule", "model_seed", "data_seed", "rounds", "frontier",
                          "history", "accuracy", "seconds", "peak_mb"}
    history, = shown["history"]
    assert set(history) == {"round", "levels", "labels_right", "kept", "purity", "frontier"}
    assert history["levels"] == [4] and shown["filter"] == "none"
    assert (shown["experiment"], shown["scale"], shown["rounds"]) == ("copy", "smoke", 1)
    assert shown["seconds"] >= 0 and shown["peak_mb"] > 50
    every = [str(level) for level in range(1, shown["frontier"] + 6)]
    assert list(shown["accuracy"]) == every, "every level to five past the frontier"
    for measured in shown["accuracy"].values():
        assert set(measured) == FIGURES and 0 <= measured["low"] <= measured["accuracy"] <= measured["high"] <= 1


def test_every_level_is_shown_however_few_are_measured_on_the_way(document):
    shown = document(*SMOKE, "--set", "loop.ahead=1", "loop.stride=3")
    assert {str(k) for k in range(1, shown["frontier"] + 2)} <= set(shown["accuracy"])


def test_a_model_among_several_has_its_figures_too(document):
    accuracy = document(*SMOKE, "--set", "loop.members=2")["accuracy"]
    assert all(set(measured) == FIGURES | {"members", "ensemble"} for measured in accuracy.values())


def test_list_as_a_document(document):
    listed = document("list")
    assert all(set(e) == {"experiment", "scale", "minutes", "recorded"} for e in listed)
    names = [(e["experiment"], e["scale"]) for e in listed]
    assert set(names) >= {("copy", s) for s in ("smoke", "tiny", "gpu", "paper")} and len(set(names)) == len(names)
    assert all(isinstance(e["recorded"], bool) for e in listed)


def test_doctor(document, call):
    facts = document("doctor")
    assert facts["torch"] == torch.__version__ and facts["device"] in ("cpu", "cuda")
    code, out, _ = call("doctor")
    assert code == 0 and all(key in out for key in facts)


def test_show_and_list_for_people(call, monkeypatch):
    call(*SMOKE)
    Path("here/accuracy.png").unlink()
    code, out, _ = call("show", "here")
    assert code == 0 and Path("here/accuracy.png").exists()
    assert all(word in out for column in report.COLUMNS for word in column.split())
    assert "accuracy by level after round 1" in out and all(re.search(rf"\b{level}:", out) for level in range(1, 9))
    assert call("show", "here", "--png", "mine.png")[0] == 0 and Path("mine.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setenv("SELF_IMPROVE_DATA", "data")
    Path("here/accuracy.png").unlink()
    Path("data/runs").mkdir(parents=True)
    Path("here").rename("data/runs/kept")
    assert call("show", "data/runs/kept")[0] == 0 and Path("kept.png").exists()
    assert not Path("data/runs/kept/accuracy.png").exists(), "a record stays as it is"
    monkeypatch.delenv("SELF_IMPROVE_DATA")
    code, out, _ = call("list")
    assert code == 0 and all(re.search(rf"copy +{scale}", out) for scale in ("smoke", "tiny", "gpu", "paper"))


def test_what_went_wrong_in_a_round_is_shown(call):
    call(*SMOKE)
    text = Path("here/rounds.jsonl").read_text()
    Path("here/rounds.jsonl").write_text(text.replace('"events": [', '"events": ["mine", ').replace(", ]", "]"))
    assert "round 1: mine" in call("show", "here")[1] and "! mine" in report.line(Run("here").rounds[1])


def test_a_bar_tells_about_the_labels_of_its_round(call, monkeypatch):
    told, real = {}, report.Status.begin_phase

    def begin_phase(status, phase):
        told[phase] = status.about
        real(status, phase)
    monkeypatch.setattr(report.Printer, "is_terminal", True)
    monkeypatch.setattr(report.Status, "begin_phase", begin_phase)
    assert call(*SMOKE)[0] == 0
    last = Run("here").rounds[1]
    right, kept = percent(last.label_accuracy[0]).strip(), percent(last.kept).strip()
    assert told[1, "train"] == f", level 4, label accuracy {right}, kept {kept}" and told[0, "train"] == ""


# help

def test_help_of_run_lists_every_setting(call):
    code, out, err = call("run", "--help")
    assert (code, err) == (0, "")
    for key, (default, comment) in setting_comments().items():
        assert re.search(rf"^ +{re.escape(f'{key}={default}')}\s+{re.escape(comment[:9])}", out, re.M), key
    assert out.index("Usage") < out.index("--fresh-base") < out.index("loop.rounds=10")


@pytest.mark.parametrize("command", ["run", "show", "list", "problem", "answer", "check", "lessons", "doctor", "bench"])
def test_every_command_has_help(call, command):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "") and f"self-improve {command}" in out and command in call("--help")[1]


def test_version(call): assert call("--version") == (0, f"{cli.self_improve.__version__}\n", "")


# what cannot be done

@pytest.mark.parametrize("words, said", [
    (["run", "cpy"], "'cpy'"), (["run", "copy", "--scale", "huge"], "'huge'"),
    (["run", "copy", "--device", "tpu"], "'tpu'"), (["run", "copy", "--filter", "lenght"], "'lenght'"),
    (["run", "copy", "--filter", ""], "''"), (["run", "copy", "--filter", "vote:5/3"], "vote:5/3"),
    (["run", "copy", "--filter", "vote:3/0", "--set", "loop.members=3"], "vote:3/0"),
    (["run", "copy", "--filter", "vote"], "1"), (["run", "copy", "--filter", "vote:2/3"], "vote:2/3"),
    (["run", "copy", "--filter", "verifier"], "verifier"),
    (["run", "copy", "--filter", "confidence:2"], "confidence:2"),
    (["run", "copy", "--seed", "x"], "x"), (["run", "copy", "--threads", "many"], "'many'"),
    (["run"], "EXPERIMENT"), (["jump"], "jump"), ([], "run, show"), (["show"], "RUN"),
    (["run", "copy", "--colour", "red"], "--colour"), (["run", "copy", "reverse"], "reverse"),
    (["run", "copy", "--scal", "tiny"], "--scal"), (["show", "nowhere"], "nowhere"),
    (["run", "copy", "--tasks", "nowhere.py"], "nowhere.py"), (["list", "--plugin", "nowhere.py"], "nowhere.py")],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_bad_words(refused, words, said):
    """With settings of a small run before the bad word, so that one let through costs no time."""
    refused(*[*SMOKE, *words[2:]] if words[:2] == ["run", "copy"] else words, said=said)


@pytest.mark.parametrize("setting", [
    "loop.steps=-1", "loop.rounds=x", "loop.rounds=1.5", "loop.rounds=-1", "loop.rounds=", "loop.problems=0",
    "loop.members=0", "loop.newest=2", "loop.warmup=2", "loop.warmup=nan", "loop.lr=nan", "loop.lr=inf",
    "loop.schedule=leaps", "loop.schedule=steps:0", "model.heads=3", "model.width=0", "model.positions=none",
    "model.vocab=3", "model.std=-1", "model.theta=0", "train.lr=nan", "train.lr=-1", "train.batch=0", "train.beta1=2",
    "train.epsilon=-1", "train.clip=nan", "train.optimiser=sgd", "train.fresh=maybe", "low=0", "low=9", "cap=huge",
    "weight=nan", "task=cpy", "size=0", "options=x", "train.weight_decay=inf", "model.std=1e+308", "train.warmup=-1",
    "loop.problems=1000000000000", "loop.evaluate=1000000000", "model.width=1000000", "model.vocab=1000000000",
    "model.layers=100000", "loop.rounds=1000000000", "size=10000000000000000000000",
    "loop.filter=length:" + "9" * 40, "loop.measure_on=train"])
def test_impossible_settings(refused, setting):
    refused(*SMOKE, "--set", setting, said=setting.partition("=")[2])


@pytest.mark.parametrize("setting, said", [
    ("loop.round=3", "'loop.round'"), ("nonsense=1", "'nonsense'"), ("loop=1", "'loop'"), ("=1", "''"),
    ("loop.rounds", "loop.rounds")])
def test_unknown_settings(refused, setting, said): refused(*SMOKE, "--set", setting, said=said)


@pytest.mark.parametrize("part", ["train", "loop"])
def test_a_message_names_the_setting_with_its_part(refused, part):
    refused(*SMOKE, "--set", f"{part}.lr=nan", said=f"{part}.lr=nan is out of range: a number from 1e-15 to 100")


def test_models_that_do_not_fit_are_not_made(refused):
    refused(*SMOKE, "--set", "model.width=50000", "model.layers=200", said="model.width=50000, model.layers=200")
    assert not Path("here").exists()


@pytest.mark.parametrize("words, said", [
    (["--seed", "1", "data_seed=2"], "--seed 1 and --set data_seed=2"),
    (["--seed", "1", "model_seed=1"], "--seed 1 and --set model_seed=1"),
    (["--filter", "none", "loop.filter=vote"], "--filter none and --set loop.filter=vote")])
def test_a_setting_that_is_given_twice(refused, words, said):
    refused(*SMOKE, *words[:2], "--set", words[2], said=f"{said} say the same setting twice: give one")


def test_learned_positions_that_cannot_hold_the_task(refused):
    refused(*SMOKE, "--set", "model.positions=absolute", "model.context=5", said="5")


def test_no_cuda(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("run", "copy", "--device", "cuda", said="cuda")


FOREIGN = '{"schema": 1, "config": {}, "experiment": "", "scale": "", "provenance": {}}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "llama"}', FOREIGN])
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
    if damage == "missing":
        path.unlink()
        # without them the labels of round 1 cannot be made again
        Path("here/weights/000-0.safetensors").unlink()
    elif damage == "garbage": path.write_bytes(b"garbage")
    else: save_tensors(path, to_llama_weights(Decoder(ModelConfig(layers=1, heads=2, width=32, ffn=16))))
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


@pytest.mark.parametrize("words, said", [
    (["--peer", "x"], "'x'"), (["--repeats", "0"], "--repeats 0"), (["--minutes", "0"], "--minutes 0"),
    (["--json", "nowhere/x.json"], "nowhere/x.json"), (["--size", "huge"], "'huge'")])
def test_benches_that_cannot_be(refused, words, said): refused("bench", *words, said=said)


# as people start it

def python_m(*words, cwd, **more):
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SELF_IMPROVE_DATA")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "self_improve", *words]
    return subprocess.run(command, cwd=cwd, env=env, text=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          **{"stdout": subprocess.PIPE} | more)


def test_as_a_module(tmp_path):
    done = python_m(*SMOKE, "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and json.loads(done.stdout)["rounds"] == 1
    assert (tmp_path / "here" / "accuracy.png").exists()
    done = python_m("run", "copy", "--set", "loop.steps=-1", cwd=tmp_path)
    assert done.returncode == 2 and re.fullmatch(r"self-improve: [^\n]*-1[^\n]*\n", done.stderr)


def test_a_reader_who_leaves(tmp_path):
    """`self-improve list | head -1` ends quietly."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed: done = python_m("list", cwd=tmp_path, stdout=closed)
    assert (done.returncode, done.stderr) == (0, "")


# problem and answer

def test_problems_are_those_of_the_paper(call):
    words = ["problem", "multiplication", "--level", "2,2", "--count", "3", "--json"]
    code, out, err = call(*words)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(lines) == 3 and all(set(p) == {"prompt", "answer"} for p in lines)
    for p in lines:
        a, b = (int(x[::-1]) for x in p["prompt"][:-1].split("*"))
        assert int(p["answer"].split("=")[1][::-1]) == a * b and len(p["answer"]) == 13
    assert call(*words)[1] == out and call(*words, "--seed", "1")[1] != out
    maze = json.loads(call("problem", "maze_hops", "--level", "6", "--set", "nodes=12", "--json")[1])
    assert len(maze["prompt"].split("-")) == 12


@pytest.mark.parametrize("task, level", [
    ("reverse_addition", "12"), ("forward_addition", "3"), ("copy", "1"), ("reverse", "40"), ("multiplication", "1,7"),
    ("maze_hops", "29"), ("maze_nodes", "99")])
def test_one_problem_comes_with_a_picture(call, task, level):
    code, out, err = call("problem", task, "--level", level)
    assert (code, err) == (0, "") and out.splitlines()[1] == "" and len(out.splitlines()) > 3


@pytest.mark.parametrize("words, said", [
    (["copy", "--level", "0"], "level 0"), (["copy", "--level=-3"], "'-3'"), (["copy", "--level", "ten"], "'ten'"),
    (["copy", "--level", "5,6"], "whole number"), (["multiplication", "--level", "5"], "pair such as 5,6"),
    (["multiplication", "--level", "5,0"], "level 5,0"), (["maze_hops", "--level", "30"], "1 to 29 hops"),
    (["maze_hops", "--level", "5", "--set", "nodes=5"], "1 to 4 hops"),
    (["maze_nodes", "--level", "100"], "10 to 99 nodes"), (["maze_hops", "--level", "3", "--set", "nodes=100"], "100"),
    (["sorting", "--level", "3"], "'sorting'"), (["copy", "--level", "3", "--count", "0"], "--count 0"),
    (["maze_hops", "--level", "3", "--set", "hops=3"], "nodes"),
    (["maze_hops", "--level", "3", "--set", "nodes=many"], "nodes=many"),
    (["copy", "--level", "3", "--set", "nodes"], "key=value"), (["copy"], "--level")])
def test_problems_that_cannot_be(refused, words, said): refused("problem", *words, said=said)


LONG_COPIES = [e for e in recorded() if (e["experiment"], e["scale"]) == ("copy", "tiny") and e["rounds"] > 20]
RECORDED = Path(LONG_COPIES[0]["folder"]).name


def test_a_trained_model_answers(call, document):
    found = document("answer", RECORDED, "98765432109876543210=")
    assert found["answer"] == "98765432109876543210" and found["right"] and found["ends"]
    assert found["votes"] == 3 and 0.9 < found["confidence"] <= 1 and len(found["models"]) == 3
    wrong = document("answer", RECORDED, "9876543210987654321098765=", "--round", "0")
    assert not wrong["right"] and wrong["answer"] != "9876543210987654321098765"
    assert wrong["confidence"] < found["confidence"]
    code, out, err = call("answer", RECORDED, "9876543210987654321098765=", "--round", "0")
    assert code == 0 and "wrong" in out and "^" in out, "what is wrong is marked"


@pytest.mark.parametrize("words, said", [
    ((RECORDED, "12a="), "'a' at position 3"), ((RECORDED, "12"), "position 2"), ((RECORDED, "="), "position 1"),
    ((RECORDED, "12=34"), "give '12=' alone"), ((RECORDED, "12=", "--round", "3"), "keeps no weights"),
    ((RECORDED, "12=", "--round", "999"), "no round 999"), (("nowhere", "12="), "nowhere")])
def test_prompts_that_cannot_be(refused, words, said): refused("answer", *words, said=said)


# tasks and plugins of one's own

@pytest.fixture
def my_tasks():
    Path("my_tasks.py").write_text(MY_TASKS)
    return "my_tasks.py"


def forget():
    """As in a new process: the tasks of a file are not registered."""
    TASKS.pop("my_sorting", None)


def test_a_task_of_ones_own_works_everywhere(call, document, refused, my_tasks):
    small = ["--set", *SMALL, "--out", "mine"]
    assert call("run", "my_sorting", "--tasks", my_tasks, "--scale", "smoke", *small)[0] == 0
    forget()
    refused("show", "mine", said="add --tasks FILE")
    refused("answer", "mine", "312=", said="'my_sorting'")
    refused("run", "my_sorting", said="--tasks FILE")
    assert document("show", "mine", "--tasks", my_tasks)["experiment"] == "my_sorting"
    forget()
    assert document("answer", "mine", "312=", "--tasks", my_tasks)["prompt"] == "312="
    forget()
    problem = document("problem", "my_sorting", "--level", "5", "--tasks", my_tasks)
    assert problem["answer"] == "".join(sorted(problem["prompt"][:-1]))
    forget()
    listed = document("list", "--tasks", my_tasks)
    assert [e["scale"] for e in listed if e["experiment"] == "my_sorting"] == ["smoke", "tiny", "laptop", "gpu"]
    forget()
    code, out, err = call("check", my_tasks)
    assert (code, err) == (0, "") and "my_sorting keeps all rules" in out and "--level 1" in out


BROKEN = MY_TASKS.replace("self.solve(prompts))", "self.solve(prompts)[:, :-1])")


@pytest.mark.parametrize("text, said", [
    (BROKEN, "EOS"), ("x = 1\n", "registers no task"), ("1 / 0\n", "line 1"), ("def f(:\n", "SyntaxError")])
def test_files_that_do_not_check(refused, text, said):
    Path("broken.py").write_text(text)
    refused("check", "broken.py", said=said)
    refused("check", "nowhere.py", said="nowhere.py")


def test_a_run_checks_its_task_first(refused):
    Path("broken.py").write_text(BROKEN)
    refused("run", "my_sorting", "--tasks", "broken.py", "--scale", "smoke", said="my_sorting breaks the rule")


PLUGIN = """
from self_improve.experiments import Experiment, register_experiment, smoke
from self_improve.filter import Filter, keep_where, register_filter

@register_filter("odd")
class Odd(Filter):
    def __call__(self, candidates): return keep_where(candidates, candidates.prompts[:, 0] % 2 == 1)

register_experiment(Experiment("odd_copy", "Odd strings suffice.", "", {"smoke": smoke("copy", {"high": 2})}))
"""


def test_a_plugin_registers_filters_and_experiments(call):
    Path("plugin.py").write_text(PLUGIN)
    code, out, err = call("run", "odd_copy", "--plugin", "plugin.py", "--scale", "smoke", "--filter", "odd",
                          "--set", "loop.rounds=1", "--out", "x")
    assert (code, err) == (0, "") and "filter odd" in out
    assert "odd_copy" in call("list", "--plugin", "plugin.py")[1]


# lessons

def test_lessons_are_copied(call, refused):
    code, out, err = call("lessons", "mine")
    names = {str(path.relative_to("mine")) for path in Path("mine").rglob("*") if path.is_file()}
    assert (code, err) == (0, "") and f"{len(names)} files" in out and {"00_start.ipynb", "glossary.md"} <= names
    assert "figures/framework.ipynb" in names and not [name for name in names if "course" in name.split("/")]
    assert "all lessons are in mine already" in call("lessons", "mine")[1], "what is there already is not copied again"
    Path("mine/glossary.md").unlink()
    assert "1 file " in call("lessons", "mine")[1] and Path("mine/glossary.md").exists()
    Path("mine/00_start.ipynb").write_text("my own work")
    Path("mine/glossary.md").unlink()
    refused("lessons", "mine", said="00_start.ipynb")
    Path("file").write_text("mine")
    refused("lessons", "file", said="file")


def test_a_study_copy_has_headings_and_code_alone(call, refused):
    assert call("lessons", "mine", "--study")[0] == 0
    for name in ("00_start", "figures/framework"):
        whole, bare = [json.loads((folder / f"{name}.ipynb").read_text()) for folder in (ROOT / "nbs", Path("mine"))]
        code = [["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"] for book in (whole, bare)]
        assert code[0] == code[1] and not any(c.get("outputs") for c in bare["cells"])
        text = [c["source"] for c in bare["cells"] if c["cell_type"] == "markdown"]
        assert text and all(line.startswith("#") for part in text for line in "".join(part).splitlines())
    refused("lessons", "mine", said="differs from the lesson of that name")


# what belongs to the user stays, and what is interrupted says so

def test_a_fresh_start_removes_only_what_the_run_wrote(call):
    call(*SMOKE)
    mine = [Path("here/weights/001-0.safetensors.mybackup"), Path("here/weights/100-0-mine.safetensors"),
            Path("here/notes.txt")]
    for path in mine: path.write_text("mine")
    assert call(*SMOKE, "--fresh")[0] == 0
    assert [path.read_text() for path in mine] == ["mine"] * 3


@pytest.mark.parametrize("name", ["weights", "rounds.jsonl.part"])
def test_a_symbolic_link_is_not_followed(call, refused, name):
    call(*SMOKE)
    other = Path("other")
    (other / "deep").mkdir(parents=True)
    (other / "deep" / "000-0.safetensors").write_text("mine")
    if name == "weights": shutil.rmtree("here/weights")
    Path("here", name).symlink_to((other / "deep").resolve())
    refused(*SMOKE, "--fresh", said=f"{name} is a symbolic link")
    assert (other / "deep" / "000-0.safetensors").read_text() == "mine"


def test_a_folder_that_is_removed_while_it_is_written(call, monkeypatch):
    """Exit code 0 and 'look again with …' would be a lie."""
    original = report.line

    def remove(r, note=""):
        shutil.rmtree("here")
        return original(r, note)
    monkeypatch.setattr(actions, "line", remove)
    code, _, err = call(*SMOKE)
    assert code == 2 and "here is gone, with what this run had written" in err


def test_a_run_goes_on_when_the_reader_of_its_output_leaves():
    command = [sys.executable, "-m", "self_improve", *SMOKE]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "copy at scale smoke" in reader.stdout.readline()
    reader.stdout.close()
    assert reader.wait(120) == 0 and reader.stderr.read() == ""
    assert len(Run("here").rounds) == 2


def test_a_picture_that_cannot_be_written_costs_the_picture_alone(call, refused, monkeypatch):
    call(*SMOKE)
    refused("show", "here", "--png", ".", said="this is a folder; name a file in it")

    def full(path, data): raise OSError(28, "No space left on device", str(path))
    monkeypatch.setattr(report, "write_atomic", full)
    before = Path("here/accuracy.png").read_bytes()
    code, out, err = call("show", "here")
    assert (code, err) == (0, "") and "no picture: No space left on device: here/accuracy.png" in out
    assert "precision" in out and Path("here/accuracy.png").read_bytes() == before
    code, out, err = call("show", "here", "--png", "new.png")
    assert code == 2 and "No space left on device: new.png" in err and "precision" in out
    assert not Path("new.png").exists()


def test_a_long_prompt_is_refused_at_once(call, refused):
    call(*SMOKE)
    refused("answer", "here", "1" * 8000 + "=", said="8,001 characters: at most 2,000")


@pytest.mark.parametrize("words, said", [
    (["copy", "--level", "999999999"], "999999999"), (["multiplication", "--level", "300,300"], "300,300"),
    (["copy", "--level", "3", "--count", "1000000000000"], "1000000000000")])
def test_problems_that_are_too_many_or_too_hard(refused, words, said): refused("problem", *words, said=said)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_characters_that_the_terminal_lacks_are_replaced(encoding):
    env = os.environ | {"PYTHONIOENCODING": encoding}
    name = recorded()[0]["folder"].name
    done = subprocess.run([sys.executable, "-m", "self_improve", "show", name], capture_output=True, env=env)
    assert done.returncode == 0 and done.stderr == b"" and name.encode() in done.stdout


def test_nothing_draws_before_there_is_something_to_draw():
    program = "import sys; from self_improve.cli import main; main(['list']); print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_runs_of_ones_own_are_listed(call):
    call(*SMOKE[:-1], "runs/mine")
    Path("runs/broken").mkdir()
    Path("runs/broken/config.json").write_text("{}")
    out = call("list")[1]
    own = out[out.index("runs of your own"):]
    assert re.search(r"^mine +none +0 +1 +3 +yes", own, re.M) and re.search(r"^broken +– ", own, re.M)


@pytest.mark.parametrize("old, new, said", [
    ('"task": "copy"', '"task": "my_sorting"', "task 'my_sorting', which is not registered: add --tasks FILE"),
    ('"schema": 2', '"schema": 3', "another version (schema 3; this one reads 1 and 2): update the package")])
def test_a_run_of_a_missing_task_or_a_later_version_is_not_called_damaged(call, refused, old, new, said):
    call(*SMOKE)
    path = Path("here/config.json")
    path.write_text(path.read_text().replace(old, new))
    refused("show", "here", said=said)
    assert "damaged" not in call("show", "here")[2]


def test_a_run_without_its_last_weights_has_a_way_out(call, refused):
    call(*SMOKE)
    Path("here/weights/001-0.safetensors").unlink()
    refused("answer", "here", "12=", said="a run that lacks its last weights begins again with --fresh")
    refused(*SMOKE[:-3], *SMALL, "loop.rounds=2", "--out", "here", said="begins again with --fresh")
    assert call(*SMOKE, "--fresh")[0] == 0


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"runs": [{}]}', '{"runs": 3}'])
def test_a_damaged_index_is_named(refused, monkeypatch, tmp_path, text):
    (tmp_path / "data" / "runs").mkdir(parents=True)
    (tmp_path / "data" / "runs" / "index.json").write_text(text)
    monkeypatch.setenv("SELF_IMPROVE_DATA", str(tmp_path / "data"))
    refused("list", said="index.json is damaged")


def test_the_help_of_run_shows_the_experiments_own_settings(call):
    assert "train.steps=1500" in call("run", "--help")[1]
    out = call("run", "maze_hops", "--help")[1]
    assert "Settings of maze_hops at scale tiny" in out and "options.nodes=9" in out and "train.steps=6000" in out
    assert "train.steps=25000" in call("run", "maze_hops", "--scale", "paper", "--help")[1]
