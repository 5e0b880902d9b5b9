"""Experiments: the paper's table to the letter, every task through a smoke run, schedules of every kind."""
import json
from dataclasses import asdict, replace

import pytest

from self_improve.cli import main
from self_improve.experiments import EXPERIMENTS, SCALES, experiment
from self_improve.loop import SelfImprovement, frontier_of, plan, state_of
from self_improve.model import parameters
from self_improve.plots import heatmap, progress_picture, results
from self_improve.records import FAST, AcceleratedByTruth, LoopConfig, Pairs, Run, State, Steps, configure, identity, parse_schedule, record
from self_improve.tasks import TASKS, make_task
from self_improve.train import Mixture

every_task = pytest.mark.parametrize("name", list(TASKS))

# §4.3 of the notes on the paper: base steps (warm-up, constant, cosine, 1 %), base set, peak rate, steps and rate of a round, labels a round, base weight, labelled range
TABLE = dict(
    reverse_addition=((1000, 7000, 2000, 0), 10_000_000, 5e-4, (0, 500, 500, 0), 5e-4, 50_000, 16, (1, 16), 100),
    forward_addition=((1000, 7000, 2000, 0), 2_000_000, 5e-4, (0, 2000, 1000, 0), 5e-4, 50_000, 10, (1, 10), 60),
    copy=((200, 1300, 500, 0), 5_000_000, 5e-4, (0, 0, 500, 0), 5e-4, 20_000, 10, (1, 10), 100),
    reverse=((200, 1300, 500, 0), 5_000_000, 5e-4, (0, 0, 500, 0), 5e-4, 20_000, 10, (1, 10), 100),
    multiplication=((1000, 7000, 2000, 0), 5_000_000, 5e-5, (0, 2000, 1000, 0), 5e-5, 50_000, 5, (1, 5), 40),
    maze_hops=((2500, 19000, 3500, 0), 5_000_000, 5e-4, (500, 3000, 1000, 500), 2e-4, 50_000, 1, (1, 9), 18),
    maze_nodes=((1200, 6000, 2800, 2000), 5_000_000, 5e-4, (400, 1600, 1000, 1000), 2e-4, 50_000, 21, (10, 30), 18))


def in_steps(phase):
    counted = [phase.warmup, 1 - phase.warmup - phase.decay - phase.tail, phase.decay, phase.tail]
    assert all(abs(share * phase.steps - round(share * phase.steps)) < 1e-6 for share in counted)
    return tuple(round(share * phase.steps) for share in counted)


@every_task
def test_paper_scale_is_the_papers_table(name):
    c = experiment(name, "paper")
    assert (in_steps(c.train), c.size, c.train.lr, in_steps(c.loop), c.loop.lr, c.loop.problems, c.weight, (c.low, c.high), c.loop.rounds) == TABLE[name]
    assert (c.train.batch, c.train.beta1, c.train.beta2, c.train.epsilon, c.train.weight_decay, c.train.clip, c.train.optimiser) == (1024, 0.9, 0.98, 1e-12, 0.01, 1.0, "adamw")
    assert not c.train.fresh and c.cap == "released" and c.loop.newest == 0.5 and not c.loop.shared and c.options == {} and c.model.positions == "nope"
    assert parameters(c.model) == (14_268_288 if "maze" in name else 14_239_104)


@every_task
def test_base_shares_are_the_papers(name):
    """§4.2: the base set's share of the mixture with 1, 10 and 50 self-made sets."""
    percent = dict(reverse_addition=(50, 32, 12.3), copy=(50, 26.3, 8.5), reverse=(50, 26.3, 8.5), forward_addition=(50, 26.3, 8.5), multiplication=(50, 17.9, 4.6),
                   maze_hops=(50, 5, 1), maze_nodes=(50, 35, 15))[name]
    c, rows, schedule = experiment(name, "paper"), range(1), parse_schedule(experiment(name, "paper").loop.schedule)
    weight = schedule.weight([(1, 6), (6, 1)] if name == "multiplication" else [31, 32, 33])
    for k, share in zip((1, 10, 50), percent): assert Mixture(None, [], None, 1, (rows,) * k, (weight,) * k, c.weight).shares()[0] * 100 == pytest.approx(share, abs=0.5)


def walk(name, **changes):
    """What the schedule of scale `paper` would know after every round, if each keeps something."""
    paper = experiment(name, "paper")
    small = replace(experiment(name, "smoke"), low=paper.low, high=paper.high, options={})   # where it goes does not depend on the size of the model
    loop = SelfImprovement(configure(small, {"loop.schedule": paper.loop.schedule, "loop.rounds": paper.loop.rounds} | changes))
    trained, states = frozenset(loop.ensemble.task.levels(paper.low, paper.high)), []
    for r, levels in enumerate(plan(loop.ensemble, loop.schedule)):
        trained |= set(levels) if r else set()
        states.append(State(frontier_of(loop.ensemble.task, loop.config, trained), r, trained))
    return states


def test_where_the_papers_schedules_end():
    assert [walk(name)[-1].frontier for name in ("reverse_addition", "maze_hops", "maze_nodes")] == [116, 27, 84]
    square = walk("multiplication")
    assert [next(s.round for s in square if s.frontier == n) for n in (6, 7, 8, 9, 10)] == [6, 13, 21, 30, 40]   # the round that labels N × N; the paper trains on it in the next
    fast = walk("multiplication", **{"loop.schedule": "pairs:fast", "loop.rounds": 18})[-1]
    assert fast.frontier == 10 and len(fast.trained) == 100


def test_the_accelerated_list_is_the_papers():
    groups = Pairs(parse_schedule("pairs:fast").groups).groups
    assert len(groups) == 18 == FAST.count(";") + 1
    assert groups[0] == ((1, 6), (6, 1)) and groups[5] == ((2, 7), (3, 7), (4, 7), (7, 2), (7, 3), (7, 4)) and len(groups[12]) == 10 and len(groups[15]) == 12 and groups[17] == ((10, 10),)
    assert {p for g in groups for p in g} == {(a, b) for a in range(1, 11) for b in range(1, 11)} - {(a, b) for a in range(1, 6) for b in range(1, 6)}


@every_task
def test_every_task_runs_stops_and_goes_on(name, tmp_path):
    config = experiment(name, "smoke")
    whole = list(SelfImprovement(config, Run.create(tmp_path / "whole", config, name, "smoke")))
    halves = iter(SelfImprovement(config, Run.create(tmp_path / "halves", config, name, "smoke")))
    next(halves), next(halves)
    list(SelfImprovement(config, Run.create(tmp_path / "halves", config, name, "smoke")))
    a, b = Run(tmp_path / "whole"), Run(tmp_path / "halves")
    assert len(a.rounds) == 3 and [(r.levels, r.loss, r.accuracy, r.filter) for r in a.rounds] == [(r.levels, r.loss, r.accuracy, r.filter) for r in b.rounds]
    assert [r.levels for r in whole] == [r.levels for r in a.rounds], "pairs come back as pairs"
    assert main(["show", str(tmp_path / "whole")]) == 0 and (tmp_path / "whole" / "accuracy.png").stat().st_size > 5000


@every_task
@pytest.mark.parametrize("scale", SCALES)
def test_every_configuration_can_reach_its_last_round(name, scale):
    c = experiment(name, scale)
    small = replace(experiment(name, "smoke").model, vocab=c.model.vocab)   # where it goes does not depend on the size of the model
    loop = SelfImprovement(replace(c, model=small, loop=replace(c.loop, members=1, filter="none")))
    assert len(plan(loop.ensemble, loop.schedule)) == c.loop.rounds + 1 and EXPERIMENTS[name].section.startswith("§")
    assert configure(c, {}) == c


def test_levels_that_run_out_are_told_before_anything_is_written(capsys, tmp_path):
    assert main(["run", "maze_hops", "--scale", "smoke", "--set", "loop.rounds=5", "--out", str(tmp_path / "run")]) == 2
    assert "loop.rounds=5 are too many: after round 4" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("task, setting, said", [
    ("copy", "loop.schedule=pairs", "numbers: use steps"), ("multiplication", "loop.schedule=steps:1", "pairs: use pairs"), ("copy", "loop.schedule=pairs:1,6;x", "unknown schedule"),
    ("copy", "loop.schedule=accelerated-by-truth:1.5", "1.5 is no accuracy"), ("maze_hops", "options.nodes=100", "100"), ("maze_hops", "options.hops=3", "options.hops"),
    ("maze_hops", "high=8", "level 8"), ("maze_nodes", "low=1", "level 1"), ("copy", "loop.filter=verifier", "no verifier"), ("maze_hops", "loop.filter=verifier:speed", "speed")])
def test_what_does_not_fit_a_task_is_refused(capsys, task, setting, said, tmp_path):
    assert main(["run", task, "--scale", "smoke", "--out", str(tmp_path / "run"), "--set", setting]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not (tmp_path / "run").exists()


# schedules

def test_accelerated_takes_what_passes_and_one_at_least():
    asked = []
    def probe(level): return asked.append(level) or {11: 1.0, 12: 0.99, 13: 0.98, 14: 1.0}.get(level, 0.0)
    assert AcceleratedByTruth().next(State(10, 1, probe=probe)) == [11, 12] and asked == [11, 12, 13]
    assert AcceleratedByTruth().next(State(12, 2, probe=probe)) == [13] and AcceleratedByTruth(most=3).next(State(0, 1, probe=lambda level: 1.0)) == [1, 2, 3]
    assert AcceleratedByTruth().weight([11, 12]) == 2 and Steps(3).weight([11, 12, 13]) == 1


def test_an_accelerated_run_writes_down_what_it_looked_at(tmp_path, monkeypatch):
    config = configure(experiment("copy", "smoke"), {"loop.schedule": "accelerated-by-truth", "loop.rounds": "1"})
    loop = SelfImprovement(config, Run.create(tmp_path / "run", config))
    told = {4: 1.0, 5: 0.995, 6: 0.5}
    import self_improve.loop as room
    real = room.measure
    monkeypatch.setattr(room, "measure", lambda models, task, levels, seed, n, each=map, purpose="eval": {str(levels[0]): {"accuracy": told[levels[0]]}} if purpose == "probe" and n == 32
                        else real(models, task, levels, seed, n, each, purpose))
    list(loop)
    done = Run(tmp_path / "run").rounds[1]
    assert done.levels == [4, 5] and done.probe == {"4": 1.0, "5": 0.995, "6": 0.5} and "truth" in json.loads((tmp_path / "run" / "config.json").read_text())["config"]["loop"]["schedule"]


def test_a_schedule_without_truth_in_its_name_never_probes():
    def probe(level): raise AssertionError("nobody may look")
    for schedule in (Steps(), Steps(3), Pairs(), parse_schedule("pairs:fast")): schedule.next(State(5, 1, frozenset((a, b) for a in range(1, 6) for b in range(1, 6)), probe))


def test_frontier_of_pairs_is_the_largest_square():
    task, c = make_task("multiplication"), experiment("multiplication", "smoke")
    square = set(task.levels(1, 2))
    assert frontier_of(task, c, frozenset(square | {(1, 3), (3, 1), (3, 3)})) == 2
    assert frontier_of(task, c, frozenset(square | {(1, 3), (3, 1), (2, 3), (3, 2), (3, 3)})) == 3


def test_a_group_of_which_nothing_was_kept_comes_again():
    config = configure(experiment("multiplication", "smoke"), {"loop.filter": "oracle"})   # a model that has learnt nothing is never right
    rounds = list(SelfImprovement(config))
    assert [r.levels for r in rounds[1:]] == [[(1, 3), (3, 1)]] * 2 and state_of(make_task("multiplication"), config, rounds).frontier == 2


def test_so_many_problems_for_each_level():
    c, made = experiment("maze_nodes", "smoke"), []
    for each in (False, True): made.append(list(SelfImprovement(replace(c, loop=replace(c.loop, each=each, rounds=1))))[1].filter[0]["made"])
    assert made == [32, 64], "two levels a round"


def test_options_that_are_the_default_change_no_name():
    c = experiment("maze_hops", "paper")
    assert identity(configure(c, {"options.nodes": "30"})) == identity(c) != identity(configure(c, {"options.nodes": "40"}))
    assert configure(c, {"options.nodes": "40"}).options == {"nodes": 40}


@pytest.mark.parametrize("text", ["steps:0", "steps:x", "pairs:1", "pairs:1,2,3", "accelerated", "accelerated-by-truth:0", "", "steps:"])
def test_schedules_that_cannot_be(text):
    with pytest.raises(ValueError, match="schedule|goes nowhere|no accuracy"): LoopConfig(schedule=text)


# pictures

def test_a_square_shows_its_numbers():
    done = list(SelfImprovement(experiment("multiplication", "smoke")))[-1]
    figure = heatmap(done)
    assert len(figure.axes[0].texts) == len(done.accuracy) == 9 and len(progress_picture([done]).axes) == 1
    beyond, within = (done.frontier + 1, 1), (1, 1)
    assert len(heatmap(done, taught={beyond, within}).axes[0].lines) == len(figure.axes[0].lines) + 1, "what lies in the square has its frame already"


def test_the_table_counts_pairs_beyond_the_square(tmp_path):
    assert main(["run", "multiplication", "--scale", "smoke", "--set", "loop.rounds=1", "--out", str(tmp_path / "run")]) == 0
    run = Run(tmp_path / "run")
    folder = record(run, tmp_path)
    def row(kept):   # an untrained model keeps nothing: what it kept is written in
        for f in run.rounds[1].filter: f["kept"] = f["right"] = kept
        (folder / "rounds.jsonl").write_text("".join(json.dumps(asdict(r)) + "\n" for r in run.rounds))
        return results(tmp_path).splitlines()[2]
    assert "| 2 + 2 pairs |" in row(5) and "| 2 |" in row(0) and "|      – |" in row(0), "nothing kept: no share of it is right"
