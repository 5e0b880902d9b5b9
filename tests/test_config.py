"""Configurations: what makes two runs the same, how settings are changed, and what is refused."""
import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pytest

from self_improve import config as config_module
from self_improve.arithmetic import Multiplication
from self_improve.config import (
    NOT_HASHED,
    SCHEMA,
    Config,
    LoopConfig,
    base_identity,
    configure,
    flatten,
    identity,
    set_options,
    setting_comments,
    to_config,
)
from self_improve.filter import Chain, Length, Vote
from self_improve.mazes import MazeHops, MazeNodes
from self_improve.model import Decoder, ModelConfig
from self_improve.optimizers import LRSchedule, TrainConfig
from self_improve.schedule import Pairs, Steps
from self_improve.streams import Stream
from self_improve.tasks import TASKS, Copy, register
from self_improve.train import Mixture, Trainer

# mazes have more tokens than the default model
MAZE_SIZED = ModelConfig(vocab=200)
DATA = Path(__file__).parents[1] / "data" / "runs"

# As run folders hold them. A changed default changes the second hash, and the meaning of every folder: a new schema.
WHOLE = """{"task": "copy", "options": {}, "low": 1, "high": 3, "size": 5000000, "weight": 0.0, "cap": "generous",
"model": {"layers": 1, "heads": 2, "width": 16, "ffn": 16, "vocab": 18, "positions": "nope", "context": 1024,
"theta": 10000.0, "std": 0.02, "eps": 1e-06}, "train": {"steps": 8, "lr": 0.002, "warmup": 0.1, "decay": 0.2,
"tail": 0.0, "batch": 8, "optimiser": "adamw", "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-08, "weight_decay": 0.01,
"clip": 1.0, "fresh": true, "rounded": false}, "loop": {"rounds": 2, "steps": 4, "lr": 0.001, "warmup": 0.1,
"decay": 0.5, "tail": 0.0, "problems": 32, "filter": "none", "members": 2, "shared": false, "schedule": "steps:1",
"newest": 0.5, "evaluate": 16, "final": 16, "ahead": 5}, "model_seed": 0, "data_seed": 0}"""
PARTIAL = """{"task": "reverse", "low": 2, "high": 7, "model": {"layers": 2, "width": 96, "positions": "rope"},
"train": {"steps": 77, "lr": 0.0033, "optimiser": "muon"}, "loop": {"filter": "length:1+vote:2/3", "members": 3,
"steps": 33, "rounds": 5}, "model_seed": 3, "data_seed": 4}"""
STORED = [
    ("{}", "ede0de807492408040925c13f91e20c5a5152f167d2e5fc064c61aa4b71f7267"),
    (WHOLE, "8a99ff3a366ef61b70e8db5160b9a6bc9562ea589840a1c1e0efd9353568a6f1"),
    (PARTIAL, "d47f6bbbc83f21879b63023d1120fc4cd3e0ebe73eeaa57e510ca760d06f66a0"),
]

# the recorded runs, folder → identity: these never change
RECORDED = {
    "copy-tiny-0a05d1d2":
        "0a05d1d2a6f5ed3875cc9fe31f5d8920f0c7c5ee8cacfeb2a381d2c594b63191",
    "copy-tiny-d45b18ad":
        "d45b18adb4695110a4f284357bf01acbd6637ef76c86ae9db6c11b04c706049a",
    "copy-tiny-e32152a5":
        "e32152a5a0e122744af7e5d19d77f28ee6efabd5e3a3c49e08caa0e364a5ca3d",
    "copy-tiny-fb6e7714":
        "fb6e7714a3590dfdde389e0a00d0606defcedd5b3f4996f07a41c7c2e4d5916d",
    "forward_addition-tiny-827806d4":
        "827806d4c35b3575faf0b534c8af12de1bd94ee3024c3814134c2ae983d2357a",
    "maze_hops-tiny-9313d76f":
        "9313d76fb48fd943636e155dbffc7dd8999c08741319674fc64f757d6b0b8339",
    "maze_hops-tiny-bad40cdf":
        "bad40cdf2b22d20550faa9e75de2da71a5d82707275c2dd439bf6fba0c8ef5ee",
    "maze_hops-tiny-d8615ee8":
        "d8615ee8dadb3db826833e0380c71e31dd408a27cc2f5d03cc5fab4b47e224e7",
    "maze_nodes-tiny-832e72ed":
        "832e72ed3fe878900d657234a6d3c5e0b1829c03bc3ffa544853c28c3ea5aed8",
    "maze_nodes-tiny-89adb280":
        "89adb280d5a7eb3c32f2b61811b678529dc1a3dcc5e60f12f424a34598c26463",
    "maze_nodes-tiny-c6073538":
        "c60735381062a7760bd5bfc025e6e8a4d6a8822459942ad5797d39f1f1f96d3a",
    "multiplication-tiny-1f7972fb":
        "1f7972fb0737ebc89f09e4fb478e3f81ddaa146b10688de0b5269b558e9f49fa",
    "multiplication-tiny-445bbd1d":
        "445bbd1d9cc3ccc609762e7f604796baea44500ba2f956bd6574d51d6e163974",
    "multiplication-tiny-d1365b4d":
        "d1365b4d434626ac80f60baf36daafc2db636943aa3bd91e2921cf0799534008",
    "reverse-tiny-0e8d8238":
        "0e8d823821163c29bb6af9c0449ab201c1b3716a5f0a61569422feead7594df0",
    "reverse-tiny-75b5a11b":
        "75b5a11b050fd65228993309565a979803fc305b9539f3856c31a9933cfa3295",
    "reverse-tiny-90449939":
        "90449939829c9ab6d2376d5918b484f26dbfd4ebab3e57ab418adda6bcb22283",
    "reverse_addition-tiny-6c719e2b":
        "6c719e2b26a9fbb6f6ae37cf4c30a119c62b6c78834e1191085fb3aded85b68e",
    "reverse_addition-tiny-aee76133":
        "aee76133fb3a85746e638790d032ccd7b1d136d488e549c064bd5a2aec34e64e",
    "reverse_addition-tiny-fbf3a1ad":
        "fbf3a1adc4c8aac8999fdeafd70b6ffcb33a18eac59f7281937d52bad95b705e",
}


# identity

@pytest.mark.parametrize("text, name", STORED, ids=["defaults", "whole", "partial"])
def test_stored_configurations_keep_their_names(text, name):
    config = to_config(json.loads(text))
    assert identity(config) == name
    assert identity(to_config(json.loads(json.dumps(asdict(config))))) == name, "through a file and back"


@pytest.mark.parametrize("folder", sorted(RECORDED))
def test_recorded_runs_keep_their_names(folder):
    stored = json.loads((DATA / folder / "config.json").read_text())
    assert stored["identity"] == RECORDED[folder] == identity(to_config(stored["config"]))


def test_the_index_names_the_recorded_runs():
    index = json.loads((DATA / "index.json").read_text())["runs"]
    named = {entry["folder"]: entry["identity"] for entry in index}
    assert RECORDED.items() <= named.items()
    for folder, name in named.items():
        assert identity(to_config(json.loads((DATA / folder / "config.json").read_text())["config"])) == name


def test_fields_at_their_default_are_not_part_of_a_name():
    changed = [SCHEMA, {"loop.steps": 7, "task": "reverse"}]
    expected = hashlib.sha256(json.dumps(changed, separators=(",", ":")).encode()).hexdigest()
    assert identity(Config(task="reverse", loop=LoopConfig(steps=7))) == expected


def test_a_field_added_later_leaves_old_names_alone(monkeypatch):
    old = identity(Config(high=4))

    @dataclass(frozen=True)
    class Later(Config):
        color: str = "blue"
    monkeypatch.setattr(config_module, "Config", Later)
    assert identity(Later(high=4)) == old != identity(Later(high=4, color="red"))


@pytest.mark.parametrize("key, value", [
    ("task", "reverse"), ("high", 9), ("size", 99), ("weight", 3.0), ("cap", "released"), ("model.width", 32),
    ("model.positions", "alibi"), ("train.steps", 9), ("train.fresh", False), ("loop.filter", "length"),
    ("loop.newest", 0.4), ("loop.shared", True), ("loop.enough", 0.1), ("loop.repeats", 2),
    ("model_seed", 1), ("data_seed", 1), ("tag", "mine"),
])
def test_what_decides_the_outcome_decides_the_name(key, value):
    assert identity(configure(Config(), {key: value})) != identity(Config())


@pytest.mark.parametrize("key", [
    "loop.rounds", "loop.evaluate", "loop.final", "loop.ahead", "loop.stride", "loop.until"])
def test_how_long_and_how_closely_a_run_is_measured_does_not(key):
    assert identity(configure(Config(), {key: 77})) == identity(Config())
    assert key in NOT_HASHED and len(NOT_HASHED) == 7


def test_equal_configurations_have_one_name():
    """A whole number where a real one is meant, as written in code, on the command line or in JSON."""
    for key, value in (("weight", 10), ("train.lr", 1), ("loop.newest", 1), ("train.clip", 2)):
        part, _, name = key.rpartition(".")
        change = {part: replace(getattr(Config(), part), **{name: value})} if part else {name: value}
        as_int, as_text = replace(Config(), **change), configure(Config(), {key: str(value)})
        assert as_int == as_text and identity(as_int) == identity(as_text), key


# the name of the base

@pytest.mark.parametrize("key, value", [
    ("task", "reverse"), ("low", 2), ("high", 9), ("size", 99), ("model.width", 32), ("model.positions", "alibi"),
    ("train.steps", 9), ("train.lr", 0.1), ("train.batch", 7), ("train.rounded", True), ("train.prompts", True),
    ("train.optimiser", "muon"), ("model_seed", 1), ("data_seed", 1),
])
def test_what_the_base_is_trained_on_decides_its_name(key, value):
    assert base_identity(configure(Config(), {key: value})) != base_identity(Config())


def test_options_of_the_task_decide_the_base():
    config = Config(task="maze_hops", high=5, model=MAZE_SIZED)
    assert base_identity(config) != base_identity(configure(config, {"options.nodes": "12"}))


@pytest.mark.parametrize("changes", [
    {"weight": 3.0}, {"cap": "released"}, {"tag": "mine"}, {"train.fresh": False}, {"loop.rounds": 3},
    {"loop.members": 3, "loop.filter": "vote:2/3"}, {"loop.schedule": "steps:2"}, {"loop.newest": 0.2},
    {"loop.lr": 0.5, "loop.steps": 9}, {"loop.shared": True}, {"loop.problems": 5, "loop.each": True},
])
def test_what_comes_after_base_training_does_not(changes):
    assert base_identity(configure(Config(), changes)) == base_identity(Config()) != identity(Config())


def base_weights(config, member):
    """The weights of a member after base training, from the parts that the loop puts together."""
    model = Decoder(config.model, Stream(config.model_seed, "init", member).key)
    levels = config.parsed_task.levels(config.low, config.high)
    stream = Stream(config.data_seed, "base", member)
    mixture = Mixture(config.parsed_task, levels, stream, config.size, (), (), config.weight or len(levels),
                      config.loop.newest)
    for _ in Trainer(model, config.train).train_steps(mixture, config.lr_schedule(0), 0): pass
    return [p.tolist() for p in model.state_dict().values()]


@pytest.mark.parametrize("changes", [
    {"weight": 3.0}, {"train.fresh": False}, {"loop.members": 2}, {"loop.newest": 0.2, "loop.schedule": "steps:2"},
    {"high": 4}, {"size": 9}, {"train.clip": 0.1}, {"data_seed": 1},
], ids=str)
def test_bases_of_one_name_have_the_same_weights(tiny, changes):
    config, changed = tiny(), configure(tiny(), changes)
    same = base_weights(config, 1) == base_weights(changed, 1)
    assert same == (base_identity(config) == base_identity(changed))


# parsed once

def test_text_is_parsed_when_a_configuration_is_made(monkeypatch):
    config = Config(task="maze_hops", options={"nodes": 12}, high=5, model=MAZE_SIZED,
                    loop=LoopConfig(filter="length:1+vote:2/3", members=3, schedule="steps:2"))
    assert config.parsed_task == MazeHops(nodes=12) and config.loop.parsed_schedule == Steps(2)
    assert config.loop.parsed_filter == Chain((Length(1), Vote(2, 3)))
    changed = configure(config, {"loop.schedule": "steps:3", "options.nodes": "20"})
    assert changed.loop.parsed_schedule == Steps(3) and changed.parsed_task == MazeHops(nodes=20)
    assert not {"parsed_task", "parsed_filter", "parsed_schedule"} & set(flatten(config))
    assert "parsed_filter" not in json.dumps(asdict(config)) and config == to_config(asdict(config))


def test_all_tasks_are_registered_behind_this_module():
    assert set(TASKS) >= {"copy", "reverse", "reverse_addition", "forward_addition", "multiplication",
                          "maze_hops", "maze_nodes"}


def test_a_task_of_ones_own_has_configurations(monkeypatch):
    monkeypatch.setattr("self_improve.tasks.TASKS", dict(TASKS))

    @register
    class Twice(Copy):
        name = "twice"
    config = Config(task="twice")
    assert isinstance(config.parsed_task, Twice) and identity(config) != identity(Config())


def test_learning_rates_of_base_and_rounds(tiny):
    config = tiny(train=dict(tail=0.25), loop=dict(lr=0.5))
    assert config.lr_schedule(0) == LRSchedule(5, 2e-3, 0.1, 0.2, 0.25)
    assert config.lr_schedule(1) == config.lr_schedule(5) == LRSchedule(3, 0.5, 0.1, 0.5, 0.0)


def test_options_at_their_default_are_dropped():
    usual = MazeHops().nodes
    plain = Config(task="maze_hops", model=MAZE_SIZED)
    assert replace(plain, options={"nodes": usual}) == plain and plain.options == {}
    assert replace(plain, options={"nodes": 12}).options == {"nodes": 12}


# refused

@pytest.mark.parametrize("fields, message", [
    (dict(loop=LoopConfig(filter="vote")), "at least 2 models, there is 1"),
    (dict(loop=LoopConfig(filter="length+vote:2/3", members=2)), "needs 3 models, there are 2: set loop.members=3"),
    (dict(loop=LoopConfig(filter="verifier")), "copy has no verifier"),
    (dict(low=5, high=3), "low=5 and high=3 are no range"),
    (dict(task="sorting"), "unknown task 'sorting'"),
    (dict(loop=LoopConfig(schedule="pairs")), "loop.schedule='pairs' is not for copy: its levels are numbers"),
    (dict(task="multiplication", high=5), "'steps:1' is not for multiplication: its levels are pairs: use pairs"),
    (dict(task="maze_hops", high=5, loop=LoopConfig(filter="verifier:speed")), "unknown check 'speed'"),
    (dict(task="maze_hops", model=ModelConfig(vocab=18)), "model.vocab=18 is too small: maze_hops has"),
])
def test_what_does_not_fit_together_is_refused(fields, message):
    if fields.get("task") == "maze_hops" and "model" not in fields: fields["model"] = MAZE_SIZED
    with pytest.raises(ValueError, match=message) as e: Config(**fields)
    assert "\n" not in str(e.value)


def test_pairs_fit_multiplication():
    config = Config(task="multiplication", high=5, loop=LoopConfig(schedule="pairs"))
    assert config.parsed_task == Multiplication() and config.loop.parsed_schedule == Pairs()


# changing a configuration

def test_configure():
    config = configure(Config(), {"loop.rounds": "3", "train.lr": "1e-4", "train.fresh": "false",
                                  "loop.filter": "length:1", "weight": "2", "high": 4})
    assert (config.loop.rounds, config.train.lr, config.train.fresh) == (3, 1e-4, False)
    assert (config.loop.filter, config.weight, config.high) == ("length:1", 2.0, 4)
    assert flatten(config)["loop.rounds"] == 3 and configure(Config(), {}) == Config()
    # neither would do alone
    assert configure(Config(), {"model.width": "9", "model.heads": "3"}).model.heads == 3


def test_another_task_starts_from_its_own_options():
    hops = Config(task="maze_hops", options={"nodes": 12}, high=5, model=MAZE_SIZED)
    assert configure(hops, {"high": "6"}).options == {"nodes": 12}
    nodes = configure(hops, {"task": "maze_nodes", "low": "15", "high": "20"})
    assert nodes.options == {} and nodes.parsed_task == MazeNodes()


@pytest.mark.parametrize("key, near", [
    ("loop.round", "loop.rounds"), ("steps", "steps"), ("train.learning_rate", "train"), ("loop", ""), ("", ""),
    ("nonsense", "loop.rounds"),
])
def test_unknown_keys_are_refused(key, near):
    with pytest.raises(ValueError, match=f"unknown key '{key}'.*{near}"): configure(Config(), {key: "1"})


@pytest.mark.parametrize("key, value", [
    ("loop.rounds", "x"), ("loop.rounds", "1.5"), ("loop.rounds", 1.5), ("loop.rounds", ""), ("loop.rounds", "-1"),
    ("loop.rounds", True), ("loop.steps", "-1"), ("loop.problems", "0"), ("loop.members", "0"), ("loop.stride", "0"),
    ("loop.evaluate", "0"), ("loop.final", "0"), ("loop.ahead", "-1"), ("loop.newest", "0"), ("loop.newest", "1.5"),
    ("loop.newest", "nan"), ("loop.filter", "lenght"), ("loop.filter", "vote"), ("loop.filter", "vote:2/3"),
    ("loop.filter", "verifier"), ("loop.schedule", "leaps:2"), ("loop.schedule", "steps:0"),
    ("loop.schedule", "steps:-1"), ("loop.lr", "nan"), ("loop.lr", "inf"), ("train.lr", "nan"), ("train.lr", "inf"),
    ("train.lr", "0"), ("train.lr", "fast"), ("train.batch", "0"), ("train.fresh", "maybe"),
    ("train.optimiser", "sgd"), ("train.steps", "-1"), ("train.beta1", "2"), ("model.heads", "3"),
    ("model.layers", "0"), ("model.vocab", "5"), ("model.positions", "none"), ("model.std", "-1"), ("low", "0"),
    ("low", "11"), ("high", "0"), ("size", "0"), ("weight", "-1"), ("weight", "nan"), ("cap", "huge"),
    ("task", "cpy"), ("options", "x"),
], ids=str)
def test_impossible_values_are_refused_by_name(key, value):
    """Here, where nothing has been written yet; the sentence holds the value."""
    with pytest.raises(ValueError) as e: configure(Config(), {key: value})
    message = str(e.value)
    assert str(value) in message or key == "loop.filter" and "vote" in message or value == "verifier"
    assert "\n" not in message


@pytest.mark.parametrize("key, value, message", [
    ("loop.rounds", "x", "loop.rounds=x is not a whole number"), ("train.lr", "fast", "train.lr=fast is not a number"),
    ("train.fresh", "maybe", "train.fresh=maybe is not true or false"), ("options", "x", "options=x is not a dict"),
])
def test_a_value_of_the_wrong_kind_is_named(key, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"): configure(Config(), {key: value})


def test_options_are_set_by_name():
    assert set_options(MazeHops(), {"nodes": "40"}) == vars(MazeHops()) | {"nodes": 40}
    assert set_options(MazeHops(), {}) == vars(MazeHops())
    with pytest.raises(ValueError, match="maze_hops has no option 'node': did you mean nodes?"):
        set_options(MazeHops(), {"node": "40"})
    with pytest.raises(ValueError, match="copy has no option 'nodes': it has none"): set_options(Copy(), {"nodes": 1})
    with pytest.raises(ValueError, match="nodes=many is not a whole number"): set_options(MazeHops(), {"nodes": "many"})


@pytest.mark.parametrize("data", [{"color": 1}, {"loop": {"color": 1}}, {"train": {"steps": -1}}, {"task": "cpy"}])
def test_json_that_is_no_configuration_is_refused(data):
    with pytest.raises(ValueError): to_config(data)


# what settings mean

def test_every_setting_has_its_default_and_a_comment():
    table = setting_comments()
    # of the options each has a line of its own; copy has none
    usual = {key: value for key, value in flatten(Config()).items() if key != "options"}
    assert {key: default for key, (default, _) in table.items()} == usual and list(table) == list(usual)
    assert setting_comments(Config(task="maze_hops", high=9, model=ModelConfig(vocab=108)))["options.nodes"][0] == 30
    for key, (_, comment) in table.items():
        assert len(comment) > 5 and "#" not in comment and "\n" not in comment, key
    assert len({comment for _, comment in table.values()}) >= len(table) - 2, "comments are told apart"


def test_comments_stand_above_the_fields():
    for kind in (Config, LoopConfig):
        lines = Path(config_module.__file__).read_text().splitlines()
        for f in fields(kind):
            place = next(i for i, line in enumerate(lines) if line.startswith(f"    {f.name}: "))
            if f.name not in ("model", "train", "loop"): assert lines[place - 1].startswith("    # "), f.name
            assert "#" not in lines[place]
    assert setting_comments()["loop.newest"] == (0.5, "share of a batch that comes from the newest labels (§3)")


def test_settings_of_training_are_those_of_the_dataclass():
    assert {k.partition(".")[2] for k in setting_comments() if k.startswith("train.")} == {
        f.name for f in fields(TrainConfig)}
