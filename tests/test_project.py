"""The open project's board: entries are read without trust, run again in a child, and ranked by what was measured."""
import json
import re
from dataclasses import asdict, replace

import pytest
import torch

from self_improve import project
from self_improve.cli import main
from self_improve.grading import ChildLost
from self_improve.model import Decoder
from self_improve.project import (
    ENOUGH,
    KEYS,
    LABELED,
    PLUGIN_CHARACTERS,
    VERIFIED,
    Entry,
    Verified,
    board_text,
    check_entry,
    hardest_level,
    read_block,
    read_entries,
    read_entry,
    read_models,
    read_verified,
    rerun,
    run_entry,
    trusted_config,
    verify,
)
from self_improve.streams import Stream
from self_improve.tasks import Copy, draw_problems

ABOUT = {"title": "smoke", "experiment": "copy", "scale": "smoke", "settings": {}, "model_seed": 0, "data_seed": 0,
         "claim": 3}
# minutes of an entry of scale smoke: it takes a second
SHORT = 0.1
MIRROR = """
from typing import ClassVar
from self_improve.tasks import *

@register
class Mirror(Task):
    name: ClassVar[str] = "test_mirror"
    vocab: ClassVar[Vocab] = ARITHMETIC
    def shapes(self, level, purpose="self"): return [self.check_level(level)]
    def draw(self, shape, stream, rows):
        digits = random_digits(stream, rows, shape) + 3
        prompts = concat_columns(len(digits), digits, self.vocab.ids["="])
        return Block(prompts, concat_columns(len(digits), digits, digits.flip(1), EOS))
"""
FILTER = """
from self_improve.filter import *

@register_filter("mine")
class Mine(Filter):
    def __call__(self, candidates): {body}
"""


def entry(plugin="", **changed): return Entry("ada", **(ABOUT | changed), plugin=plugin)


def write(folder, name, plugin=None, **changed):
    """An entry's folder."""
    (folder / name).mkdir(parents=True)
    (folder / name / "entry.json").write_text(json.dumps(ABOUT | changed))
    if plugin is not None: (folder / name / "plugin.py").write_text(plugin)
    return folder / name


# reading

def test_an_entry_is_read(tmp_path):
    found = read_entry(write(tmp_path, "ada", plugin="# nothing", settings={"loop.filter": "vote"}))
    assert found == entry("# nothing", settings={"loop.filter": "vote"})


@pytest.mark.parametrize("text, why", [
    (json.dumps(ABOUT | {"settings": {"loop.filter": float("nan")}}), "NaN is no number"),
    ("{", "no JSON"), ("[]", "no object"), ("{}", "'title'"), ("[" * 5000, "no JSON"),
    (json.dumps(ABOUT | {"claim": "20"}), "'claim'"), (json.dumps(ABOUT | {"claim": True}), "'claim'"),
    (json.dumps(ABOUT | {"grade": 1}), "unknown key 'grade'"), (" " * 5 * PLUGIN_CHARACTERS, "too long"),
])
def test_a_broken_entry_is_refused_in_a_sentence(tmp_path, text, why):
    (tmp_path / "entry.json").write_text(text)
    with pytest.raises(ValueError, match=why) as error: read_entry(tmp_path)
    assert "\n" not in str(error.value)


def test_links_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no file"): read_entry(tmp_path)
    folder = write(tmp_path, "ada")
    (folder / "plugin.py").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="no file"): read_entry(folder)


@pytest.mark.parametrize("settings, why", [
    ({"high": LABELED + 1}, "high=11"), ({"low": 2}, "low=2"), ({"cap": "released"}, "cap=released"),
    ({"tag": "mine"}, "tag"), ({"loop.filter": "length:0+oracle"}, "oracle"),
    ({"loop.schedule": "accelerated-by-truth"}, "truth"), ({"model.width": 4096, "model.heads": 64}, "weights"),
    ({"loop.filter": "mine"}, "mine"), ({"model.depth": 3}, "unknown key"), ({"loop.rounds": "many"}, "loop.rounds"),
])
def test_what_may_not_compete(settings, why):
    check_entry(entry())
    with pytest.raises(ValueError, match=why): check_entry(entry(settings=settings))


def test_a_filter_of_its_own_may_compete_and_an_oracle_beside_it_not():
    check_entry(entry("# defines it", settings={"loop.filter": "mine"}))
    # at scale tiny the filter is a vote otherwise, which one model alone may not have
    check_entry(entry("# defines it", scale="tiny", settings={"loop.filter": "mine", "loop.members": 1}))
    with pytest.raises(ValueError, match="oracle"):
        check_entry(entry("# defines it", settings={"loop.filter": "mine+oracle"}))


def test_every_key_has_a_type_and_a_reason():
    assert set(KEYS) == set(ABOUT) and all(about for _, about in KEYS.values())


# running again

def test_the_last_round_in_time_counts():
    # in this process: no time is no base, enough time is all rounds
    none = run_entry("copy", "smoke", {}, 0.0)
    assert none["rounds"] == -1 and none["weights"] == []
    found = run_entry("copy", "smoke", {"loop.rounds": 1}, 60.0)
    assert found["rounds"] == 1 and len(found["weights"]) == 2


def test_the_same_entry_gives_the_same_weights():
    settings = {"loop.filter": "vote", "model_seed": 3, "data_seed": 4}
    first, again = [run_entry("copy", "smoke", settings, 60.0)["weights"] for _ in range(2)]
    other = run_entry("copy", "smoke", settings | {"model_seed": 5}, 60.0)["weights"]
    for key, weight in first[0].items(): assert torch.equal(weight, again[0][key])
    assert not torch.equal(first[0]["embed.weight"], other[0]["embed.weight"])


@pytest.mark.parametrize("answer", [
    None, {}, {"weights": []}, {"weights": [{}]}, {"weights": [{}, {}]}, {"weights": [1, 2]},
    {"weights": [{"embed.weight": torch.zeros(18, 16)}] * 2}, {"weights": [{"embed.weight": 3}] * 2},
    {"weights": [{"embed.weight": torch.zeros(18, 99)}] * 2}, {"weights": "all of them"},
])
def test_forged_weights_are_refused(answer):
    with pytest.raises(ValueError): read_models(entry(), answer)


def test_weights_that_fit_are_models():
    state = Decoder(trusted_config(entry()).model, 7).state_dict()
    models = read_models(entry(), {"weights": [state, state]})
    assert torch.equal(models[1].state_dict()["head.weight"], state["head.weight"])


@pytest.mark.parametrize("answer", [
    None, [], [torch.zeros(4, 3)] * 2, [torch.zeros(3, 3, dtype=torch.uint8)] * 2,
    [torch.zeros(4, 0, dtype=torch.uint8)] * 2,
    [torch.full((4, 2), 18, dtype=torch.uint8)] * 2,
])
def test_forged_problems_are_refused(answer):
    with pytest.raises(ValueError): read_block(answer, 4, 18)


def test_the_level_ends_at_the_first_hole(monkeypatch):
    """Accuracies stand in for measurements: 1, just enough, too low, 1."""
    shares = iter((1.0, ENOUGH, ENOUGH - 0.01, 1.0))

    class Engine:
        def matches(self, model, prompts, answers): return torch.tensor([next(shares)], dtype=torch.float64), None
    monkeypatch.setattr(project, "engine_for", lambda model: Engine())
    level, accuracy = hardest_level([None], lambda level: draw_problems(Copy(), level, Stream(0, "x"), 1)[1])
    assert level == 2 and list(accuracy) == ["1", "2", "3"]


def test_an_entry_is_run_again_and_measured_on_fresh_problems():
    done = rerun(entry(), seed=1, minutes=SHORT, n=40)
    assert done.trouble == "" and done.rounds == 2 and done.level == 0 and set(done.accuracy) == {"1"}
    # the parent measures: it gets what the same weights give here
    found = run_entry("copy", "smoke", entry().seeds, 60.0)
    models = read_models(entry(), found)
    block = project.fresh_problems(Copy(), 1, 1, 40)
    engine = project.engine_for(models[0])
    right = [float(engine.matches(model, block.prompt, block.answer)[0].double().mean()) for model in models]
    assert done.accuracy["1"] == sum(right) / 2


def test_a_climb_beyond_the_labels_is_seen():
    settings = {"high": 5, "train.steps": 1000, "loop.members": 1, "loop.rounds": 2, "loop.steps": 60,
                "loop.problems": 300, "loop.filter": "none"}
    done = rerun(entry(scale="tiny", settings=settings), seed=1, minutes=1, n=200)
    assert done.rounds == 2 and done.level > settings["high"], done


def test_a_plugin_that_takes_the_place_of_the_climb_stops_nobody():
    """What it makes up is refused or measured, and its time is the parent's."""
    forged = "from self_improve.project import run_entry as real\n"
    forged += "def run_entry(*more): return real(*more) | {change}"
    done = rerun(entry(forged.format(change="{'rounds': None}")), 1, SHORT, n=20)
    assert "how many rounds" in done.trouble
    done = rerun(entry(forged.format(change="{'seconds': -1}")), 1, SHORT, n=20)
    assert done.trouble == "" and done.rounds == 2 and done.seconds > 0


def test_models_of_another_vocabulary_do_not_stop_the_board():
    small = Decoder(replace(trusted_config(entry()).model, vocab=4), 0).state_dict()
    with pytest.raises(ValueError, match="not those of its models"): read_models(entry(), {"weights": [small, small]})


@pytest.mark.parametrize("most, minutes, sentence", [
    (1, 0.0, "--minutes 0 must"), (1, float("nan"), "--minutes nan"), (1, float("inf"), "--minutes inf"),
    (-1, 1.0, "--verify -1 must")])
def test_mistakes_of_the_instructor_are_not_written_down(tmp_path, most, minutes, sentence):
    write(tmp_path, "ada")
    with pytest.raises(ValueError, match=sentence): verify(tmp_path, 1, most, minutes)
    assert not (tmp_path / "verified").exists()


def test_a_machine_that_starts_no_process_is_not_the_entrys_fault(tmp_path, monkeypatch):
    write(tmp_path, "ada")
    def lost(self, do, seconds, **arguments): raise ChildLost("its process ended")
    monkeypatch.setattr(project.Child, "ask", lost)
    with pytest.raises(ValueError, match="no entry can be run again: its process ended"): verify(tmp_path, 1)
    assert not (tmp_path / "verified").exists()


def test_a_task_and_a_filter_of_its_own_run_in_the_child_alone():
    both = MIRROR + FILTER.format(body="return keep_where(candidates, candidates.ended)")
    done = rerun(entry(both, experiment="test_mirror", settings={"loop.filter": "mine"}), 1, SHORT, n=20)
    assert done.trouble == "" and done.rounds == 2
    assert "test_mirror" not in project.EXPERIMENTS
    with pytest.raises(ValueError): project.make_task("test_mirror")


@pytest.mark.parametrize("body, why", [
    ("\n        while True: pass", "longer|ended"), ("import os; os._exit(0)", "ended"),
    ("open('/etc/passwd').read()", "Permission"), ("return candidates.truth", "AttributeError"),
])
def test_an_entry_that_misbehaves_is_a_sentence(body, why):
    done = rerun(entry(FILTER.format(body=body), settings={"loop.filter": "mine"}), 1, 0.01, n=20)
    assert done.level == 0 and re.search(why, done.trouble), done.trouble


def test_a_plugin_that_does_not_load_is_a_sentence():
    assert "SyntaxError" in rerun(entry("def broken(:"), 1, SHORT, n=20).trouble


# the board

def verified(folder, name, **changed):
    """Write a result as `verify` does."""
    found = read_entry(folder / name)
    text = json.dumps({"of": asdict(found), "verified": asdict(Verified(name, **changed))})
    (folder / VERIFIED).mkdir(exist_ok=True)
    (folder / VERIFIED / f"{name}.json").write_text(text)


def places(text):
    """The names on a board, from the first place on."""
    return [line.split(" | ")[1] for line in text.split("\n") if re.match(r"\| (\d|–)", line)]


def test_what_was_measured_is_above_what_is_claimed(tmp_path):
    for name, claim in (("boaster", 90), ("slow", 20), ("fast", 20), ("best", 15)): write(tmp_path, name, claim=claim)
    verified(tmp_path, "slow", level=20, seconds=900.0)
    verified(tmp_path, "fast", level=20, seconds=300.0)
    verified(tmp_path, "best", level=30, seconds=1100.0)
    assert places(board_text(tmp_path)) == ["best", "fast", "slow", "boaster"]


def test_own_tasks_are_not_ranked_and_refused_entries_are_named(tmp_path):
    write(tmp_path, "copyist")
    write(tmp_path, "mirror", plugin=MIRROR, experiment="test_mirror", claim=99)
    write(tmp_path, "peeker", settings={"high": 50})
    text = board_text(tmp_path)
    assert places(text) == ["copyist", "mirror"] and text.index("not ranked") < text.index("| – | mirror")
    assert "peeker was refused: high=50" in text


def test_students_text_makes_no_table_and_no_link(tmp_path):
    write(tmp_path, "ada", title="a | b <script> [x](http://x) `c`\n| 1 | z")
    row = next(line for line in board_text(tmp_path).split("\n") if line.startswith("| 1"))
    assert row.count("|") == 10 and not any(sign in row for sign in "<>[]`")


def test_verifying_goes_on_and_a_changed_entry_loses_its_result(tmp_path):
    for name, claim in (("low", 1), ("high", 9)): write(tmp_path, name, claim=claim)
    assert [done.entry for done in verify(tmp_path, 1, 1, SHORT, 20)] == ["high"]
    assert [done.entry for done in verify(tmp_path, 1, 1, SHORT, 20)] == ["low"]
    assert verify(tmp_path, 1, 1, SHORT, 20) == []
    found = read_entry(tmp_path / "high")
    assert read_verified(tmp_path, found).level == 0
    assert read_verified(tmp_path, replace(found, data_seed=1)) is None


def test_entries_of_a_folder_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="no folder"): read_entries(tmp_path / "missing")


def test_the_command_prints_the_board(tmp_path, capsys):
    write(tmp_path, "ada")
    assert main(["course", "board", str(tmp_path)]) == 0
    assert "| 1 | ada | smoke | copy |" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    assert main(["course", "board", str(tmp_path / "missing")]) == 2
    assert "no folder" in capsys.readouterr().err
