"""Filters on hand-made candidates: what each keeps, what it may see, and how it is scored."""
import dataclasses
import math

import pytest
import torch

from self_improve.arithmetic import ForwardAddition, Multiplication
from self_improve.filter import (
    FILTERS,
    Candidates,
    Chain,
    Confidence,
    Filter,
    KeepAll,
    Kept,
    Length,
    MinKept,
    Oracle,
    Verifier,
    Vote,
    keep_where,
    parse_filter,
    register_filter,
)
from self_improve.mazes import CHECKS, MAZE, MazeHops
from self_improve.streams import Stream
from self_improve.tasks import ARITHMETIC, EOS, PAD, Copy, Task, Truth

WIDTH = 12


def sheet(*texts):
    """Outputs as text, `$` for EOS: one uint8 row each."""
    rows = [[EOS if ch == "$" else ARITHMETIC.ids[ch] for ch in t] for t in texts]
    return torch.tensor([r + [PAD] * (WIDTH - len(r)) for r in rows], dtype=torch.uint8)


def ask(*members, logprobs=None, own=0):
    """Candidates from the outputs of each member."""
    outputs = torch.stack([sheet(*m) for m in members])
    prompts = torch.zeros(len(members[0]), 3, dtype=torch.uint8)
    return Candidates(prompts, outputs, outputs[own], logprobs, Copy())


def confident(*rows):
    """Log-probabilities from probabilities, one list a row."""
    return torch.tensor([[list(map(math.log, r)) + [0.0] * (WIDTH - len(r)) for r in rows]])


def kept(filter, candidates, *truth):
    return filter(candidates, *truth).index.tolist()


def labels(k):
    return [ARITHMETIC.decode(r) for r in k.label]


# what no filter sees

def test_candidates_hold_no_truth():
    names = {f.name for f in dataclasses.fields(Candidates)}
    assert names == {"prompts", "outputs", "label", "logprobs", "task", "asker"}
    assert [f for f in FILTERS.values() if "truth" in f.needs] == [Oracle]
    for make in FILTERS.values():
        if make is Oracle: continue
        with pytest.raises(TypeError): make()(ask(["1$"], ["1$"]), Truth(sheet("1$")))


@pytest.mark.parametrize("filter", ["none", "length:12", "length:12+none", "vote", "confidence:1", "oracle"])
def test_rows_without_an_end_are_dropped_before_any_filter_looks(filter):
    outputs = ["12$", "123456789012", "34$", "12", "$"]
    c = ask(outputs, outputs, logprobs=torch.zeros(2, 5, WIDTH))
    chain, truth = parse_filter(filter), Truth(sheet("12$", "12345678901$", "34$", "12$", "$"))
    assert kept(chain, c, *[truth] if "truth" in chain.needs else []) == [0, 2, 4]


class Loose(Task):
    name = "loose"

    def verify(self, prompts, outputs): return outputs[:, 0] != ARITHMETIC.ids["9"]


def test_verifier_asks_the_task():
    c = dataclasses.replace(ask(["12$", "12", "92$"]), task=Loose())
    assert kept(Verifier(), c) == [0]
    with pytest.raises(ValueError, match="copy has no verifier"): Verifier()(ask(["1$"]))


# the structure of a maze

PATHS = {
    "98>9>33>16$": "right", "98>9>16$": "jump", "98>9>33$": "short", "98>9>64>58$": "astray",
    "98>9>64>9>33>16$": "detour", "98>9>33>$": "sign", "98>9>33>16": "endless", "9>33>16$": "late",
}


def walks():
    """Outputs for one maze of six nodes, one for each thing that can be wrong."""
    maze = MazeHops(nodes=6).parse("98>16#33:16,9-64:9,58-98:9-9:64,98,33-58:64-16:33=").prompt
    rows = [MAZE.encode(p.rstrip("$")) + [EOS] * p.endswith("$") for p in PATHS]
    outputs = torch.tensor([r + [PAD] * (14 - len(r)) for r in rows], dtype=torch.uint8)
    return Candidates(maze.repeat(len(PATHS), 1), outputs[None], outputs, task=MazeHops(nodes=6))


@pytest.mark.parametrize("name, passing", [
    ("none", "right jump short astray detour sign late"),
    ("verifier:format", "right jump short astray detour late"),
    ("verifier:moves", "right short astray detour late"),
    ("verifier:ends", "right jump detour"),
    ("verifier:repeats", "right jump short astray late"),
    ("verifier:moves,ends", "right detour"),
    ("verifier:ends,repeats", "right jump"),
    ("verifier:moves,repeats", "right short astray late"),
    ("verifier:moves,ends,repeats", "right"),
    ("verifier", "right"),
    ("verifier:ends+verifier:moves", "right detour"),
])
def test_what_each_check_lets_through(name, passing):
    assert [list(PATHS.values())[i] for i in kept(parse_filter(name), walks())] == passing.split()


def test_all_checks_together_leave_the_right_paths_and_no_others():
    """A thousand paths, most of them with a token changed: in a tree the structure tells as much as the answer."""
    block = MazeHops(nodes=12).draw((12, 4), Stream(0, "self", level=4), 1000)
    width = block.answer.shape[1]
    hit = Stream(0, "noise").integers(1000, 2, torch.tensor([3 * width, len(MAZE)]))
    outputs = block.answer.clone()
    wrong = (hit[:, 0] < width).nonzero()[:, 0]
    outputs[wrong, hit[wrong, 0]] = hit[wrong, 1].to(torch.uint8)
    c = Candidates(block.prompt, outputs[None], outputs, task=MazeHops(nodes=12))
    expected = kept(Oracle(), c, Truth(block.answer))
    assert kept(Verifier(), c) == expected and 600 < len(expected) < 950
    for check in CHECKS: assert set(expected) <= set(kept(Verifier((check,)), c))


@pytest.mark.parametrize("name", ["speed", "moves,speed", "format,end"])
def test_a_check_that_mazes_do_not_have_is_refused(name):
    bad = name.split(",")[-1]
    with pytest.raises(ValueError, match=f"unknown check '{bad}': choose among format, moves, ends, repeats"):
        parse_filter("verifier:" + name)(walks())


# length

def test_one_runaway_row_does_not_drop_the_others():
    rows = ["1" * 5 + "$"] * 500 + ["1" * 11 + "$"] + ["1" * 5 + "$"] * 500 + ["1" * 4 + "$"] * 23
    assert kept(Length(), ask(rows)) == [i for i in range(1001) if i != 500]


@pytest.mark.parametrize("slack, expected", [(0, [0, 5]), (1, [0, 1, 5]), (2, [0, 1, 2, 5]), (11, [0, 1, 2, 3, 5])])
def test_slack(slack, expected):
    assert kept(Length(slack), ask(["12345$", "1234$", "123$", "$", "1234567", "54321$"])) == expected


def test_a_row_without_an_end_is_no_reference():
    assert kept(Length(), ask(["12$", "12345678901", "34$"])) == [0, 2]


def test_length_compares_within_a_group():
    c = ask(["123$", "12$", "12$", "1$"])
    assert kept(Length(group=2), c) == [0, 2] and kept(Length(), c) == [0]
    assert kept(Length(group=2), ask(["1", "2", "12$", "12$"])) == [2, 3], "a group in which nothing ends keeps nothing"


def chains():
    """A right 5 × 6 chain of thought, and the same with something left out: tokens that it saves, and the text."""
    task = Multiplication()
    block = task.draw((5, 6), Stream(0, "self", level=(5, 6)), 1)
    right = task.show(block.answer[0])
    steps, _, product = right.partition("=")
    steps = steps.split("+")

    def without(step, total):
        left = []
        for i, s in enumerate(steps):
            if i != step: left.append(s)
            elif total: left.append(s.partition("(")[0])
        return "+".join(left) + "=" + product
    return [
        (0, right), (0, right[:-1] + "0"), (1, right[:-1]), (7, without(0, False)), (9, without(1, True)),
        (10, without(2, True)), (12, without(5, False)), (19, without(2, False)),
    ]


def test_thresholds_of_the_length_filter():
    """The released code keeps an output if place −τ of the batch is filled: slack τ − 1.
    The paper's words, 'more than 10 shorter', are slack 10."""
    shorter, texts = zip(*chains(), strict=True)
    width = len(texts[0]) + 1
    rows = [ARITHMETIC.encode(t) + [EOS] + [PAD] * (width - len(t) - 1) for t in texts]
    label = torch.tensor(rows, dtype=torch.uint8)
    assert [width - n for n in shorter] == (label != PAD).sum(1).tolist()
    c = Candidates(label[:, :3], label[None], label, task=Multiplication())
    for tau in range(1, 22):
        released = (label[:, -tau] != PAD).nonzero()[:, 0].tolist()
        expected = [i for i, n in enumerate(shorter) if n < tau]
        assert kept(parse_filter(f"length:{tau - 1}"), c) == released == expected
    assert [kept(parse_filter(f"length:{s}"), c)[-1] for s in (0, 9, 10)] == [1, 4, 5]


def test_forward_addition_needs_a_slack_of_one():
    """Without it, of nothing but right answers only the sums with a last carry stay."""
    block = ForwardAddition().draw((4, 4), Stream(0, "self", level=4), 3000)
    c = Candidates(block.prompt, block.answer[None], block.answer, task=ForwardAddition())
    assert kept(Length(0), c) == (block.answer[:, -1] == EOS).nonzero()[:, 0].tolist()
    assert 0 < len(Length(0)(c)) < 2500 and len(Length(1)(c)) == 3000


@pytest.mark.parametrize("fields", [{"slack": -1}, {"group": 0}, {"quantile": 0}, {"quantile": 1.5}])
def test_impossible_lengths_are_refused(fields):
    (name, value), = fields.items()
    with pytest.raises(ValueError, match=f"{name}={value} must be"): Length(**fields)


# vote

def test_the_common_answer_becomes_the_label():
    c = ask(["12$", "55$", "7$", "1$"], ["12$", "34$", "8$", "2$"], ["99$", "34$", "9$", "2$"])
    k = Vote(2, 3)(c)
    assert k.index.tolist() == [0, 1, 3] and labels(k) == ["12", "34", "2"]


def test_votes_needed():
    outputs = [
        ["1$", "1$", "1$", "1$", "1$"],
        ["1$", "1$", "1$", "1$", "2$"],
        ["1$", "1$", "1$", "2$", "3$"],
        ["1$", "1$", "2$", "2$", "4$"],
        ["1$", "2$", "3$", "3$", "5$"],
    ]
    # columns: 5, 4, 3, 2 (tied with another 2) and 1 votes
    c = ask(*outputs)
    assert [kept(Vote(k, 5), c) for k in (5, 4, 3, 2, 1)] == [[0], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    assert kept(Vote(), c) == [0, 1], "seven tenths of five are four"
    assert kept(Vote(), ask(*outputs[:3])) == [0, 1, 2], "seven tenths of three are three"


def test_a_tie_is_dropped_whoever_comes_first():
    assert kept(Vote(2, 4), ask(["1$"], ["1$"], ["2$"], ["2$"])) == []
    assert kept(Vote(2, 4), ask(["1$"], ["2$"], ["2$"], ["1$"])) == []
    assert kept(Vote(2, 4), ask(["1$"], ["1$"], ["2$"], ["3$"])) == [0]


def test_a_member_without_an_end_is_no_voter():
    c = ask(["111", "111", "12$"], ["111", "12$", "111"], ["111", "12$", "111"])
    k = Vote(2, 3)(c)
    assert k.index.tolist() == [1] and labels(k) == ["12"]
    assert kept(Vote(1, 3), c) == [1, 2], "one vote for an end beats two for none"


def test_a_vote_counts_whole_answers():
    assert kept(Vote(2, 2), ask(["12$", "12$"], ["123$", "12$"])) == [1]


def test_a_vote_wants_the_same_steps_not_only_the_same_product():
    """Five chains of 12 × 345, all with the right product; two of them have a wrong step."""
    right = "060+0840(0450)+00630=04140"
    outputs = [right, right, right.replace("(0450)", "(0460)"), right, right.replace("+0840", "+0850")]
    label = torch.tensor([ARITHMETIC.encode(t) + [EOS] for t in outputs], dtype=torch.uint8)[:, None]
    for own in range(5):
        c = Candidates(label[0, :, :7], label, label[own], task=Multiplication())
        assert len(Vote(4, 5)(c)) == len(Vote()(c)) == 0 and labels(Vote(3, 5)(c)) == [right]


@pytest.mark.parametrize("m, vote, message", [
    (1, Vote(), "at least 2 models, there is 1"), (2, Vote(2, 3), "vote:2/3 needs 3 models, there are 2"),
])
def test_a_vote_needs_its_models(m, vote, message):
    with pytest.raises(ValueError, match=message): vote(ask(*[["1$"]] * m))
    with pytest.raises(ValueError, match=message): Chain((KeepAll(), vote)).validate(Copy(), 1, m)


# confidence

SURE = confident([.9, .9, .9], [.99, .2, .9], [.5, .5, .5], [.8, .99, .99], [.99, .99, .99])
GIVEN = ["12$", "34$", "56$", "78$", "9999"]


@pytest.mark.parametrize("share, expected", [
    (1.0, [0, 1, 2, 3]), (0.75, [0, 2, 3]), (0.5, [0, 3]), (0.25, [0]), (0.1, []),
])
def test_confidence_keeps_a_share_by_the_least_likely_token(share, expected):
    """A share of the rows that end; the mean or the product over tokens would order them otherwise."""
    assert kept(Confidence(share), ask(GIVEN, logprobs=SURE)) == expected


@pytest.mark.parametrize("bound, expected", [
    (0.95, []), (0.85, [0]), (0.6, [0, 3]), (0.4, [0, 2, 3]), (0.1, [0, 1, 2, 3]),
])
def test_confidence_above_a_bound(bound, expected):
    assert kept(Confidence(bound=bound), ask(GIVEN, logprobs=SURE)) == expected


def test_confidence_is_that_of_the_members_who_gave_the_label():
    """The second member is sure of something else: that says nothing about the label."""
    logprobs = torch.cat([confident([.5] * 3, [.9] * 3), confident([.99] * 3, [.4] * 3)])
    c = ask(["12$", "34$"], ["99$", "34$"], logprobs=logprobs)
    assert Confidence().score(c).exp().tolist() == pytest.approx([0.5, math.sqrt(0.9 * 0.4)])


def test_equally_sure_rows_stay_in_order():
    assert kept(Confidence(0.5), ask(["1$"] * 40, logprobs=torch.zeros(1, 40, WIDTH))) == list(range(20))


# oracle

def test_oracle_keeps_what_is_right_whatever_its_probability():
    c = ask(["12$", "34$", "5$"], logprobs=confident([.1], [.9], [.9]))
    assert kept(Oracle(), c, Truth(sheet("12$", "33$", "55$"))) == [0]
    assert kept(Oracle(), c, Truth(sheet("12$", "33$", "5$")[:, :3])) == [0, 2], "the truth is as wide as it is"


def test_a_chain_without_truth_refuses_the_oracle():
    with pytest.raises(ValueError, match="oracle needs the truth"): parse_filter("length+oracle")(ask(["1$"]))


# enough or none

@pytest.mark.parametrize("n, kept", [(1, 3), (3, 3), (4, 0)])
def test_least_wants_enough_or_none(n, kept):
    rows = torch.tensor([[5, EOS, PAD]] * 3, dtype=torch.uint8)
    assert len(MinKept(n)(Candidates(rows, rows[None], rows))) == kept


def test_least_counts_what_the_filters_before_it_left():
    # three of five are as long as the longest allowed
    rows = torch.tensor([[5, EOS, PAD]] * 3 + [[5, 5, EOS]] * 2, dtype=torch.uint8)
    c = Candidates(rows, rows[None], rows)
    assert [len(parse_filter(f"length:0+least:{n}")(c)) for n in (2, 3)] == [2, 0]
    assert parse_filter("least").filters == (MinKept(100),)


# chains

def test_the_order_of_a_chain_matters():
    """Length before the vote looks at the labelling model's own outputs, after it at the common answer."""
    c = ask(["1234$", "12$", "1234$"], ["1234$", "1234$", "12$"], ["1234$", "1234$", "12$"])
    first, last = parse_filter("length+vote:2/3")(c), parse_filter("vote:2/3+length")(c)
    assert first.index.tolist() == [0, 2] and labels(first) == ["1234", "12"]
    assert last.index.tolist() == [0, 1] and labels(last) == ["1234", "1234"]


def test_rows_of_a_chain_are_those_of_the_candidates():
    c = ask(["1", "12$", "3$", "45$", "67$", "89$"], logprobs=confident([1], [.1], [.9], [.9], [.2], [.8]))
    k = parse_filter("length+confidence:0.5")(c)
    assert k.index.tolist() == [3, 5] and torch.equal(k.label, c.label[k.index])
    k = Chain((Length(), Oracle(), Confidence(1.0)))(c, Truth(sheet("1$", "12$", "3$", "0$", "67$", "89$")))
    assert k.index.tolist() == [1, 4, 5]


def test_a_chain_needs_what_its_parts_need():
    assert parse_filter("length+vote+confidence+oracle").needs == ("votes", "logprobs", "truth")


@pytest.mark.parametrize("filter", [
    "none", "length", "vote", "confidence", "length+vote", "vote+confidence", "oracle",
])
def test_nothing_to_keep(filter):
    """All rows endless, or none at all."""
    chain = parse_filter(filter)
    endless = ask(["11", "22"], ["11", "22"], logprobs=torch.zeros(2, 2, WIDTH))
    for c in (endless, endless.take(Kept(torch.zeros(0, dtype=torch.long), endless.label[:0]))):
        truth = [Truth(sheet("11$", "22$")[:len(c)])] if "truth" in chain.needs else []
        k = chain(c, *truth)
        assert len(k) == 0 and k.index.dtype == torch.int64 and k.label.shape == (0, WIDTH)


# from text

@pytest.mark.parametrize("text, filters", [
    ("none", [KeepAll()]), ("length", [Length()]), ("length:0", [Length(0)]), ("length:3", [Length(3)]),
    ("length:1/1", [Length(1, quantile=1.0)]), ("length:1/.5", [Length(1, quantile=0.5)]),
    ("vote", [Vote()]), ("vote:4/5", [Vote(4, 5)]), ("least", [MinKept(100)]), ("least:50", [MinKept(50)]),
    ("confidence", [Confidence()]), ("confidence:0.5", [Confidence(0.5)]), ("confidence:1", [Confidence(1.0)]),
    ("verifier", [Verifier()]), ("oracle", [Oracle()]),
    ("verifier:moves", [Verifier(("moves",))]), ("verifier:moves,ends", [Verifier(("moves", "ends"))]),
    ("length:10+verifier:ends", [Length(10), Verifier(("ends",))]),
    ("length:1+vote:3/3", [Length(1), Vote(3, 3)]),
    ("vote+confidence:0.9+length", [Vote(), Confidence(0.9), Length()]),
])
def test_forms_of_a_filter(text, filters):
    assert parse_filter(text) == Chain(tuple(filters))


@pytest.mark.parametrize("text", [
    "", "lenght", "Length", "length:", "length:x", "length:1.5", "length:-1", "length:nan", "length:1:2", "length:1/0",
    "vote:", "vote:3", "vote:a/b", "vote:4/3", "vote:0/3", "vote:-1/3", "vote:3/0", "vote:0/0", "vote:3/-3",
    "vote:3/3/3", "vote:/", "confidence:", "confidence:0", "confidence:1.1", "confidence:-0.5", "confidence:nan",
    "confidence:x", "none:1", "oracle:1", "verifier:", "verifier:moves,", "verifier:,ends", "verifier:moves, ends",
    "verifier:Moves", "verifier:1", "verifier:moves/ends", "length+", "+length", "length,vote", "length + vote",
])
def test_what_is_no_filter_is_refused_with_a_sentence(text):
    with pytest.raises(ValueError) as e: parse_filter("none+" + text)
    worst = max(text.split("+"), key=lambda part: part not in FILTERS)
    assert worst in str(e.value) and len(str(e.value)) > len(worst) + 20 and "\n" not in str(e.value)
    assert "invalid literal" not in str(e.value) and "convert" not in str(e.value)


# a filter of one's own

def even(name="even"):
    """A filter class, made anew with every call as a notebook cell that runs again makes it."""
    @register_filter(name)
    @dataclasses.dataclass(frozen=True)
    class Even(Filter):
        "Keep labels whose first token is even, up to a bound."
        bound: int = 99
        in_text = {"bound": int}

        def __call__(self, candidates):
            first = candidates.label[:, 0]
            return keep_where(candidates, (first % 2 == 0) & (first < self.bound))
    return Even


@pytest.fixture
def registry():
    """The filters of the library come back after a test that registers others."""
    before = dict(FILTERS)
    yield
    FILTERS.clear()
    FILTERS.update(before)


def test_an_own_filter_has_a_name_and_a_place_in_a_chain(registry):
    own = even()
    chain = parse_filter("length+even:9")
    assert chain.filters == (Length(), own(9)) and chain.needs == ()
    # ids of 4 and 6 are odd and even in turn: 3 is PAD, BOS and EOS
    c = ask(["4$", "5$", "6$"])
    assert kept(chain, c) == [i for i in range(3) if c.label[i, 0] % 2 == 0 and c.label[i, 0] < 9]
    chain.validate(Copy(), 1, 1)


def test_an_own_filter_may_be_defined_again_but_takes_no_other_name(registry):
    even()
    second = even()
    assert parse_filter("even").filters == (second(),)
    with pytest.raises(ValueError, match="'vote' belongs to Vote"): even("vote")
    for bad in ("Even", "two words", "a+b", "a:b", ""):
        with pytest.raises(ValueError, match="lower-case letters"): even(bad)


def test_an_own_filter_is_refused_in_one_sentence(registry):
    even()
    with pytest.raises(ValueError, match="unknown filter 'even:x': "): parse_filter("even:x")
    with pytest.raises(ValueError, match=r"unknown filter 'evn': .*even\[:bound\]"): parse_filter("evn")

    @register_filter("bare")
    class Bare(Filter):
        def __init__(self, needed): self.needed = needed
    with pytest.raises(ValueError, match="unknown filter 'bare': .*needed"): parse_filter("bare")
    with pytest.raises(ValueError, match="unknown filter 'bare:3': its name takes no value"): parse_filter("bare:3")
