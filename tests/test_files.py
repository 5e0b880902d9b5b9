"""What files say about themselves, which of them are refused, and the name of the code that made them."""
import io
import json
import re
import shutil
import tokenize
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import self_improve
from self_improve import files
from self_improve.files import (
    COMPUTING,
    check_metadata,
    code_hash,
    load_metadata,
    load_tensors,
    plain_lines,
    save_tensors,
)
from self_improve.filter import KeepAll
from self_improve.labelling import LabelSet, decode_labels, encode_labels
from self_improve.loop import SelfImprovement
from self_improve.model import Decoder, to_llama_weights
from self_improve.records import Round, Run, file_metadata, find_run, repeats
from self_improve.released import KeepEvery
from self_improve.streams import Stream
from self_improve.tasks import EOS, PAD, Copy, rows_equal

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.zeros(2, dtype=torch.uint8)}


# what a file says about itself

def test_metadata_comes_back(tmp_path):
    path = tmp_path / "w.safetensors"
    save_tensors(path, TENSORS, run="0a05", round="3", member="é")
    assert load_metadata(path) == {"run": "0a05", "round": "3", "member": "é"}
    again = load_tensors(path)
    assert set(again) == set(TENSORS) and all(torch.equal(again[name], TENSORS[name]) for name in TENSORS)
    check_metadata(path, run="0a05", member="é")
    with pytest.raises(ValueError, match="w.safetensors belongs elsewhere: its round is 3, not 4"):
        check_metadata(path, run="0a05", round="4")


def test_a_file_that_says_nothing_is_taken(tmp_path):
    """Those of older records."""
    path = tmp_path / "w.safetensors"
    save_tensors(path, TENSORS)
    assert load_metadata(path) == {}
    check_metadata(path, run="0a05", round="4")


def test_the_same_numbers_are_the_same_bytes_with_metadata(tmp_path):
    names = dict(run="0a05", round="3", member="0", experiment="copy", scale="tiny")
    save_tensors(tmp_path / "one", TENSORS, **names)
    save_tensors(tmp_path / "two", dict(reversed(TENSORS.items())), **dict(reversed(names.items())))
    save_tensors(tmp_path / "three", TENSORS, **names | {"round": "4"})
    one, two, three = [(tmp_path / name).read_bytes() for name in ("one", "two", "three")]
    assert one == two != three and len(one) == len(three)


@pytest.mark.parametrize("about", ["", "[", "[]", "null", "3", '"run"', "[" * 100_000], ids=lambda about: about[:3])
def test_metadata_that_cannot_be_read_is_refused(tmp_path, about):
    save_file(TENSORS, tmp_path / "w.safetensors", {"about": about})
    with pytest.raises(ValueError, match="w.safetensors is no readable safetensors file"):
        load_metadata(tmp_path / "w.safetensors")


@pytest.mark.parametrize("data", [b"", b"garbage", b"\xff" * 64], ids=repr)
def test_a_file_that_is_none_has_no_metadata(tmp_path, data):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="w.safetensors is no readable safetensors file"):
        check_metadata(tmp_path / "w.safetensors", round="1")


# files that belong elsewhere

@pytest.fixture
def run(tmp_path, tiny, talkative):
    """Two members, their moments, and two rounds; a third is asked for."""
    config = tiny(train=dict(fresh=False), loop=dict(members=2, rounds=1))
    list(SelfImprovement(config, tmp_path / "run"))
    return Run.create(tmp_path / "run", tiny(train=dict(fresh=False), loop=dict(members=2, rounds=2)))


ELSEWHERE = [("round", (0, 0)), ("member", (1, 1)), ("run", None)]


def misplaced(run, tiny, tmp_path, kind, place):
    """A file of another round or member of this run, or of another run, in place of that of round 1, member 0."""
    if place: data = run.path(kind, *place).read_bytes()
    else:
        other = tiny(train=dict(fresh=False), data_seed=1, loop=dict(members=2, rounds=1))
        list(SelfImprovement(other, tmp_path / "other"))
        data = Run(tmp_path / "other").path(kind, 1, 0).read_bytes()
    run.path(kind, 1, 0).write_bytes(data)


@pytest.mark.parametrize("what, place", ELSEWHERE)
def test_weights_of_another_place_are_refused(run, tiny, tmp_path, what, place):
    misplaced(run, tiny, tmp_path, "weights", place)
    for attempt in (lambda: run.model(1), lambda: run.model(), lambda: SelfImprovement(run.config, run)):
        with pytest.raises(ValueError, match=f"weights/001-0.safetensors belongs elsewhere: its {what} is") as error:
            attempt()
        assert "\n" not in str(error.value)
    run.model(1, member=1)


@pytest.mark.parametrize("what, place", ELSEWHERE[1:])
def test_labels_of_another_place_are_refused(run, tiny, tmp_path, what, place):
    misplaced(run, tiny, tmp_path, "labels", place)
    with pytest.raises(ValueError, match=f"labels/001-0.safetensors .*belongs elsewhere: its {what} is"):
        SelfImprovement(run.config, run)


@pytest.mark.parametrize("what, place", ELSEWHERE[1:])
def test_moments_of_another_place_are_refused(run, tiny, tmp_path, what, place):
    misplaced(run, tiny, tmp_path, "moments", place)
    with pytest.raises(ValueError, match=f"moments/001-0.safetensors .*belongs elsewhere: its {what} is"):
        SelfImprovement(run.config, run)


def test_files_name_their_run_round_and_member(run):
    for path in sorted(run.folder.rglob("*.safetensors")):
        round, member = map(int, path.stem.split("-"))
        assert load_metadata(path) == file_metadata(run, round, member), path
        assert load_metadata(path)["run"] == json.loads((run.folder / "config.json").read_text())["identity"][:16]


def spoiled(tensor, value):
    tensor = tensor.clone()
    tensor[..., -1] = value
    return tensor


UNUSABLE = {
    "int64": (lambda t: t.long(), "holds no weights: {} is of type int64"),
    "bool": (lambda t: t > 0, "holds no weights: {} is of type bool"),
    "nan": (lambda t: spoiled(t, float("nan")), "holds no usable weights: {} is not finite"),
    "inf": (lambda t: spoiled(t, float("inf")), "holds no usable weights: {} is not finite"),
    "minus inf": (lambda t: spoiled(t, -float("inf")), "holds no usable weights: {} is not finite"),
}


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("damage", UNUSABLE)
def test_weights_that_are_none_are_refused(tmp_path, tiny, damage, name):
    run = Run.create(tmp_path / "run", tiny())
    run.save_model(Decoder(run.config.model), 0, 0)
    run.add(Round(0, [1, 3], 3, 5))
    run.model()
    change, sentence = UNUSABLE[damage]
    tensors = to_llama_weights(Decoder(run.config.model))
    save_tensors(run.path("weights", 0, 0), tensors | {name: change(tensors[name])}, **file_metadata(run, 0, 0))
    with pytest.raises(ValueError, match=re.escape("weights/000-0.safetensors " + sentence.format(name))) as error:
        run.model()
    assert "\n" not in str(error.value)


# labels that no filter can have kept

STREAM = Stream(5, "self", 1, round=3)


def stored_labels(**changes):
    """Five labels of level 4, two of them wrong, as a file holds them; some of the tensors replaced."""
    index = torch.tensor([0, 2, 7, 9, 700])
    block = Copy().draw(4, replace(STREAM, level=4), index)
    label = torch.nn.functional.pad(block.answer, (0, 2))
    label[1] = torch.tensor([3, 4, 5, 6, 7, EOS, PAD])
    label[3] = torch.tensor([3, EOS] + [PAD] * 5)
    tensors = encode_labels([LabelSet(4, index, label, block)])
    return tensors | {f"4/{name}": torch.as_tensor(value) for name, value in changes.items()}, label


def rows(*texts): return torch.tensor(texts, dtype=torch.uint8)


GOOD, PADS, ENDLESS = [3, EOS, PAD], [PAD] * 3, [3, 4, 5]
BAD = {
    "negative": (dict(kept=[-1, 2, 7, 9, 700]), "the row numbers of level 4 are not ascending from 0"),
    "unsorted": (dict(kept=[0, 7, 2, 9, 700]), "the row numbers of level 4 are not ascending from 0"),
    "repeated": (dict(kept=[0, 2, 2, 9, 700]), "the row numbers of level 4 are not ascending from 0"),
    "empty": (dict(label=rows(GOOD, PADS)), "a label of level 4 is empty"),
    "endless": (dict(label=rows(GOOD, ENDLESS)), "a label of level 4 does not end"),
    "unknown token": (dict(label=rows(GOOD, [18, EOS, PAD])), "a label of level 4 has a token that copy does not have"),
    "no byte": (dict(label=rows(GOOD, GOOD).int()), "a label of level 4 has a token that copy does not have"),
    "row not kept": (dict(wrong=[1, 5]), "a difference of level 4 is at a row that was not kept"),
    "row before all": (dict(wrong=[-1, 3]), "a difference of level 4 is at a row that was not kept"),
    "the same row twice": (dict(wrong=[1, 1]), "the differences of level 4 are not ascending"),
    "rows swapped": (dict(wrong=[3, 1]), "the differences of level 4 are not ascending"),
    "behind its end": (dict(label=rows(GOOD, [3, EOS, 4])), "a label of level 4 goes on behind its end"),
    "one row less": (dict(wrong=[1]), "level 4 has 1 differences and 2 labels"),
    "one label less": (dict(label=rows(GOOD)), "level 4 has 2 differences and 1 labels"),
}


def test_good_labels_are_read():
    tensors, label = stored_labels()
    again, = decode_labels(tensors, Copy(), STREAM)
    assert rows_equal(again.label, label).all() and again.index.tolist() == [0, 2, 7, 9, 700]
    largest, = decode_labels(stored_labels(label=rows(GOOD, [17, EOS, PAD]))[0], Copy(), STREAM)
    assert largest.label[3, 0] == 17, "the last token there is"


def test_labels_come_back_in_the_order_of_the_round():
    """A schedule of pairs need not be sorted, and the order of rows decides what training draws."""
    tensors = stored_labels()[0]
    both = tensors | {name.replace("4/", "10/"): tensor for name, tensor in tensors.items()}
    def levels(order): return [s.level for s in decode_labels(both, Copy(), STREAM, levels=order)]
    assert levels(None) == [4, 10] and levels([10, 7, 4]) == [10, 4]
    with pytest.raises(ValueError, match="levels that the round does not have"): levels([4])


def test_a_model_may_have_more_tokens_than_its_task():
    tensors = stored_labels(label=rows(GOOD, [18, EOS, PAD]))[0]
    again, = decode_labels(tensors, Copy(), STREAM, vocab=102)
    assert again.label[3, 0] == 18 and Copy.vocab.decode([3, 18, 4]) == "0?1"
    with pytest.raises(ValueError, match="does not have"): decode_labels(tensors, Copy(), STREAM, vocab=18)


@pytest.mark.parametrize("damage", BAD)
def test_labels_that_no_filter_can_have_kept_are_refused(damage):
    changes, sentence = BAD[damage]
    with pytest.raises(ValueError, match=f"^{sentence}$"): decode_labels(stored_labels(**changes)[0], Copy(), STREAM)


def test_labels_without_an_end_are_read_where_a_filter_keeps_them():
    """And nothing else is let through with them."""
    tensors, _ = stored_labels(label=rows(GOOD, ENDLESS))
    again, = decode_labels(tensors, Copy(), STREAM, ended_only=False)
    assert again.label[3].tolist() == ENDLESS + [PAD] * 2
    for damage in set(BAD) - {"endless", "behind its end"}:
        changes, sentence = BAD[damage]
        with pytest.raises(ValueError, match=sentence):
            decode_labels(stored_labels(**changes)[0], Copy(), STREAM, ended_only=False)


@pytest.mark.parametrize("damage", BAD)
def test_a_file_of_such_labels_is_named(tmp_path, tiny, talkative, damage):
    list(SelfImprovement(tiny(loop=dict(rounds=1)), tmp_path / "run"))
    run = Run.create(tmp_path / "run", tiny())
    save_tensors(run.path("labels", 1, 0), stored_labels(**BAD[damage][0])[0], **file_metadata(run, 1, 0))
    with pytest.raises(ValueError, match=f"labels/001-0.safetensors does not fit this run: {BAD[damage][1]}$"):
        SelfImprovement(run.config, run)


def test_the_runs_filter_says_whether_labels_must_end(tmp_path, tiny, talkative):
    """The same file is refused for filter none and read for filter all."""
    for name, ended_only in (("none", True), ("all", False)):
        list(SelfImprovement(tiny(loop=dict(rounds=1, filter=name)), tmp_path / name))
        run = Run.create(tmp_path / name, tiny(loop=dict(filter=name)))
        save_tensors(run.path("labels", 1, 0), stored_labels(label=rows(GOOD, ENDLESS))[0], **file_metadata(run, 1, 0))
        if not ended_only: assert len(SelfImprovement(run.config, run).ensemble.members[0].sets[0]) == 5
        else:
            with pytest.raises(ValueError, match="does not end"): SelfImprovement(run.config, run)
    assert KeepAll.ended_only and not KeepEvery.ended_only


# the name of the code

LINES = {
    "# one\n\n   \nx = 1\n\n    # two\n": ["x = 1"],
    '"""A module."""\nx = 1\n': ["x = 1"],
    'def f():\n    "Of one line."\n    return "one"\n': ["def f():", '    return "one"'],
    'f(\n    "a",\n    # between\n\n    b="c",\n)\n': ["f(", '    "a",', '    b="c",', ")"],
    'x = [\n    "a", "b",\n    "c",\n]\n': ["x = [", '    "a", "b",', '    "c",', "]"],
    'x = [\n    "a",\n    "b"\n]\n': ["x = [", '    "a",', '    "b"', "]"],
    'x = (\n    "a"\n    "b"\n)\n': ["x = (", '    "a"', '    "b"', ")"],
}


@pytest.mark.parametrize("source", LINES, ids=repr)
def test_lines_that_compute(source): assert plain_lines(source) == LINES[source]


@pytest.mark.parametrize("one, two", [
    ("x = 1\n", "x = 2\n"), ('x = "a"\n', 'x = "b"\n'), ("x = a + b\n", "x = a - b\n"), ("f(ab)\n", "f(a, b)\n"),
    ("if a:\n    b()\n    c()\n", "if a:\n    b()\nc()\n"), ("x = a\n-b\n", "x = a - b\n"),
    ('x = (\n    "1,6 6,1;"\n    "6,6"\n)\n', 'x = (\n    "1,6 6,1;"\n    "7,7"\n)\n')],
    ids=["number", "text", "sign", "name", "indent", "line", "text in brackets"])
def test_other_code_has_other_lines(one, two):
    assert plain_lines(one) != plain_lines(two)


def test_a_changed_list_of_pairs_is_other_code():
    """The accelerated list is text on lines of its own; it decides what is labeled."""
    source = (Path(self_improve.__file__).parent / "schedule.py").read_text()
    assert source.count("7,10 8,10 9,10 10,7 10,8 10,9;10,10") == 1
    assert plain_lines(source) != plain_lines(source.replace("10,9;10,10", "10,9;9,9"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the modules that compute, in place of the package."""
    source = Path(self_improve.__file__).parent
    copied = tmp_path / "package"
    copied.mkdir()
    for name in ("__init__", *COMPUTING): shutil.copyfile(source / f"{name}.py", copied / f"{name}.py")
    monkeypatch.setattr(self_improve, "__file__", str(copied / "__init__.py"))
    return copied


def hash_now(): return files.code_hash.__wrapped__()


def last_number(source):
    """Where the last number of a module's code stands: character of its beginning, and its length."""
    *_, last = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.NUMBER]
    before = source.splitlines(keepends=True)[:last.start[0] - 1]
    return sum(map(len, before)) + last.start[1], len(last.string)


@pytest.mark.parametrize("name", COMPUTING)
def test_of_every_module_the_code_alone_counts(name):
    source = (Path(self_improve.__file__).parent / f"{name}.py").read_text()
    assert plain_lines("# another\n\n\n" + source + "\n\n# and the end\n") == plain_lines(source)
    at, length = last_number(source)
    assert plain_lines(source[:at] + "77" + source[at + length:]) != plain_lines(source)


def test_the_name_of_the_code_is_that_of_its_modules(package):
    """A comment changes no name, a number does, and so do lines that stand in another module."""
    assert re.fullmatch("[0-9a-f]{16}", code_hash()) and len(set(COMPUTING)) == len(COMPUTING)
    sources = {name: (package / f"{name}.py").read_text() for name in ("streams", "blocks")}
    (package / "evidence.py").write_text("not even Python (")
    (package / "streams.py").write_text(sources["streams"] + "# a comment\n")
    assert hash_now() == code_hash(), "what computes nothing does not count"
    at, length = last_number(sources["streams"])
    (package / "streams.py").write_text(sources["streams"][:at] + "77" + sources["streams"][at + length:])
    changed = hash_now()
    (package / "streams.py").write_text(sources["blocks"])
    (package / "blocks.py").write_text(sources["streams"])
    assert len({code_hash(), changed, hash_now()}) == 3


# whether the present code repeats a run

def made_by(folder, code):
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    stored["provenance"] |= {"code": code, "commit": "abc123"}
    path.write_text(json.dumps(stored))
    return Run(folder)


@pytest.fixture
def finished(tmp_path, tiny, monkeypatch):
    """A run of a base alone, and a data folder without records."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SELF_IMPROVE_DATA", str(tmp_path / "data"))
    run = Run.create(tmp_path / "runs" / "run", tiny(loop=dict(rounds=0), tag="finished"))
    run.add(Round(0, [1, 3], 3, 5))
    return run


OTHER = "0123456789abcdef"


def test_a_run_is_repeated_by_the_code_that_made_it(finished, tmp_path):
    assert repeats(finished) is True
    assert repeats(made_by(finished.folder, OTHER)) is False
    assert repeats(made_by(finished.folder, None)) is None
    (tmp_path / "data" / "same_bits.json").write_text(json.dumps({"hashes": [OTHER]}))
    assert repeats(made_by(finished.folder, OTHER)) is True, "a test compared the two"
    assert repeats(made_by(finished.folder, code_hash())) is True, "the present code need not be listed"
    assert repeats(made_by(finished.folder, OTHER[::-1])) is False


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hashes": 3}'], ids=repr)
def test_a_list_of_such_code_that_cannot_be_read_is_no_list(finished, tmp_path, text):
    (tmp_path / "data" / "same_bits.json").write_text(text)
    assert repeats(finished) is True and repeats(made_by(finished.folder, OTHER)) is False


def test_a_run_of_other_code_is_found_with_a_warning(finished, tmp_path):
    made_by(finished.folder, OTHER)
    with pytest.warns(UserWarning, match=r"run was made by other code \(commit abc123\)") as warned:
        found = find_run(finished.config, tmp_path / "runs")
    assert found.folder == finished.folder and len(warned) == 1


@pytest.mark.parametrize("code", ["its own", None])
def test_a_run_of_the_same_or_of_unknown_code_is_found_in_silence(finished, tmp_path, code):
    made_by(finished.folder, code and code_hash())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_run(finished.config, tmp_path / "runs").folder == finished.folder
