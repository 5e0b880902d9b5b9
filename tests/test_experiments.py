"""Experiments: every identity as stored, the paper's table to the letter, every task through a smoke run."""
import sys
import types
from dataclasses import replace

import pytest

from self_improve.cli import main
from self_improve.config import configure, identity
from self_improve.experiments import (
    EXPERIMENTS,
    SCALES,
    Experiment,
    experiment,
    register_experiment,
    smoke,
)
from self_improve.loop import SelfImprovement, frontier_of, plan, state_of
from self_improve.model import parameter_count
from self_improve.paper import lr_phase, make_config
from self_improve.records import Run
from self_improve.schedule import ACCELERATED_PAIRS, Pairs, State, Steps, parse_schedule
from self_improve.tables import catalogue
from self_improve.tasks import TASKS, Copy, make_task
from self_improve.train import Mixture

every_experiment = pytest.mark.parametrize("name", list(EXPERIMENTS))


@pytest.fixture
def own_names():
    """What a test registers is gone afterwards."""
    registries = (TASKS, EXPERIMENTS)
    before = [dict(registry) for registry in registries]
    yield
    for registry, names in zip(registries, before, strict=True):
        registry.clear()
        registry.update(names)


# identities, as they have been since the first record; those of scale paper since it is the released code to the letter

IDENTITIES = {
    "reverse_addition": {
        "smoke": "609a515239609e0c2823cd52b8a4da205c5e035a4f59bd06500eb9f12697fd05",
        "tiny": "6c719e2b26a9fbb6f6ae37cf4c30a119c62b6c78834e1191085fb3aded85b68e",
        "gpu": "de1d38c4854199f4a6c02eed5cedbbc90c91c88512c5b0c3608e1113191c9fd4",
        "paper": "4e1bc7c2f0fa23850438d63382f4e31bf2a72446f0b1e26f943647215cb11353",
        "laptop": "a6deb2ede74570aeca2cf1cc264a35b96b890e4a97cfc2278611331d92f54457",
    },
    "forward_addition": {
        "smoke": "caf6048d003a132d82ab5f12fd23f44f31c5e498725c47f99521fd556d5e8644",
        "tiny": "827806d4c35b3575faf0b534c8af12de1bd94ee3024c3814134c2ae983d2357a",
        "gpu": "a1b27fccb856059ebcf8d809c19458e75094011cf7db66359a9183297c4ca751",
        "paper": "0f3140f3dab02f931437be693fd53cd88e8ce06704e7bc05fcda936b7ceff277",
        "laptop": "efbf296f5978d66b28f749b4c83d951eb9c3c0fa4fb4501631d4ceeea369a687",
    },
    "copy": {
        "smoke": "8a99ff3a366ef61b70e8db5160b9a6bc9562ea589840a1c1e0efd9353568a6f1",
        "tiny": "fb6e7714a3590dfdde389e0a00d0606defcedd5b3f4996f07a41c7c2e4d5916d",
        "gpu": "387970a110f8d8a301751d622c1bc0977c73de0136d1583a36265f1b698b34e1",
        "paper": "f28fb878a618833bedccb3a2b4fcc90a5efbe53ca2996a81f0d34855aed004d7",
        "laptop": "ac2e4f590dceed13afaea4d81636ae359b877a3c161c7b06924ff44ab4f2421d",
    },
    "reverse": {
        "smoke": "29f52c4e2c3867f3cf59cc01f6e392ccdb404260187fd4b5bcc6c94c29edec30",
        "tiny": "0e8d823821163c29bb6af9c0449ab201c1b3716a5f0a61569422feead7594df0",
        "gpu": "6565485ee80e2755349777d65faa590c737eeb4ee07b6d624b97955592e1e37b",
        "paper": "dfdc4d35b97b7d02b0f432da4f5269fe26cbca7dcaeeb1a967e5f2f2f52bdb08",
        "laptop": "fc6d692b0edadf89e120280e9dcfa34234326b3c2e29f31084a7c99e64a6adea",
    },
    "multiplication": {
        "smoke": "32f84765f124d7e22303d8229b6cd2a36740717c494121d626d96fda5e7359bc",
        "tiny": "d1365b4d434626ac80f60baf36daafc2db636943aa3bd91e2921cf0799534008",
        "gpu": "56bb5273bd1d33f491a90494f7b307187926a72d56c006f7ea02531dab2b58c2",
        "paper": "9baaf5370d25b8b2dc6310c48b1d4d92b552fece523388e722d673b351621202",
    },
    "maze_hops": {
        "smoke": "f369157a9c615f00a18429a984d6adedf33a4d909d2d57318366c919d40b738f",
        "tiny": "bad40cdf2b22d20550faa9e75de2da71a5d82707275c2dd439bf6fba0c8ef5ee",
        "gpu": "1c5ef8bb334675bddaab595c851c011ad86ed9dbf1b1b6b418984ec2553d9ff8",
        "paper": "d403a8f0a8886769eca74d2aecc43ab7f88b2fc37ea7f980bf8bce7e27891831",
    },
    "maze_nodes": {
        "smoke": "127c867654f0d125932743b22b01203b8d7bb4b52c21c85a3ed3dc93bdbd84e4",
        "tiny": "832e72ed3fe878900d657234a6d3c5e0b1829c03bc3ffa544853c28c3ea5aed8",
        "gpu": "74917fc81705e1e66cbf0d4445355bc7ad84911231782c58f1a4790ee105f4b7",
        "paper": "235c17079c6944621a5e1b3bbe5eb1f4a84e2d8b81ceb46ac2997c887acc2cb4",
    },
}
# rounds, evaluate, final, ahead, stride: they measure, and change no identity
MEASURED = {
    "reverse_addition": [(2, 16, 16, 5, 1), (6, 100, 1000, 5, 1), (85, 500, 1000, 5, 1), (100, 1024, 1024, 5, 1),
        (200, 100, 1000, 3, 10)],
    "forward_addition": [(2, 16, 16, 5, 1), (5, 100, 1000, 5, 1), (60, 500, 1000, 5, 1), (59, 1024, 1024, 10, 1),
        (200, 100, 1000, 3, 1)],
    "copy": [(2, 16, 16, 5, 1), (10, 100, 1000, 5, 1), (100, 500, 1000, 5, 1), (100, 1024, 1024, 11, 1),
        (200, 100, 1000, 3, 10)],
    "reverse": [(2, 16, 16, 5, 1), (10, 100, 1000, 5, 1), (100, 500, 1000, 5, 1), (100, 1024, 1024, 11, 1),
        (200, 100, 1000, 3, 10)],
    "multiplication": [(2, 16, 16, 1, 1), (5, 100, 1000, 1, 1), (18, 500, 1000, 2, 1), (40, 128, 512, 2, 1)],
    "maze_hops": [(2, 16, 16, 5, 1), (3, 100, 1000, 5, 1), (18, 500, 1000, 5, 1), (18, 1024, 1024, 20, 1)],
    "maze_nodes": [(2, 16, 16, 5, 1), (5, 100, 1000, 5, 1), (18, 500, 1000, 5, 3), (18, 1024, 1024, 67, 3)],
}
EVERY_PAIR = [(name, scale) for name, known in EXPERIMENTS.items() for scale in known.scales]
every_configuration = pytest.mark.parametrize("name, scale", EVERY_PAIR)


@every_configuration
def test_identities_are_the_stored_ones(name, scale):
    assert identity(experiment(name, scale)) == IDENTITIES[name][scale]


@every_configuration
def test_measuring_is_the_stored_one(name, scale):
    loop = experiment(name, scale).loop
    measured = (loop.rounds, loop.evaluate, loop.final, loop.ahead, loop.stride)
    assert measured == MEASURED[name][list(IDENTITIES[name]).index(scale)]


def test_all_experiments_are_stored():
    assert {name: set(known.scales) for name, known in EXPERIMENTS.items()} == {
        name: set(known) for name, known in IDENTITIES.items()}
    assert set.union(*map(set, IDENTITIES.values())) == set(SCALES)
    every = [i for scales in IDENTITIES.values() for i in scales.values()]
    assert len(set(every)) == len(every) == 32


# the paper's table, §4.3 of the notes on the paper: base steps (warm-up, constant, cosine, 1 %), base set, peak rate,
# steps and rate of a round, labels a round, base weight, labeled range, rounds

TABLE = {
    "reverse_addition": ((1000, 7000, 2000, 0), 10_000_000, 5e-4, (0, 500, 500, 0), 5e-4, 50_000, 16, (1, 16), 100),
    "forward_addition": ((1000, 7000, 2000, 0), 2_000_000, 5e-4, (0, 2000, 1000, 0), 5e-4, 50_000, 10, (1, 10), 59),
    "copy": ((200, 1300, 500, 0), 5_000_000, 5e-4, (0, 0, 500, 0), 5e-4, 20_000, 10, (1, 10), 100),
    "reverse": ((200, 1300, 500, 0), 5_000_000, 5e-4, (0, 0, 500, 0), 5e-4, 20_000, 10, (1, 10), 100),
    "multiplication": ((1000, 7000, 2000, 0), 5_000_000, 5e-5, (0, 2000, 1000, 0), 5e-5, 50_000, 5, (1, 5), 40),
    "maze_hops": ((2500, 19000, 3500, 0), 5_000_000, 5e-4, (500, 3000, 1000, 500), 2e-4, 50_000, 1, (1, 9), 18),
    "maze_nodes": ((1200, 6000, 2800, 2000), 5_000_000, 5e-4, (400, 1600, 1000, 1000), 2e-4, 50_000, 21, (10, 30), 18),
}


def in_steps(phase):
    shares = [phase.warmup, 1 - phase.warmup - phase.decay - phase.tail, phase.decay, phase.tail]
    assert all(abs(share * phase.steps - round(share * phase.steps)) < 1e-6 for share in shares)
    return tuple(round(share * phase.steps) for share in shares)


@every_experiment
def test_paper_scale_is_the_papers_table(name):
    c = experiment(name, "paper")
    row = (in_steps(c.train), c.size, c.train.lr, in_steps(c.loop), c.loop.lr, c.loop.problems, c.weight,
           (c.low, c.high), c.loop.rounds)
    assert row == TABLE[name]
    adam = (c.train.batch, c.train.beta1, c.train.beta2, c.train.epsilon, c.train.weight_decay, c.train.clip)
    assert adam == (1024, 0.9, 0.98, 1e-12, 0.01, 1.0) and c.train.optimiser == "adamw"
    assert not c.train.fresh and c.cap == "released" and c.loop.newest == 0.5 and not c.loop.shared
    assert c.options == {} and c.model.positions == "nope"
    assert parameter_count(c.model) == (14_268_288 if "maze" in name else 14_239_104)


@pytest.mark.parametrize("name, percents", [
    ("reverse_addition", (50, 32, 12.3)), ("copy", (50, 26.3, 8.5)), ("reverse", (50, 26.3, 8.5)),
    ("forward_addition", (50, 26.3, 8.5)), ("multiplication", (50, 17.9, 4.6)), ("maze_hops", (50, 5, 1)),
    ("maze_nodes", (50, 35, 15))])
def test_base_shares_are_the_papers(name, percents):
    """§4.2: the base set's share of the mixture with 1, 10 and 50 self-made sets."""
    c, rows = experiment(name, "paper"), range(1)
    newest = [(1, 6), (6, 1)] if name == "multiplication" else [31, 32, 33]
    weight = parse_schedule(c.loop.schedule).weight(newest)
    for sets, share in zip((1, 10, 50), percents, strict=True):
        mixture = Mixture(None, [], None, 1, (rows,) * sets, (weight,) * sets, c.weight)
        assert mixture.shares()[0] * 100 == pytest.approx(share, abs=0.5)


def small_loop(config):
    """A loop of the smallest models: where a schedule goes does not depend on them."""
    model = replace(experiment("copy", "smoke").model, vocab=config.model.vocab)
    return SelfImprovement(replace(config, model=model))


def walk(name, **changes):
    """What the schedule of scale `paper` would know after every round, if each keeps something."""
    paper = experiment(name, "paper")
    small = replace(experiment(name, "smoke"), low=paper.low, high=paper.high, options={})
    usual = {"loop.schedule": paper.loop.schedule, "loop.rounds": paper.loop.rounds}
    loop = SelfImprovement(configure(small, usual | changes))
    task = loop.ensemble.task
    trained, states = frozenset(task.levels(paper.low, paper.high)), []
    for r, levels in enumerate(plan(loop.ensemble)):
        if r: trained |= set(levels)
        states.append(State(frontier_of(task, loop.config, trained), r, trained))
    return states


def test_where_the_papers_schedules_end():
    ends = [walk(name)[-1].frontier for name in ("reverse_addition", "maze_hops", "maze_nodes")]
    assert ends == [116, 27, 84]
    square = walk("multiplication")
    # the round that labels N × N; the paper trains on it in the next
    first = [next(s.round for s in square if s.frontier == n) for n in (6, 7, 8, 9, 10)]
    assert first == [6, 13, 21, 30, 40]
    fast = walk("multiplication", **{"loop.schedule": "pairs:fast", "loop.rounds": 18})[-1]
    assert fast.frontier == 10 and len(fast.trained) == 100


def test_the_accelerated_list_is_the_papers():
    groups = parse_schedule("pairs:fast").groups
    assert len(groups) == 18 == ACCELERATED_PAIRS.count(";") + 1
    assert groups[0] == ((1, 6), (6, 1)) and groups[5] == ((2, 7), (3, 7), (4, 7), (7, 2), (7, 3), (7, 4))
    assert len(groups[12]) == 10 and len(groups[15]) == 12 and groups[17] == ((10, 10),)
    square = {(a, b) for a in range(1, 11) for b in range(1, 11)}
    taught = {(a, b) for a in range(1, 6) for b in range(1, 6)}
    assert {pair for group in groups for pair in group} == square - taught


@every_experiment
def test_every_task_runs_stops_and_goes_on(name, tmp_path):
    config = experiment(name, "smoke")
    whole = list(SelfImprovement(config, Run.create(tmp_path / "whole", config, name, "smoke")))
    halves = iter(SelfImprovement(config, Run.create(tmp_path / "halves", config, name, "smoke")))
    next(halves)
    next(halves)
    halves.close()
    list(SelfImprovement(config, Run.create(tmp_path / "halves", config, name, "smoke")))
    a, b = Run(tmp_path / "whole"), Run(tmp_path / "halves")
    same = [(r.levels, r.loss, r.accuracy, r.filter) for r in a.rounds]
    assert len(same) == 3 and same == [(r.levels, r.loss, r.accuracy, r.filter) for r in b.rounds]
    assert [r.levels for r in whole] == [r.levels for r in a.rounds], "pairs come back as pairs"
    assert main(["show", str(tmp_path / "whole")]) == 0
    assert (tmp_path / "whole" / "accuracy.png").stat().st_size > 5000


@every_configuration
def test_every_configuration_can_reach_its_last_round(name, scale):
    c = experiment(name, scale)
    loop = small_loop(replace(c, loop=replace(c.loop, members=1, filter="none")))
    levels = plan(loop.ensemble)
    assert len(levels) == c.loop.rounds + 1 or levels[-1] == [c.loop.until]
    assert EXPERIMENTS[name].section.startswith("§")
    assert configure(c, {}) == c


def test_levels_that_run_out_are_told_before_anything_is_written(capsys, tmp_path):
    words = ["run", "maze_hops", "--scale", "smoke", "--set", "loop.rounds=5", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "loop.rounds=5 are too many: after round 4" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("task, setting, said", [
    ("copy", "loop.schedule=pairs", "numbers: use steps"),
    ("multiplication", "loop.schedule=steps:1", "pairs: use pairs"),
    ("copy", "loop.schedule=pairs:1,6;x", "schedule 'pairs:1,6;x'"),
    ("copy", "loop.schedule=accelerated-by-truth:1.5", "1.5"),
    ("maze_hops", "options.nodes=100", "100"),
    ("maze_hops", "options.hops=3", "options.hops"),
    ("maze_hops", "high=8", "level 8"),
    ("maze_nodes", "low=1", "level 1"),
    ("copy", "loop.filter=verifier", "no verifier"),
    ("maze_hops", "loop.filter=verifier:speed", "speed")])
def test_what_does_not_fit_a_task_is_refused(capsys, task, setting, said, tmp_path):
    assert main(["run", task, "--scale", "smoke", "--out", str(tmp_path / "run"), "--set", setting]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_schedule_without_truth_in_its_name_never_probes():
    def probe(level): raise AssertionError("nobody may look")
    square = frozenset((a, b) for a in range(1, 6) for b in range(1, 6))
    for schedule in (Steps(), Steps(3), Pairs(), parse_schedule("pairs:fast")):
        assert schedule.next(State(5, 1, square, probe))


def test_frontier_of_pairs_is_the_largest_square():
    task, c = make_task("multiplication"), experiment("multiplication", "smoke")
    square = set(task.levels(1, 2))
    assert frontier_of(task, c, frozenset(square | {(1, 3), (3, 1), (3, 3)})) == 2
    assert frontier_of(task, c, frozenset(square | {(1, 3), (3, 1), (2, 3), (3, 2), (3, 3)})) == 3


def test_a_group_of_which_nothing_was_kept_comes_again():
    # a model that has learned nothing is never right
    config = configure(experiment("multiplication", "smoke"), {"loop.filter": "oracle"})
    rounds = list(SelfImprovement(config))
    assert [r.levels for r in rounds[1:]] == [[(1, 3), (3, 1)]] * 2
    assert state_of(make_task("multiplication"), config, rounds).frontier == 2


def test_so_many_problems_for_each_level():
    made = []
    for each in ("false", "true"):
        config = configure(experiment("maze_nodes", "smoke"), {"loop.each": each, "loop.rounds": "1"})
        made.append(list(SelfImprovement(config))[1].filter[0]["made"])
    assert made == [32, 64], "two levels a round"


def test_options_that_are_the_default_change_no_name():
    c = experiment("maze_hops", "paper")
    assert identity(configure(c, {"options.nodes": "30"})) == identity(c)
    assert identity(configure(c, {"options.nodes": "40"})) != identity(c)
    assert configure(c, {"options.nodes": "40"}).options == {"nodes": 40}


# how configurations are written down

def test_a_phase_is_counted_in_steps():
    assert lr_phase("train", 1000, 7000, 2000) == {
        "train.steps": 10_000, "train.warmup": 0.1, "train.decay": 0.2, "train.tail": 0.0}


def test_settings_are_dotted_keys():
    config = make_config("maze_hops", {"high": 4, "options.nodes": 8, "model.vocab": 108, "loop.rounds": 1})
    assert (config.high, config.options, config.model.vocab, config.loop.rounds) == (4, {"nodes": 8}, 108, 1)
    assert config == configure(make_config("maze_hops", {"high": 4, "options.nodes": 8, "model.vocab": 108}),
                               {"loop.rounds": 1})


# experiments and tasks of one's own

def test_an_experiment_of_ones_own(own_names):
    mine = Experiment("short_copy", "Strings of 1–3 digits suffice.", "mine", {"smoke": smoke("copy", {"high": 2})})
    assert register_experiment(mine) is mine and experiment("short_copy", "smoke").high == 2
    assert register_experiment(replace(mine)) == mine, "a cell that runs twice"
    with pytest.raises(ValueError, match="short_copy has no scale 'tiny': it has smoke"): experiment("short_copy")
    with pytest.raises(ValueError, match="another experiment 'short_copy'"):
        register_experiment(replace(mine, claim="something else"))
    with pytest.raises(ValueError, match="unknown scale 'huge'"):
        register_experiment(Experiment("x", "", "", {"huge": smoke("copy")}))
    assert "x" not in EXPERIMENTS
    assert ("short_copy", "smoke") in {(row["experiment"], row["scale"]) for row in catalogue()}


def register_task(**members):
    """A task registered under a new name; what it has besides `Copy` is given."""
    module = types.ModuleType("own_tasks")
    sys.modules["own_tasks"] = module
    kind = type("OwnTask", (Copy,), members | {"__module__": "own_tasks"})
    TASKS[members["name"]] = kind
    return kind


def test_a_task_without_an_experiment_has_copys_tiny_settings(own_names):
    register_task(name="own_copy")
    copy, own = experiment("copy"), experiment("own_copy")
    assert own == replace(copy, task="own_copy", model=replace(copy.model, vocab=len(Copy.vocab)))
    assert experiment("own_copy", "smoke").loop == experiment("copy", "smoke").loop
    with pytest.raises(ValueError, match="no scale 'paper': without an experiment it has smoke, tiny, laptop, gpu"):
        experiment("own_copy", "paper")


def test_a_task_without_an_experiment_keeps_to_its_levels(own_names):
    def only_small(self, level):
        if 2 <= level <= 4: return level
        raise ValueError(f"level {level} is not one")
    register_task(name="own_small", check_level=only_small)
    config = experiment("own_small")
    assert (config.low, config.high) == (2, 4)
    register_task(name="own_far", check_level=lambda self, level: Copy.check_level(self, level - 20))
    with pytest.raises(ValueError, match="no level from 1 to 10"): experiment("own_far")
    assert not [row for row in catalogue() if row["experiment"] == "own_far"], "it cannot be run by its name"


def test_a_name_that_is_none(own_names):
    with pytest.raises(ValueError, match="unknown experiment 'sorting'.*--tasks FILE"): experiment("sorting")
    with pytest.raises(ValueError, match="unknown scale 'huge': the scales are smoke, tiny, laptop, gpu, paper"):
        experiment("copy", "huge")
