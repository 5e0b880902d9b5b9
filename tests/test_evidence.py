"""What a round writes down: every count against one made by hand or by a plain loop."""
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from self_improve.evidence import (
    add_steps,
    add_tables,
    add_up,
    alarm,
    count_lengths,
    count_positions,
    count_steps,
    filter_steps,
    first_alarm,
    flip_answers,
    flip_rate,
    gather,
    sample_wrong,
    spread_levels,
    vote_histogram,
)
from self_improve.filter import Length, Oracle, parse_filter
from self_improve.labelling import label
from self_improve.model import Decoder, ModelConfig
from self_improve.rounds import Round, parse_round, round_line
from self_improve.scoring import Candidates
from self_improve.streams import Stream
from self_improve.tasks import ARITHMETIC, EOS, PAD, Copy, Truth

STREAM = Stream(3, "self", member=1, level=4, round=2)


def sheet(texts, width=8):
    """Outputs as text, `$` for EOS: one uint8 row each."""
    rows = [[EOS if ch == "$" else ARITHMETIC.ids[ch] for ch in text] for text in texts]
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows], dtype=torch.uint8)


def ask(*members, own=0, width=8):
    """Candidates from the outputs of each member; the prompts are numbered from 100."""
    outputs = torch.stack([sheet(texts, width) for texts in members])
    prompts = sheet([f"{100 + i}=" for i in range(len(members[0]))], 4)
    return Candidates(prompts, outputs, outputs[own], task=Copy())


def truth(*texts, width=8): return Truth(sheet(texts, width))


# filters, step by step

def test_steps_of_a_chain_by_hand():
    """The vote drops the third row and repairs the second; the length drops the last."""
    c = ask(["123$", "9$", "5$", "1$"], ["123$", "456$", "6$", "1$"], ["123$", "456$", "7$", "1$"])
    t = truth("123$", "456$", "5$", "2$", width=5)
    steps = filter_steps(parse_filter("none+vote:2/3+length:0"), c, t)
    assert [(name, kept.index.tolist()) for name, kept in steps] == [
        ("none", [0, 1, 2, 3]), ("vote", [0, 1, 3]), ("length", [0, 1])]
    assert count_steps(steps, t) == [["none", 4, 2], ["vote", 3, 2], ["length", 2, 2]]


def test_a_filter_alone_is_one_step_under_the_name_of_its_class():
    c, t = ask(["12$", "1$", "34$"]), truth("12$", "1$", "35$")
    assert count_steps(filter_steps(Length(), c, t), t) == [["Length", 2, 1]]
    assert count_steps(filter_steps(Oracle(), c, t), t) == [["Oracle", 2, 2]], "it is given the truth"
    chain = parse_filter("length:0+oracle")
    assert count_steps(filter_steps(chain, c, t), t) == [["length", 2, 1], ["oracle", 1, 1]]


def test_steps_of_levels_are_added():
    one, two = [["vote", 5, 4], ["length", 3, 3]], [["vote", 2, 0], ["length", 1, 0]]
    assert add_steps([], one) == one and add_steps(one, two) == [["vote", 7, 4], ["length", 4, 3]]
    with pytest.raises(ValueError): add_steps(one, two[:1])


# votes

def votes_by_a_loop(outputs, answers):
    """Of each problem: the most members that give one and the same output with an end, and whether it is right."""
    models, problems = Counter(), Counter()
    for row, answer in enumerate(answers):
        given = [tuple(member[row]) for member in outputs]
        votes = [sum(other == one for other in given) if EOS in one else 0 for one in given]
        most = max(votes)
        problems[str(most)] += 1
        models[str(most)] += given[votes.index(most)] == tuple(answer)
    return {k: [problems[k], models[k]] for k in sorted(problems)}


@pytest.mark.parametrize("models", [2, 3, 5])
def test_votes_are_those_of_a_plain_loop(models):
    """One of two tokens, then EOS or another token: ties, unanimous errors and rows without an end are among them."""
    random = Stream(models, "test").integers((models + 1) * 2000, 2, torch.tensor([2, 3])).reshape(-1, 2000, 2)
    tokens = torch.stack([3 + random[..., 0], torch.where(random[..., 1] > 0, EOS, 5)], 2).to(torch.uint8)
    tokens[models, :, 1] = EOS
    outputs, answer = tokens[:models], tokens[models]
    c = Candidates(answer, outputs, outputs[0], task=Copy())
    counted = vote_histogram(c, Truth(answer))
    assert counted == votes_by_a_loop(outputs.tolist(), answer.tolist()) and list(counted) == sorted(counted)
    assert {"0", str(models)} <= set(counted) and sum(problems for problems, _ in counted.values()) == 2000
    for problems, right in counted.values(): assert problems >= right
    assert counted["0"][1] == 0 < counted[str(models)][1] < counted[str(models)][0]


def test_one_model_has_no_votes():
    assert vote_histogram(ask(["1$", "2$"]), truth("1$", "2$")) == {}


def test_votes_compare_with_a_truth_of_another_width():
    c = ask(["12$", "3$"], ["12$", "3$"])
    assert vote_histogram(c, truth("12$", "4$", width=3)) == {"2": [2, 1]}


# lengths

def test_lengths_by_hand():
    c = ask(["123$", "124$", "12$", "1234$", "1$", "12345678", "123$"])
    t = truth(*["123$"] * 7, width=4)
    assert count_lengths(c, t) == {"-2": [0, 1], "-1": [0, 1], "0": [2, 1], "1": [0, 1], "endless": [0, 1]}
    assert list(count_lengths(c, t)) == ["-2", "-1", "0", "1", "endless"]


@pytest.mark.parametrize("longer, counted", [(19, "19"), (20, "20"), (21, "20"), (40, "20")])
def test_far_away_lengths_are_counted_together(longer, counted):
    long, short = "1" * (longer + 2) + "$", "1$"
    c, t = ask([long], width=50), truth("11$", width=50)
    assert count_lengths(c, t) == {counted: [0, 1]}
    assert count_lengths(ask([short], width=50), truth("1" * (longer + 1) + "$", width=50)) == {f"-{counted}": [0, 1]}


def test_all_endless():
    assert count_lengths(ask(["12345678"] * 3), truth("1$", "2$", "3$")) == {"endless": [0, 3]}


# positions

def test_positions_by_hand():
    """A missing token is a wrong one; what stands behind the true answer does not count, nor does PAD."""
    c = ask(["123$", "923$", "12$", "1234$", "$", "19$"])
    t = truth("123$", "123$", "123$", "123$", "123$", "12$", width=5)
    # first, second, third token, EOS, and a column that no answer reaches
    assert count_positions(c, t) == [2, 2, 2, 3, 0]


def test_positions_of_outputs_narrower_than_the_truth():
    assert count_positions(ask(["1$", "12$"], width=3), truth("123$", "123$", width=4)) == [0, 1, 2, 2]


# wrong outputs

def many(n, right=(), endless=()):
    """Outputs numbered from 0: `right` ones are the truth, `endless` ones lack their end."""
    outputs, answers = [], []
    for i in range(n):
        outputs.append(f"{i}5" + "$" * (i not in endless))
        answers.append(f"{i}5$" if i in right else f"{i}6$")
    return ask(outputs), truth(*answers)


def numbers(sample): return [int(prompt[:-1]) - 100 for prompt, _ in sample]


def test_few_wrong_outputs_are_all_written_down():
    c, t = many(6, right=(0, 3), endless=(4,))
    assert sample_wrong(c, t, STREAM) == [["101=", "15"], ["102=", "25"], ["104=", "45…"], ["105=", "55"]]
    assert sample_wrong(*many(4, right=range(4)), STREAM) == []


def test_at_most_fifty_wrong_ones_are_drawn():
    right = set(range(0, 200, 4))
    c, t = many(200, right)
    sample = sample_wrong(c, t, STREAM)
    assert sample == sample_wrong(c, t, STREAM) and len(sample) == 50
    drawn = numbers(sample)
    assert drawn == sorted(set(drawn)) and not set(drawn) & right
    assert drawn[0] < 20 and drawn[-1] > 180 and drawn != [i for i in range(200) if i not in right][:50]
    for changed in (dict(seed=4), dict(member=0), dict(level=5), dict(round=3)):
        assert sample_wrong(c, t, replace(STREAM, **changed)) != sample, changed
    assert set(numbers(sample_wrong(c, t, STREAM, 7))) < set(drawn) and len(sample_wrong(c, t, STREAM, 7)) == 7


def test_a_drawn_one_does_not_depend_on_the_rest():
    """Each row has a number of its own: rows that turn out right make room, and move nobody."""
    drawn = numbers(sample_wrong(*many(200), STREAM))
    others = set(range(200)) - set(drawn)
    assert numbers(sample_wrong(*many(200, right=others), STREAM)) == drawn
    fewer = numbers(sample_wrong(*many(200, right=drawn[:10]), STREAM))
    assert set(drawn[10:]) < set(fewer) and len(fewer) == 50
    assert set(numbers(sample_wrong(*many(150), STREAM))) >= {i for i in drawn if i < 150}


# over levels and members

def report(votes, lengths, positions, *wrong):
    return {"votes": votes, "lengths": lengths, "positions": positions, "wrong": [list(row) for row in wrong]}


def test_members_and_levels_are_added_up():
    first = {
        "4": report({"1": [5, 1], "3": [2, 2]}, {"-1": [0, 3], "endless": [0, 1], "0": [4, 0]}, [1, 2], ("4=", "5")),
        "2,3": report({"2": [1, 1]}, {"0": [1, 0]}, [0])}
    second = {
        "4": report({"0": [1, 0], "3": [5, 4]}, {"-12": [0, 1], "0": [3, 2]}, [10, 20], ("8=", "9"), ("7=", "6…")),
        "5": report({}, {}, [0, 0])}
    assert add_up([first, second]) == {
        "votes": {"4": {"0": [1, 0], "1": [5, 1], "3": [7, 6]}, "2,3": {"2": [1, 1]}},
        "lengths": {"4": {"-12": [0, 1], "-1": [0, 3], "0": [7, 2], "endless": [0, 1]}, "2,3": {"0": [1, 0]}, "5": {}},
        "positions": {"4": [11, 22], "2,3": [0], "5": [0, 0]},
        "wrong": {"4": [[0, "4=", "5"], [1, "8=", "9"], [1, "7=", "6…"]], "2,3": [], "5": []}}
    assert list(add_up([first, second])["lengths"]["4"]) == ["-12", "-1", "0", "endless"]
    assert list(add_up([first, second])["positions"]) == ["4", "2,3", "5"]


def test_members_take_turns_with_their_errors():
    two = [{"4": report({}, {}, [0], *[(f"{i}=", "1") for i in range(n)])} for n in (40, 3)]
    wrong = add_up(two, 5)["wrong"]["4"]
    assert wrong == [[0, "0=", "1"], [1, "0=", "1"], [0, "1=", "1"], [1, "1=", "1"], [0, "2=", "1"]]
    assert Counter(member for member, *_ in add_up(two)["wrong"]["4"]) == {0: 40, 1: 3}
    assert len(add_up(two * 2)["wrong"]["4"]) == 50


def test_tables_of_no_member():
    assert add_tables([]) == {} and add_up([]) == {"votes": {}, "lengths": {}, "positions": {}, "wrong": {}}
    with pytest.raises(ValueError): add_tables([{"0": [1, 2]}, {"0": [1]}])


# answers that change

class Lookup(torch.nn.Module):
    """Answers with one token that depends on the prompt's last digit; an answer `(` never ends."""
    def __init__(self, answers):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.answers = {digit: "1" for digit in "0123456789"} | answers

    def forward(self, tokens):
        equals, endless = Copy.vocab.ids["="], Copy.vocab.ids["("]
        table = torch.full((len(Copy.vocab),), EOS)
        for digit, answer in self.answers.items(): table[Copy.vocab.ids[digit]] = Copy.vocab.ids[answer]
        before = torch.nn.functional.pad(tokens, (1, 0))[:, :-1]
        following = torch.where(tokens == endless, endless, EOS)
        return torch.nn.functional.one_hot(torch.where(tokens == equals, table[before], following), 18).float()


def last_digits(levels, n=40):
    """How often each digit ends a prompt of the probe with seed 7."""
    counted = Counter()
    for level in levels:
        prompts = Copy().draw(level, Stream(7, "flips", level=level), n).prompt
        counted.update(Copy.vocab.decode(row) for row in prompts[:, -2:-1])
    return counted


def test_untouched_models_have_no_flips():
    models = [Lookup({}), Lookup({"3": "("})]
    before = flip_answers(models, Copy(), [1, 2, 3], 7)
    assert flip_rate(models, before) == 0 and [len(answers) for answers in before] == [3, 3]
    for answers in before:
        for (prompts, outputs), level in zip(answers, (1, 2, 3), strict=True):
            assert torch.equal(prompts, Copy().draw(level, Stream(7, "flips", level=level), 40).prompt)
            assert outputs.shape == (40, Copy().cap(level))


@pytest.mark.parametrize("changed", ["3", "35", "0123456789"])
def test_the_share_of_changed_answers_by_hand(changed):
    models = [Lookup({}), Lookup({})]
    before, digits = flip_answers(models, Copy(), [1, 2, 3], 7), last_digits([1, 2, 3])
    models[1].answers |= dict.fromkeys(changed, "2")
    expected = sum(digits[d] for d in changed) / (2 * 120)
    assert 0 < expected <= 0.5 and flip_rate(models, before) == round(expected, 6)


def test_answers_without_an_end_are_none():
    """They are not asked about, whatever becomes of them; one that loses its end has changed."""
    model = Lookup({"4": "(", "5": "("})
    before, digits = flip_answers([model], Copy(), [2, 3], 7), last_digits([2, 3])
    model.answers |= {"4": "1", "6": "("}
    expected = digits["6"] / (80 - digits["4"] - digits["5"])
    assert digits["4"] and digits["5"] and flip_rate([model], before) == round(expected, 6) > 0
    silent = Lookup(dict.fromkeys("0123456789", "("))
    before = flip_answers([silent], Copy(), [2, 3], 7)
    silent.answers = Lookup({}).answers
    assert flip_rate([silent], before) == 0.0


def test_models_may_be_asked_in_any_order():
    """As members on several threads are: the answers stay with their model."""
    def backwards(f, models): return [f(m) for m in reversed(list(models))][::-1]
    models = [Lookup({}), Lookup({"3": "2"})]
    before = flip_answers(models, Copy(), [1, 2], 7, each=backwards)
    assert flip_rate(models, before, each=backwards) == flip_rate(models[::-1], before[::-1]) == 0
    assert flip_rate(models, before[::-1]) == round(last_digits([1, 2])["3"] / 80, 6)


@pytest.mark.parametrize("n, chosen", [
    (1, [0]), (6, [0, 1, 2, 3, 4, 5]), (7, [0, 1, 2, 4, 5, 6]), (11, [0, 2, 4, 6, 8, 10]),
    (101, [0, 20, 40, 60, 80, 100])])
def test_levels_of_the_probe_are_spread(n, chosen):
    assert spread_levels(list(range(n))) == chosen and spread_levels([(1, i) for i in range(n)]) == [
        (1, i) for i in chosen]


# alarms

def a_round(r, flips, kept):
    report = dict(made=100, kept=kept, right=0, possible=0)
    return Round(r, [r + 3], r + 3, 4, filter=[report] if r else [], flips=flips)


@pytest.mark.parametrize("flips, kept, sentence", [
    (0.0, 90, ""), (0.0099, 31, ""), (0.01, 90, "alarm: 1.0% of the answers at taught levels changed"),
    (0.5, 0, "alarm: 50.0% of the answers at taught levels changed"),
    (0.0, 29, "alarm: 29% of the labels were kept, 90% in round 1"), (None, 90, "")])
def test_alarms(flips, kept, sentence):
    """One answer of a hundred has changed, or fewer are kept than a third of round 1's."""
    rounds = [a_round(0, None, 0), a_round(1, 0.001, 90), a_round(2, flips, kept), a_round(3, 0.0, 90)]
    assert alarm(rounds[:3]) == sentence and alarm(rounds) == alarm(rounds[:2]) == alarm(rounds[:1]) == ""
    assert first_alarm(rounds) == (2 if sentence else None)


# as a round records it

def test_evidence_is_json(talkative):
    """Of three models that label two levels, as a line of a record keeps it."""
    models = [Decoder(ModelConfig(layers=1, heads=2, width=16, ffn=16), seed) for seed in range(3)]
    reports = []
    for own in range(3):
        stream = Stream(0, "self", own, round=1)
        reports.append(label(models, own, Copy(), parse_filter("vote:2/3"), [3, 4], 120, stream)[1]["evidence"])
    found = add_up(reports)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for name in ("votes", "lengths"):
        counts = [sum(sum(row) if name == "lengths" else row[0] for row in table.values())
                  for table in found[name].values()]
        assert counts == [180, 180], name
    assert [len(positions) for positions in found["positions"].values()] == [4, 5]
    assert all(len(rows) == 50 and {row[0] for row in rows} == {0, 1, 2} for rows in found["wrong"].values())
    done = Round(1, [3, 4], 4, 10, flips=0.25, **found)
    assert parse_round(round_line(done).encode()) == done


def test_what_is_gathered_of_a_level():
    c, t = many(6, right=(1,))
    assert gather(c, t, STREAM) == {
        "votes": {}, "lengths": {"0": [1, 5]}, "positions": [0, 5, 0, 0, 0, 0, 0, 0],
        "wrong": sample_wrong(c, t, STREAM)}
