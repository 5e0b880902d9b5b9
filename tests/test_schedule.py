"""Schedules: which levels come next, what they may look at, and how they are named."""
from dataclasses import dataclass, fields

import pytest

from self_improve.arithmetic import Multiplication
from self_improve.mazes import MazeHops
from self_improve.schedule import (
    ACCELERATED_PAIRS,
    SCHEDULES,
    Accelerated,
    AcceleratedByTruth,
    Pairs,
    Schedule,
    State,
    Steps,
    parse_schedule,
    register_schedule,
    valid_levels,
)
from self_improve.tasks import Copy


def square(n): return frozenset((a, b) for a in range(1, n + 1) for b in range(1, n + 1))


def walk(schedule, frontier, rounds):
    """The groups of pairs that a schedule takes, each trained on as it is told."""
    trained, groups = square(frontier), []
    for r in range(1, rounds + 1):
        group = schedule.next(State(frontier, r, frozenset(trained)))
        if not group: break
        groups.append(group)
        trained |= set(group)
        while square(frontier + 1) <= trained: frontier += 1
    return groups, frontier


def test_the_state_holds_no_accuracy():
    assert [f.name for f in fields(State)] == ["frontier", "round", "trained", "probe", "rounds", "acceptance"]
    state = State(10, 1)
    assert (state.trained, state.probe, state.rounds) == (frozenset(), None, ())


# steps

def test_the_steps_schedule():
    assert Steps().next(State(10, 1)) == [11] and parse_schedule("steps:3").next(State(10, 1)) == [11, 12, 13]
    assert parse_schedule("steps") == Steps(1) and Steps(3).weight([11, 12, 13]) == 1.0
    with pytest.raises(ValueError, match="k=0 must be a whole number from 1"): Steps(0)


@pytest.mark.parametrize("schedule", [Steps(), AcceleratedByTruth()])
def test_schedules_of_numbers_refuse_pairs(schedule):
    schedule.validate(False)
    with pytest.raises(ValueError, match="its levels are pairs: use pairs"): schedule.validate(True)


# pairs

def test_the_border_of_the_next_square():
    groups, frontier = walk(Pairs(), 5, 6)
    assert groups == [[(k, 6), (6, k)] for k in range(1, 6)] + [[(6, 6)]] and frontier == 6
    assert walk(Pairs(), 5, 40)[1] == 10, "§7.2: 40 rounds from 5 × 5 to 10 × 10"


def test_the_accelerated_list_needs_18_rounds():
    schedule = parse_schedule("pairs:fast")
    groups, frontier = walk(schedule, 5, 99)
    assert len(groups) == 18 and frontier == 10
    assert groups[0] == [(1, 6), (6, 1)] and groups[1] == [(2, 6), (3, 6), (6, 2), (6, 3)]
    pairs = [pair for group in groups for pair in group]
    assert len(pairs) == len(set(pairs)) and set(pairs) == square(10) - square(5)
    assert schedule == parse_schedule("pairs:" + ACCELERATED_PAIRS) and schedule.weight(pairs) == 1.0


def test_a_list_of_pairs_ends():
    schedule = parse_schedule("pairs:1,6 6,1;2,6 6,2")
    assert schedule == Pairs((((1, 6), (6, 1)), ((2, 6), (6, 2))))
    assert walk(schedule, 5, 9)[0] == [[(1, 6), (6, 1)], [(2, 6), (6, 2)]]
    schedule.validate(True)
    with pytest.raises(ValueError, match="its levels are numbers: use steps"): schedule.validate(False)


def test_a_list_of_pairs_is_read_at_once():
    """Whatever stands in it: the text may be a stranger's."""
    for text in ("1,66,1;2,6 6,2", "1" + ",1111111111" * 40 + "x", "1,6 6", "1,6,"):
        with pytest.raises(ValueError): Pairs.from_text(text)
    assert Pairs.from_text("1,6 6,1;2,6 6,2;").groups == (((1, 6), (6, 1)), ((2, 6), (6, 2)))


def test_a_group_that_was_partly_trained_comes_again_whole():
    assert Pairs().next(State(5, 2, square(5) | {(1, 6)})) == [(1, 6), (6, 1)]


# by truth

def test_acceleration_asks_the_truth_by_name():
    able = {11: 1.0, 12: 0.995, 13: 0.9}
    assert AcceleratedByTruth().next(State(10, 1, probe=able.get)) == [11, 12]
    assert AcceleratedByTruth().next(State(12, 2, probe=able.get)) == [13], "one level at least"
    assert AcceleratedByTruth(0.9).next(State(10, 1, probe={**able, 14: 0.0}.get)) == [11, 12, 13]
    assert AcceleratedByTruth(most=4).next(State(10, 1, probe=lambda level: 1.0)) == [11, 12, 13, 14]
    assert AcceleratedByTruth().weight([11, 12, 13]) == 3.0, "as released: a set counts for the levels it spans"
    assert [name for name in SCHEDULES if "truth" in name] == ["accelerated-by-truth"]


@pytest.mark.parametrize("text", ["steps", "steps:3", "pairs", "pairs:fast"])
def test_other_schedules_never_probe(text):
    def probe(level): raise AssertionError("the truth was asked")
    assert parse_schedule(text).next(State(5, 1, square(5), probe))


# by what the filter keeps

def test_acceleration_without_truth_asks_what_the_filter_keeps():
    def probe(level): raise AssertionError("the truth was asked")
    kept = {12: 0.97, 13: 0.5, 14: 0.49}
    assert Accelerated().next(State(10, 1, probe=probe, acceptance=kept.get)) == [11, 12, 13], "the first is not asked"
    assert Accelerated(0.6).next(State(10, 1, acceptance=kept.get)) == [11, 12]
    assert Accelerated(0.1, 2).next(State(10, 1, acceptance=kept.get)) == [11, 12]
    assert Accelerated(0.1, 1).next(State(10, 1)) == [11], "one level a round needs no question"
    assert Accelerated().weight([11, 12, 13]) == 3.0
    with pytest.raises(ValueError, match="pairs"): Accelerated().validate(True)


# from text

@pytest.mark.parametrize("text, schedule", [
    ("steps", Steps()), ("steps:1", Steps(1)), ("steps:12", Steps(12)), ("pairs", Pairs()),
    ("accelerated-by-truth", AcceleratedByTruth(0.99)), ("accelerated-by-truth:0.9", AcceleratedByTruth(0.9)),
    ("accelerated", Accelerated(0.5, 10)), ("accelerated:0.9/3", Accelerated(0.9, 3)),
    ("accelerated-by-truth:.5", AcceleratedByTruth(0.5)), ("accelerated-by-truth:1", AcceleratedByTruth(1.0)),
    ("pairs:2,3", Pairs((((2, 3),),))), ("pairs:1,6 6,1;6,6", Pairs((((1, 6), (6, 1)), ((6, 6),)))),
])
def test_forms_of_a_schedule(text, schedule):
    assert parse_schedule(text) == schedule


@pytest.mark.parametrize("text", [
    "leaps", "leaps:2", "steps:", "steps:x", "steps:-1", "steps:0", "steps:1.5", "steps:12345", "", "Steps",
    "pairs:", "pairs:quick", "pairs:1,6;x", "pairs:1", "pairs:1,6,7", "pairs:fast;1,6", "pairs:१,२",
    "accelerated-by-truth:", "accelerated-by-truth:1.5", "accelerated-by-truth:0", "accelerated-by-truth:x",
    "accelerate", "accelerated:", "accelerated:0", "accelerated:1.1", "accelerated:0.5/0", "accelerated:0.5/10000",
])
def test_what_is_no_schedule_is_refused_with_a_sentence(text):
    with pytest.raises(ValueError) as e: parse_schedule(text)
    assert f"unknown schedule {text!r}: " in str(e.value) and "\n" not in str(e.value)
    assert "invalid literal" not in str(e.value) and "convert" not in str(e.value)


# a schedule of one's own

@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr("self_improve.schedule.SCHEDULES", dict(SCHEDULES))


def patient(name="patient"):
    """A schedule class, made anew with every call as a notebook cell that runs again makes it."""
    @register_schedule(name)
    @dataclass(frozen=True)
    class Patient(Schedule):
        "One level further, or the same again while too little is kept."
        share: float = 0.5
        in_text = {"share": float}

        def next(self, state):
            kept = state.rounds[-1].kept if state.rounds else None
            if kept is not None and kept < self.share: return [state.frontier]
            return [state.frontier + 1]

        def weight(self, levels): return 2.0
    return Patient


def test_an_own_schedule_looks_at_past_rounds(registry):
    @dataclass
    class Past:
        kept: float | None
    own = patient()
    schedule = parse_schedule("patient:0.3")
    assert schedule == own(0.3) and schedule.weight([4]) == 2.0
    assert schedule.next(State(10, 1)) == [11]
    assert schedule.next(State(10, 2, rounds=(Past(None), Past(0.9)))) == [11]
    assert schedule.next(State(10, 2, rounds=(Past(None), Past(0.1)))) == [10]
    # it may work for numbers and for pairs
    schedule.validate(True), schedule.validate(False)


def test_an_own_schedule_may_be_defined_again_but_takes_no_other_name(registry):
    patient()
    again = patient()
    assert parse_schedule("patient") == again()
    with pytest.raises(ValueError, match="'steps' belongs to Steps"): patient("steps")
    for bad in ("Patient", "two words", "a:b", ""):
        with pytest.raises(ValueError, match="lower-case letters"): patient(bad)
    with pytest.raises(ValueError, match="unknown schedule 'patient:x': "): parse_schedule("patient:x")
    with pytest.raises(ValueError, match=r"unknown schedule 'patent': .*patient\[:share\]"): parse_schedule("patent")


# what the task has

def test_levels_that_a_task_does_not_have_are_left_out():
    assert valid_levels(Copy(), [0, 3, -1, 4, (2, 2)]) == [3, 4]
    assert valid_levels(Multiplication(), [(5, 6), 6, (0, 1)]) == [(5, 6)]
    hops = MazeHops(nodes=6)
    possible = hops.levels(1, 99)
    assert valid_levels(hops, [possible[-1], possible[-1] + 1]) == possible[-1:]
