"""Runs that are wanted: the queue, work in pieces, one file to carry, and what is refused before a run is filed."""
import json
import shutil
import zipfile

import pytest
import torch

from self_improve.actions import open_item, waiting, work_on
from self_improve.cli import main
from self_improve.config import configure, identity
from self_improve.ensemble import Ensemble
from self_improve.experiments import smoke
from self_improve.files import load_tensors, save_tensors
from self_improve.loop import SelfImprovement
from self_improve.recording import (
    MANIFEST,
    Item,
    Limit,
    TimeIsUp,
    absorb,
    check_run,
    checked_rounds,
    find_item,
    is_done,
    pack,
    packs_in,
    queue_path,
    read_queue,
    unpack,
)
from self_improve.records import Run, file_metadata, recorded
from self_improve.tasks import EOS, PAD, make_task

SMALL = {"name": "copy-smoke", "experiment": "copy", "scale": "smoke", "settings": {"loop.rounds": "3"}}


def queue_file(path, *entries):
    path.write_text(json.dumps({"items": list(entries)}))
    return path


@pytest.fixture
def config(): return smoke("copy", {"loop.rounds": 3})


def run_in(folder, config, rounds=None):
    """A run of a few rounds in a folder; all of them by default."""
    run = Run.create(folder, config, "copy", "smoke")
    for r in SelfImprovement(config, run, threads="one"):
        if r.round == rounds: break
    return Run(folder)


# the queue

def test_the_projects_queue_can_be_run():
    items = read_queue(queue_path())
    assert len(items) > 20 and items[0].experiment == "copy"
    for item in items: assert item.why and identity(item.config) and item.config.model_seed == item.seed
    scales = [item.scale for item in items]
    assert scales.index("gpu") > scales.index("laptop"), "what a laptop can do comes first"


NONSENSE = {
    "no list": ({"items": 3}, "has no list of items"),
    "no items": ([], "has no list of items"),
    "no item": ({"items": [3]}, "item 1: '3' is no item"),
    "unknown field": ({"items": [SMALL | {"colour": 1}]}, "item 1: 'colour' is no field: the fields are name"),
    "no name": ({"items": [{k: v for k, v in SMALL.items() if k != "name"}]}, "item 1: an item has no name"),
    "a path": ({"items": [SMALL | {"name": "../x"}]}, "item 1: name='../x' must be letters"),
    "no seed": ({"items": [SMALL | {"seed": "0"}]}, "item 1: seed='0' must be of type int"),
    "experiment": ({"items": [SMALL | {"experiment": "copi"}]}, "item 1: unknown experiment 'copi'"),
    "scale": ({"items": [SMALL, SMALL | {"scale": "huge"}]}, "item 2: unknown scale 'huge'"),
    "setting": ({"items": [SMALL | {"settings": {"loop.round": "3"}}]}, "item 1: .*loop.rounds"),
    "value": ({"items": [SMALL | {"settings": {"loop.rounds": "x"}}]}, "item 1: .*loop.rounds"),
    "twice": ({"items": [SMALL, SMALL | {"seed": 1}]}, "item 2: the name 'copy-smoke' stands twice"),
    "same run": ({"items": [SMALL, SMALL | {"name": "b"}]}, "item 2: 'b' is the same run as 'copy-smoke'"),
    "weights": ({"items": [SMALL | {"weights": ["last"]}]}, "item 1: weights=.* must be rounds"),
    "far weights": ({"items": [SMALL | {"weights": [0, 4]}]}, "item 1: .*the run has rounds 0 to 3"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_queue_that_was_edited_into_nonsense_is_refused(tmp_path, capsys, what):
    stored, sentence = NONSENSE[what]
    path = tmp_path / "queue.json"
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=sentence): read_queue(path)
    out = tmp_path / "out"
    assert main(["record", "--next", "--queue", str(path), "--out", str(out)]) == 2 and not out.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_queue_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="there is no .*queue.json"): read_queue(tmp_path / "queue.json")
    (tmp_path / "queue.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"): read_queue(tmp_path / "queue.json")


def test_what_is_chosen(tmp_path, config):
    items = [Item("a", "copy", "smoke", settings={"loop.rounds": "3"}), Item("b", "reverse", "smoke"),
             Item("c", "copy", "tiny", 7)]
    data = tmp_path / "data"
    assert find_item(items, "b", data) is items[1]
    assert [item.name for item in waiting(items, tmp_path)] == ["a", "b", "c"]
    assert [item.name for item in waiting(items, tmp_path, "tiny")] == ["c"]
    with pytest.raises(ValueError, match="nothing is left to record at scale gpu"): waiting(items, tmp_path, "gpu")
    with pytest.raises(ValueError, match="'d' is not in the queue"): find_item(items, "d", data)
    run_in(tmp_path / "run", config)
    absorb(pack(Run(tmp_path / "run"), tmp_path / "a.zip"), data)
    assert is_done(items[0], data) and not is_done(items[1], data)
    with pytest.raises(ValueError, match="a is recorded already"): find_item(items, "a", data)


# time

def test_a_limit_counts_minutes():
    now = [0.0]
    limit = Limit(1, lambda: now[0])
    assert limit.allows(50) and not limit.allows(55) and limit.minutes_left() == 1
    told = []
    watched = limit(lambda *args: told.append(args))
    watched(1, "label")
    now[0] = 61
    with pytest.raises(TimeIsUp): watched(1, "train")
    assert told == [(1, "label")] and limit.minutes_left() == 0
    assert Limit().allows(1e9) and Limit().minutes_left() is None


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), 1e9])
def test_what_is_no_time(minutes):
    with pytest.raises(ValueError, match="--minutes .* must be a number above 0"): Limit(minutes)


# carry

def test_pieces_on_two_machines_are_one_run(tmp_path, config):
    """Stop, carry, go on: to the bit what an uninterrupted run comes to."""
    whole = run_in(tmp_path / "whole", config)
    first = run_in(tmp_path / "first", config, 1)
    carried = pack(first, tmp_path / "x.zip")
    second = unpack(carried, tmp_path / "second")
    assert [r.round for r in second.rounds] == [0, 1]
    second = run_in(tmp_path / "second", config)
    for k in range(2):
        assert second.path("weights", 3, k).read_bytes() == whole.path("weights", 3, k).read_bytes()
        for r in (1, 2, 3): assert second.path("labels", r, k).read_bytes() == whole.path("labels", r, k).read_bytes()
    filed = absorb(pack(second, tmp_path / "y.zip"), tmp_path / "data")
    assert filed.name == f"copy-smoke-{identity(config)[:8]}" and Run(filed).rounds == second.rounds


def test_moments_travel_where_they_are_kept(tmp_path, config):
    config = configure(config, {"train.fresh": False})
    whole, first = run_in(tmp_path / "whole", config), run_in(tmp_path / "first", config, 1)
    unpack(pack(first, tmp_path / "x.zip"), tmp_path / "second")
    second = run_in(tmp_path / "second", config)
    assert second.path("weights", 3, 1).read_bytes() == whole.path("weights", 3, 1).read_bytes()


def test_a_command_in_pieces(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    monkeypatch.setenv("SELF_IMPROVE_DATA", str(data))
    queue = queue_file(tmp_path / "queue.json", SMALL, SMALL | {"name": "other", "seed": 1})
    # the time is over after the base
    monkeypatch.setattr(Limit, "allows", lambda self, seconds: False)
    assert main(["record", "--next", "--queue", str(queue), "--minutes", "9", "--out", "rec", "--device", "cpu"]) == 0
    assert "copy-smoke: round 0, frontier 3; the same command goes on with it" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELF_IMPROVE_DATA", str(data))
    # another machine has the zip alone
    (tmp_path / "there").mkdir()
    (tmp_path / "rec" / "copy-smoke.zip").rename(tmp_path / "there" / "copy-smoke.zip")
    command = ["record", "--queue", str(queue), "--out", "there", "--device", "cpu", "--quiet"]
    assert main([*command, "--next"]) == 0
    assert "copy-smoke: round 3, frontier 6; finished: self-improve absorb there files it" in capsys.readouterr().out
    # the next is the next that is not finished
    assert main([*command, "--all"]) == 0
    out = capsys.readouterr().out
    assert "other: round 3" in out and "copy-smoke" not in out
    assert main([*command, "--next"]) == 2 and "nothing is left to record" in capsys.readouterr().err
    assert not data.exists()
    assert main(["absorb", "there", "--data", str(data), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("filed as") == 2 and len(recorded(data)) == 2
    assert main(["absorb", "there", "--data", str(data), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("filed again") == 2 and len(recorded(data)) == 2
    assert main([*command, "copy-smoke"]) == 2 and "copy-smoke is recorded already" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["copy-smoke", "--next"], ["--all", "--next"]])
def test_one_thing_at_a_time(tmp_path, capsys, words):
    queue = queue_file(tmp_path / "queue.json", SMALL)
    assert main(["record", *words, "--queue", str(queue), "--out", str(tmp_path / "rec")]) == 2
    assert "needs one of: a NAME, --next, --all, --list" in capsys.readouterr().err


def test_another_run_in_the_folder_is_told(tmp_path, config):
    item = Item("x", "copy", "smoke")
    run_in(tmp_path / "x", configure(config, {"loop.lr": 0.1}), 0)
    with pytest.raises(ValueError, match="holds another run than x"): open_item(item, tmp_path)
    with pytest.raises(ValueError, match="holds another run than x"): work_on(item, tmp_path)


def test_a_newer_file_is_not_written_over(tmp_path, config):
    """It came back from another machine, where the run has gone on."""
    item = Item("x", "copy", "smoke", settings={"loop.rounds": "3"})
    pack(run_in(tmp_path / "far" / "x", config), tmp_path / "x.zip")
    run_in(tmp_path / "x", config, 1)
    with pytest.raises(ValueError, match="has more rounds than .*: move the folder away"): open_item(item, tmp_path)
    with pytest.raises(ValueError, match="has more rounds than"): work_on(item, tmp_path, quiet=True)
    # the same round is no reason
    pack(Run(tmp_path / "x"), tmp_path / "x.zip")
    assert len(open_item(item, tmp_path).rounds) == 2


def test_a_run_that_is_wanted_longer_is_not_finished(tmp_path, config):
    run_in(tmp_path / "x", config)
    longer = Item("x", "copy", "smoke", settings={"loop.rounds": "4"})
    assert waiting([longer], tmp_path) == [longer]


def test_a_gap_is_told_before_anything_is_done(tmp_path, config):
    item = Item("x", "copy", "smoke", settings={"loop.rounds": "3"})
    run = run_in(tmp_path / "x", config, 2)
    run.path("labels", 1, 0).unlink()
    run.path("weights", 0, 0).unlink()
    before = sorted(p.name for p in (tmp_path / "x").rglob("*"))
    with pytest.raises(ValueError, match="000-0.safetensors"): work_on(item, tmp_path, quiet=True)
    assert sorted(p.name for p in (tmp_path / "x").rglob("*")) == before


# what is not filed

@pytest.fixture
def finished(tmp_path, config): return run_in(tmp_path / "run", config)


def refuse(run, tmp_path, sentence):
    """Nothing is filed, and the sentence says why."""
    data = tmp_path / "data"
    with pytest.raises(ValueError, match=sentence): absorb(pack(run, tmp_path / "x.zip"), data)
    assert not data.exists()


def test_what_is_whole_is_filed(tmp_path, finished):
    target = absorb(pack(finished, tmp_path / "x.zip"), tmp_path / "data", (-1,))
    names = {path.relative_to(target).as_posix() for path in target.rglob("*.*")}
    assert {"config.json", "rounds.jsonl", "weights/003-0.safetensors", "weights/003-1.safetensors"} <= names
    assert Run(target).rounds == finished.rounds and "weights/000-0.safetensors" not in names


def test_a_longer_record_keeps_its_place(tmp_path, config, finished):
    data = tmp_path / "data"
    target = absorb(pack(finished, tmp_path / "x.zip"), data)
    short = run_in(tmp_path / "short", configure(config, {"loop.rounds": 1}))
    with pytest.raises(ValueError, match="has more rounds than"): absorb(pack(short, tmp_path / "short.zip"), data)
    assert Run(target).rounds == finished.rounds


@pytest.mark.parametrize("changes, sentence", [
    ({"experiment": "../../outside"}, "unknown experiment"), ({"experiment": "reverse"}, "its task is copy"),
    ({"scale": "../x"}, "unknown scale")])
def test_a_run_that_says_it_is_another(tmp_path, finished, changes, sentence):
    """Its name becomes a folder in data/runs."""
    path = finished.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refuse(Run(finished.folder), tmp_path, sentence)


@pytest.mark.parametrize("r", [0, 2])
def test_weights_that_the_labels_were_made_by(tmp_path, finished, r):
    finished.path("weights", r, 0).unlink()
    refuse(finished, tmp_path, "its labels cannot be made again")


@pytest.mark.parametrize("change, sentence", [
    (lambda line: line.update(filter=[]), "does not say what became"),
    (lambda line: line.update(label_accuracy=[]), "does not say what became")])
def test_lines_that_are_not_complete(tmp_path, finished, change, sentence):
    lines = (finished.folder / "rounds.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    change(last)
    (finished.folder / "rounds.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    refuse(Run(finished.folder), tmp_path, sentence)


def test_labels_without_one_of_their_tensors(tmp_path, finished):
    changed(finished, 2, lambda tensors: dict(list(tensors.items())[1:]))
    refuse(finished, tmp_path, "002-0.safetensors does not fit this run")


def test_a_run_that_is_not_finished(tmp_path, config):
    refuse(run_in(tmp_path / "run", config, 1), tmp_path, "is not finished: it has 2 rounds")


def test_a_round_that_is_missing(tmp_path, finished):
    lines = (finished.folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (finished.folder / "rounds.jsonl").write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(ValueError, match="round"): pack(Run(finished.folder), tmp_path / "x.zip")


def test_labels_that_are_missing(tmp_path, finished):
    finished.path("labels", 2, 1).unlink()
    refuse(finished, tmp_path, "has a gap: 002-1.safetensors of the labels is missing")


def changed(run, r, change):
    """One member's labels of a round, changed."""
    path = run.path("labels", r, 0)
    tensors = load_tensors(path)
    save_tensors(path, change(tensors), **file_metadata(run, r, 0))


def test_a_label_that_was_dropped(tmp_path, finished):
    def drop(tensors):
        name = next(iter(tensors)).split("/")[0]
        kept, wrong = tensors[f"{name}/kept"][:-1], tensors[f"{name}/wrong"]
        fits = wrong < len(kept)
        label = tensors[f"{name}/label"][fits]
        return tensors | {f"{name}/kept": kept, f"{name}/wrong": wrong[fits], f"{name}/label": label}
    changed(finished, 2, drop)
    refuse(finished, tmp_path, "round 2, model 0: .* labels are kept")


def test_a_label_that_was_made_right(tmp_path, finished):
    def mend(tensors):
        name = next(iter(tensors)).split("/")[0]
        return tensors | {f"{name}/wrong": tensors[f"{name}/wrong"][1:], f"{name}/label": tensors[f"{name}/label"][1:]}
    changed(finished, 2, mend)
    refuse(finished, tmp_path, "round 2, model 0: .* of them right")


def test_labels_of_other_problems(tmp_path, finished):
    """As many, as wrong, but not those that the models before would make."""
    def shift(tensors):
        name = next(iter(tensors)).split("/")[0]
        return tensors | {f"{name}/kept": tensors[f"{name}/kept"] + 1}
    changed(finished, 3, shift)
    refuse(finished, tmp_path, "round 3, model 0")


def test_a_wrong_label_that_became_another_wrong_one(tmp_path, finished):
    """As many, as wrong, of the same problems: only the models before can tell."""
    def garble(tensors):
        name = next(iter(tensors)).split("/")[0]
        label = tensors[f"{name}/label"].clone()
        digit = make_task("copy").vocab.ids["7"]
        label[0] = torch.where((label[0] != EOS) & (label[0] != PAD), digit, label[0])
        assert not torch.equal(label, tensors[f"{name}/label"])
        return tensors | {f"{name}/label": label}
    changed(finished, 3, garble)
    with pytest.raises(ValueError, match="round 3, model 0: the weights of round 2 give other labels"):
        # in a run of thirty labels one is more than may differ
        check_run(finished)


def test_weights_of_another_run(tmp_path, finished):
    model = Ensemble(configure(finished.config, {"model_seed": 5})).models[0]
    with torch.no_grad(): model.head.weight.zero_()
    finished.save_model(model, 2, 0)
    refuse(finished, tmp_path, "round 3, model .*: the weights of round 2 give other labels")


def test_an_accuracy_that_was_written_by_hand(tmp_path, finished):
    lines = (finished.folder / "rounds.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    for measured in last["accuracy"].values(): measured["accuracy"] = 1.0
    (finished.folder / "rounds.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    refuse(Run(finished.folder), tmp_path, "the stored weights are right in .*, the record says 100.0%")


# zips

def rewritten(path, change):
    """A zip with its files changed: name → bytes."""
    with zipfile.ZipFile(path) as archive: files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items(): archive.writestr(name, data)
    return path


def damage_weights(files):
    name = "weights/003-0.safetensors"
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])


def escape(files):
    files["../evil"] = b"x"
    manifest = json.loads(files[MANIFEST])
    manifest["files"]["../evil"] = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    files[MANIFEST] = json.dumps(manifest).encode()


DAMAGE = {
    "one bit of a weight": (damage_weights, "weights/003-0.safetensors has been changed"),
    "a file less": (lambda files: files.pop("rounds.jsonl"), "rounds.jsonl is missing"),
    "a file more": (lambda files: files.update(extra=b"x"), "extra is not in its list"),
    "no list": (lambda files: files.pop(MANIFEST), "has no manifest.json"),
    "a list that is no JSON": (lambda files: files.update({MANIFEST: b"{,"}), "is no run to carry: .*is damaged"),
    "a list that is none": (lambda files: files.update({MANIFEST: b"[]"}), "is no run to carry"),
    "a file outside": (escape, "../evil lies outside a run's folder"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_zip_is_refused_and_leaves_nothing(tmp_path, capsys, finished, what):
    change, sentence = DAMAGE[what]
    path = rewritten(pack(finished, tmp_path / "x.zip"), change)
    with pytest.raises(ValueError, match=sentence): unpack(path, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    assert main(["absorb", str(path), "--data", str(tmp_path / "data")]) == 2 and not (tmp_path / "data").exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_flipped_byte_is_a_sentence(tmp_path, finished):
    """Wherever it is in the file."""
    path = pack(finished, tmp_path / "x.zip")
    whole = path.read_bytes()
    for place in range(40, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        # a byte that nothing reads may be any
        try: unpack(path, tmp_path / "there")
        except ValueError as error: assert "\n" not in str(error)
        else: shutil.rmtree(tmp_path / "there")


def test_what_is_no_zip(tmp_path):
    (tmp_path / "x.zip").write_text("no zip")
    with pytest.raises(ValueError, match="is no run to carry"): unpack(tmp_path / "x.zip", tmp_path / "there")
    with pytest.raises(ValueError, match="there is no .*there"): packs_in(tmp_path / "there")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="has no zip of a run"): packs_in(tmp_path / "there")
    with pytest.raises(ValueError, match="is no queue"): read_queue(tmp_path / "there")


def test_a_file_where_a_folder_is_needed(tmp_path, capsys, finished):
    (tmp_path / "file").write_text("x")
    queue = queue_file(tmp_path / "queue.json", SMALL)
    assert main(["record", "--next", "--queue", str(queue), "--out", str(tmp_path / "file")]) == 2
    assert "is a file: choose a folder" in capsys.readouterr().err
    packed = pack(finished, tmp_path / "x.zip")
    assert main(["absorb", str(packed), "--data", str(tmp_path / "file")]) == 2
    assert "is a file: choose a folder" in capsys.readouterr().err


def test_a_sentence_names_the_users_file(tmp_path, finished):
    (finished.folder / "config.json").write_text("{")
    packed = pack(finished, tmp_path / "x.zip")
    with pytest.raises(ValueError, match="x.zip: x") as error: absorb(packed, tmp_path / "data")
    with pytest.raises(ValueError): unpack(packed, tmp_path / "there")
    assert not (tmp_path / "there").exists(), "nothing is left of a run that cannot be read"
    assert str(error.value).count("/tmp") <= str(packed).count("/tmp"), "the folder it was unpacked in is gone"


def test_rounds_that_are_checked(tmp_path, finished):
    assert checked_rounds(finished) == [1, 2, 3]
    for k in range(2): finished.path("weights", 1, k).unlink()
    assert checked_rounds(finished) == [1, 3], "those with the weights before them"
    check_run(finished)
