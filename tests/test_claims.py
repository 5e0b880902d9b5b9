"""The ledger: verdicts follow from records by the stated rules, and every verdict can be reached."""
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from self_improve.claims import (
    RULES,
    VERDICTS,
    Claim,
    bears_on,
    guess_rate,
    half_level,
    judge_claim,
    ledger,
    ledger_text,
    load_claims,
    totals,
)
from self_improve.config import Config, LoopConfig
from self_improve.rounds import Round
from self_improve.streams import Stream
from self_improve.tasks import draw_problems, make_task


def made_up(shares, filter="none", name="run", high=3, scale="tiny", **more):
    """A run of copying with the labeled range 1-3, whose round r has these accuracies from level 1 on."""
    rounds = []
    for r, row in enumerate(shares):
        accuracy = {str(level): {"accuracy": share, "n": 100} for level, share in enumerate(row, 1)}
        report = [{"made": 10, "kept": 10, "right": 10, "possible": 10}] if r else []
        right = [row[high + r - 1]] if r else []
        rounds.append(Round(r, [high + r], high + r, 1, [0.1], right, report, accuracy, **more))
    config = Config(high=high, loop=LoopConfig(filter=filter, members=2 if "vote" in filter else 1))
    return SimpleNamespace(folder=SimpleNamespace(name=name), config=config, rounds=rounds, scale=scale,
                           frontier=rounds[-1].frontier)


CLIMB = [[1, 1, 1, 0.9, 0.1, 0, 0], [1, 1, 1, 1, 0.9, 0.3, 0], [1, 1, 1, 1, 1, 0.9, 0.6], [1, 1, 1, 1, 1, 0.99, 0.8]]
FALL = [[1, 1, 1, 0.9, 0.1, 0, 0], [1, 1, 1, 0.8, 0.4, 0, 0], [1, 1, 1, 0.5, 0.4, 0, 0], [1, 1, 0.9, 0.2, 0.1, 0, 0]]
CLAIM = Claim("c", "§4.2", "It climbs.", "5", "N", {"task": "copy", "filter": "none", "schedule": ".*"},
              {"rule": "reaches", "level": 5, "at_least": 0.95}, {"rule": "climbs", "factor": 2, "at_least": 0.95})
FAR = Claim("f", "§4.2", "It climbs far.", "50", "N", CLAIM.runs,
            {"rule": "reaches", "level": 50, "at_least": 0.95}, {"rule": "climbs", "factor": 2, "at_least": 0.95})


@pytest.mark.parametrize("claim, runs, verdict", [
    (CLAIM, [made_up(CLIMB)], "reproduced"),
    (FAR, [made_up(CLIMB)], "reproduced small"),
    (FAR, [made_up(FALL)], "not reproduced"),
    (FAR, [made_up(CLIMB), made_up(FALL, name="other")], "inconclusive"),
    (FAR, [made_up(CLIMB[:2])], "inconclusive"),
    (FAR, [], "not run"),
    (FAR, [made_up(CLIMB, filter="vote")], "not run")])
def test_every_verdict_can_be_reached(claim, runs, verdict):
    judged = judge_claim(claim, runs)
    assert judged.verdict == verdict and set(judged.runs) == ({r.folder.name for r in runs} if judged.runs else set())


def test_a_claim_without_a_record_or_a_rule_is_not_run():
    for judged in ledger():
        if not judged.runs or not (judged.claim.paper or judged.claim.small): assert judged.verdict == "not run"


def test_runs_bear_on_claims_by_task_filter_schedule_and_scale():
    run = made_up(CLIMB)
    for key, value in (("task", "reverse"), ("filter", "vote.*"), ("schedule", "pairs"), ("scale", "paper")):
        other = Claim("x", "", "", "", "", CLAIM.runs | {key: value})
        assert bears_on(run, CLAIM) and not bears_on(run, other)
    needy = Claim("x", "", "", "", "", CLAIM.runs | {"needs": "lengths"})
    assert not bears_on(run, needy) and bears_on(made_up(CLIMB, lengths={"4": {"0": [1, 0]}}), needy)


@pytest.mark.parametrize("name, numbers, rounds, said", [
    ("collapses", {"below": 0.5}, FALL, True), ("collapses", {"below": 0.5}, CLIMB, False),
    ("collapses", {"below": 0.5}, [*FALL[:1], [1, 1, 1, 0.7, 0, 0, 0]], None),
    ("labels_decay", {"by": 0.2}, FALL, True), ("labels_decay", {"by": 0.2}, CLIMB, False),
    ("labels_decay", {"by": 0.2}, FALL[:2], None),
    ("margin_grows", {"least": 1}, CLIMB[:3], True), ("margin_grows", {"least": 1}, CLIMB[:2], None),
    ("margin_grows", {"least": 1}, FALL, False),
    ("base_reaches", {"level": 4, "at_least": 0.9}, CLIMB, True),
    ("base_reaches", {"level": 5, "at_least": 0.9}, CLIMB, False),
    ("at_round", {"round": 1, "level": "5", "value": 0.85, "slack": 0.1}, CLIMB, True),
    ("at_round", {"round": 1, "level": "5", "value": 0.5, "slack": 0.1}, CLIMB, False),
    ("at_round", {"round": 9, "level": "5", "value": 0.5, "slack": 0.1}, CLIMB, None),
    ("faster_than_one_a_round", {}, CLIMB, False)])
def test_rules(name, numbers, rounds, said): assert RULES[name](made_up(rounds), **numbers) is said


@pytest.mark.parametrize("shares, said", [((0.4, 0.1), True), ((0.4, 0.9), None), ((1.0, 0.96), False)])
def test_products_collapse_where_the_last_pairs_are_wrong(shares, said):
    """The square of which all is right does not grow with each round, so it says nothing."""
    run = made_up(FALL)
    accuracy = {name: {"accuracy": share, "n": 100} for name, share in zip(("1,7", "7,1"), shares, strict=True)}
    run.rounds[-1] = replace(run.rounds[-1], levels=[(1, 7), (7, 1)], accuracy=accuracy | {"6,6": {"accuracy": 1.0}})
    assert RULES["collapses"](run, below=0.5) is said


def test_wrong_outputs_that_are_short():
    rule = RULES["wrong_is_short"]
    short = made_up(CLIMB, lengths={"4": {"-1": [0, 30], "0": [5, 5], "1": [0, 4], "endless": [0, 9]}})
    long = made_up(CLIMB, lengths={"4": {"-1": [0, 10], "0": [5, 20], "endless": [0, 99]}})
    few = made_up(CLIMB, lengths={"4": {"-1": [0, 3]}})
    assert (rule(short, share=0.5), rule(long, share=0.5), rule(few, share=0.5)) == (True, False, None)


def test_where_accuracy_crosses_one_half():
    assert [half_level(r) for r in made_up(CLIMB).rounds] == [4, 5, 7, 7]


@pytest.mark.parametrize("nodes, level", [(9, 3), (9, 8), (12, 6)])
def test_a_guesser_by_following_him(nodes, level):
    """Walk through each maze from its text, and multiply the chances at every branch."""
    task = make_task("maze_hops", nodes=nodes)
    _, block = draw_problems(task, level, Stream(0, "guess", level=level), 60)
    total = 0.0
    for prompt, answer in zip(block.prompt, block.answer, strict=True):
        listed = task.show(prompt).split("#")[1].rstrip("=").split("-")
        ways = {item.split(":")[0]: item.split(":")[1].split(",") for item in listed}
        path, chance = task.show(answer).split(">"), 1.0
        for i, node in enumerate(path[:-1]): chance /= len(ways[node]) - (i > 0)
        total += chance
    assert guess_rate(task, level, 60) == pytest.approx(total / 60, abs=1e-9)
    if level == nodes - 1: assert total == 60, "a maze that is one long path has no branch"


def test_the_ledger_covers_the_paper_and_adds_up():
    judged = ledger()
    ids = [j.claim.id for j in judged]
    assert len(set(ids)) == len(ids) >= 30 and {j.verdict for j in judged} <= set(VERDICTS)
    counts = totals(judged)
    assert sum(counts.values()) == len(judged) and f"{counts['not run']} not run" in ledger_text(judged)
    for claim in load_claims():
        assert claim.section and claim.claim.endswith(".") and claim.number and set(claim.tag) & set("ABCFN"), claim.id
        assert bool(claim.runs) == bool(claim.paper or claim.small), claim.id


def test_an_unknown_rule_is_refused(tmp_path):
    (tmp_path / "paper").mkdir()
    entry = {"id": "x", "section": "", "claim": "", "number": "", "tag": "", "small": {"rule": "wishes"}}
    (tmp_path / "paper" / "claims.json").write_text(json.dumps({"claims": [entry]}))
    with pytest.raises(ValueError, match="unknown rule 'wishes'"): load_claims(tmp_path)
