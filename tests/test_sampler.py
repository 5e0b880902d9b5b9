"""Decoding: the same answers as a plain loop, whatever ends first, and accuracy with its interval."""
import math

import pytest
import torch
import torch.nn.functional as F

from self_improve.arithmetic import ForwardAddition, Multiplication
from self_improve.mazes import MazeHops
from self_improve.model import POSITIONS, Decoder, ModelConfig
from self_improve.sampler import PLAIN, Accuracy, Engine, accuracy, choose_token, decode, matches_greedy
from self_improve.streams import Stream
from self_improve.tasks import BOS, EOS, PAD, Copy, draw_problems, rows_equal
from self_improve.train import train_step

CAP = 14
VOCAB = 18


def chatty(positions="nope", seed=0):
    """Random weights that end some rows early and some late, so that finished rows are dropped on the way."""
    config = ModelConfig(layers=2, heads=2, width=32, ffn=32, vocab=VOCAB, positions=positions, std=0.3)
    model = Decoder(config, seed).double().eval()
    with torch.no_grad(): model.head.weight[EOS] *= 1.7
    return model


class NoCache(torch.nn.Module):
    """The same model as one's own might be: from tokens to logits, and no more."""
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens): return self.model(tokens)


def some_prompts(n=60): return Copy().draw(5, Stream(0, "self", level=5), n).prompt


@torch.no_grad()
def by_hand(model, prompts, cap, temperature=0.0, stream=None):
    """One token at a time, no cache, every row to the end."""
    n = len(prompts)
    read = torch.cat([torch.full((n, 1), BOS), prompts.long()], 1)
    going = torch.ones(n, dtype=torch.bool)
    tokens = torch.zeros(n, cap, dtype=torch.long)
    logprob = torch.zeros(n, cap, dtype=torch.float64)
    for t in range(cap):
        logits = model(read)[:, -1]
        noise = stream.uniform(torch.arange(n) * cap + t, logits.shape[1]) if temperature else None
        token = choose_token(logits, temperature, noise)
        tokens[going, t] = token[going]
        logprob[going, t] = logits.log_softmax(1)[going, token[going]]
        going = going & (token != EOS)
        read = torch.cat([read, token[:, None]], 1)
    return tokens, logprob


def test_rows_end_at_different_times():
    """Without that the comparisons below would not touch what drops finished rows."""
    tokens, _ = by_hand(chatty(), some_prompts(), CAP)
    ends = torch.where((tokens == EOS).any(1), (tokens == EOS).int().argmax(1), CAP)
    assert len(ends.unique()) >= 4 and 0 < (ends < CAP).float().mean() < 1


@pytest.mark.parametrize("wrap", [lambda model: model, NoCache], ids=["cache", "no cache"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_decoding_equals_the_plain_loop(positions, wrap):
    model, prompts = chatty(positions), some_prompts()
    output = decode(wrap(model), prompts, CAP, logprobs=True)
    tokens, logprob = by_hand(model, prompts, CAP)
    assert torch.equal(output.tokens.long(), tokens)
    torch.testing.assert_close(output.logprob.double(), logprob, atol=1e-5, rtol=0)
    assert output.tokens.dtype == torch.uint8 and output.logprob.dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 7, 59, 60, 1024])
def test_block_size_changes_nothing(rows):
    expected = decode(chatty(), some_prompts(), CAP).tokens
    assert torch.equal(decode(chatty(), some_prompts(), CAP, rows=rows).tokens, expected)


@pytest.mark.parametrize("wrap", [lambda model: model, NoCache], ids=["cache", "no cache"])
def test_finished_rows_stop_costing_work(wrap):
    model, read = wrap(chatty()), []
    model.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    tokens = decode(model, some_prompts(), CAP).tokens
    going = [int((~(tokens[:, :t] == EOS).any(1)).sum()) for t in range(len(read))]
    assert read == going and read[0] == 60 and read[-1] < 60


def test_with_a_cache_each_token_is_read_once():
    model, read = chatty(), []
    model.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    decode(model, some_prompts(), CAP)
    assert read == [7] + [1] * (CAP - 1)


def test_decoding_stops_when_all_have_ended():
    """A head that always says EOS takes one pass."""
    model, calls = Decoder(ModelConfig(layers=1, heads=1, width=8, ffn=8, positions="rope")), []

    def say_eos(module, inputs, logits):
        calls.append(1)
        return F.one_hot(torch.full(logits.shape[:2], EOS), logits.shape[2]).float()

    model.register_forward_hook(say_eos)
    assert decode(model, some_prompts(3), 9).tokens.tolist() == [[EOS] + [PAD] * 8] * 3 and len(calls) == 1


@pytest.mark.parametrize("cap", [1, 3, 20])
def test_cap_and_padding(cap):
    output = decode(chatty(), some_prompts(), cap, logprobs=True)
    assert output.tokens.shape == output.logprob.shape == (60, cap)
    after = (output.tokens == EOS).cumsum(1) - (output.tokens == EOS).int() > 0
    assert (output.tokens[after] == PAD).all() and (output.logprob[after] == 0).all()
    assert (output.logprob[~after] < 0).all()
    longer = decode(chatty(), some_prompts(), cap + 5).tokens
    assert torch.equal(output.tokens, longer[:, :cap]), "the cap changed what is said before it"


def test_no_log_probabilities_unless_asked():
    assert decode(chatty(), some_prompts(2), 3).logprob is None
    assert matches_greedy(chatty(), some_prompts(2), some_prompts(2))[1] is None


def test_no_prompts_no_outputs():
    prompts = some_prompts(2)[:0]
    for model in (chatty(), NoCache(chatty())):
        assert decode(model, prompts, 3, logprobs=True).logprob.shape == (0, 3)
        agrees, logprob = matches_greedy(model, prompts, prompts, logprobs=True)
        assert agrees.shape == (0,) and agrees.dtype == torch.bool and logprob.shape == prompts.shape


# with a temperature

def test_tempered_decoding_depends_on_its_stream_alone():
    model, prompts, stream = chatty(), some_prompts(), Stream(0, "sample")
    expected = decode(model, prompts, CAP, 1.3, stream).tokens
    for rows in (1, 7, 59): assert torch.equal(decode(model, prompts, CAP, 1.3, stream, rows=rows).tokens, expected)
    assert torch.equal(expected.long(), by_hand(model, prompts, CAP, 1.3, stream)[0])
    assert torch.equal(decode(NoCache(model), prompts, CAP, 1.3, stream).tokens, expected)
    assert not torch.equal(expected, decode(model, prompts, CAP, 1.3, Stream(1, "sample")).tokens)


def test_same_prompts_in_a_block_say_different_things():
    tokens = decode(chatty(), some_prompts(1).expand(64, -1), 6, 1.5, Stream(0, "sample")).tokens
    assert len(tokens.unique(dim=0)) > 10


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution(temperature):
    """Chi-square with three degrees of freedom stays under 16.3 in 999 of 1,000 draws; the seed is fixed."""
    logits, n = torch.tensor([0.0, 1.0, 2.0, -1.0]), 20_000
    expected = n * (logits.double() / temperature).softmax(0)
    drawn = choose_token(logits.expand(n, -1), temperature, Stream(3, "sample").uniform(n, 4)).bincount(minlength=4)
    assert ((drawn - expected) ** 2 / expected).sum() < 16.3


def test_log_probabilities_are_the_models_own():
    """Not those of the tempered distribution: a filter compares them across temperatures."""
    model, prompts, stream = chatty(), some_prompts(8), Stream(0, "sample")
    output = decode(model, prompts, 5, 2.0, stream, logprobs=True)
    _, logprob = by_hand(model, prompts, 5, 2.0, stream)
    torch.testing.assert_close(output.logprob.double(), logprob, atol=1e-5, rtol=0)


def test_a_temperature_needs_a_stream():
    with pytest.raises(ValueError, match="stream"): decode(chatty(), some_prompts(1), 2, 1.0)


def test_greedy_takes_the_likeliest():
    assert choose_token(torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, -1.0]])).tolist() == [1, 0]


# one reading instead of decoding

@pytest.mark.parametrize("rows", [7, 1024])
@pytest.mark.parametrize("positions", POSITIONS)
def test_reading_an_answer_tells_whether_it_would_be_said(positions, rows):
    """As decoding and comparing: for answers right, wrong in one token, cut short, behind PAD, and without an end."""
    model, prompts = chatty(positions), some_prompts()
    said = decode(model, prompts, CAP).tokens
    answers, kind = said.clone(), torch.arange(60) % 4
    ends = (said == EOS).any(1)
    answers[kind == 1, 0] = 3 + (answers[kind == 1, 0] - 2) % 15
    # before the end PAD is a token like any other, and the model did not say it
    answers[kind == 3, 0] = PAD
    answers[kind == 2, 1:] = PAD
    answers[(kind == 2) & (answers[:, 0] != EOS), 1] = EOS
    agrees, logprob = matches_greedy(model, prompts, said, logprobs=True, rows=rows)
    assert torch.equal(agrees, ends)
    _, expected = by_hand(model, prompts, CAP)
    torch.testing.assert_close(logprob.double()[ends], expected[ends], atol=1e-5, rtol=0)
    agrees, _ = matches_greedy(model, prompts, answers, rows=rows)
    assert torch.equal(agrees, rows_equal(answers, said) & ends)
    assert 3 < agrees.sum() < 30 and (~ends[kind == 0]).any()


# accuracy

PUBLISHED = [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (950, 1000, 0.9347, 0.9619),
             (1, 1, 0.2065, 1.0)]


@pytest.mark.parametrize("right, n, low, high", PUBLISHED)
def test_wilson_interval(right, n, low, high):
    """Published values, to four digits."""
    assert Accuracy(right, n).interval() == pytest.approx((low, high), abs=5e-5)
    assert Accuracy(right, n).value == right / n


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_interval_solves_its_equation(n):
    """At each end the observed share lies 1.96 standard deviations away."""
    for right in {0, n // 3, n}:
        for end in Accuracy(right, n).interval():
            if 0 < end < 1: assert abs(right / n - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n))


class Scripted(torch.nn.Module):
    """A model that copies, except that it is wrong about problems that begin with 7."""
    def forward(self, tokens):
        ids = Copy.vocab.ids
        digits = int((tokens[0] == ids["="]).int().argmax()) - 1
        said = torch.full_like(tokens, EOS)
        for k in range(min(digits, tokens.shape[1] - digits - 1)): said[:, digits + 1 + k] = tokens[:, k + 1]
        said[:, digits + 1] -= (tokens[:, 1] == ids["7"]).long()
        return F.one_hot(said, VOCAB).float()


def test_accuracy_counts_exact_matches_on_fresh_problems():
    measured = accuracy(Scripted(), Copy(), [2, 4], seed=3, n=200)
    for level in (2, 4):
        _, block = draw_problems(Copy(), level, Stream(3, "eval", level=level), 200)
        right = int((block.prompt[:, 0] != Copy.vocab.ids["7"]).sum())
        assert (measured[level].right, measured[level].n) == (right, 200) and 150 < right < 200


def test_accuracy_uses_the_judge_it_is_given():
    def half_right(model, prompts, answers): return torch.arange(len(prompts)) % 2 == 0, None
    measured = accuracy(torch.nn.Identity(), Copy(), [3], n=50, matches=half_right)
    assert measured[3] == Accuracy(25, 50)


def test_accuracy_does_not_see_the_training_problems():
    rows = {}
    for purpose in ("base", "self", "eval"):
        prompts = Copy().draw(12, Stream(0, purpose, level=12), 300).prompt
        rows[purpose] = {bytes(r) for r in prompts.tolist()}
    assert not rows["eval"] & (rows["base"] | rows["self"])


# other tasks

class Knows(torch.nn.Module):
    """A model that knows a task's answers, except to problems whose first token is odd."""
    def __init__(self, task, prompt=None):
        super().__init__()
        self.task, self.prompt = task, prompt

    def forward(self, tokens):
        # prompts of an arithmetic task end with '='
        prompt = self.prompt or int((tokens[0] == self.task.vocab.ids["="]).int().argmax())
        right = self.task.solve(tokens[:, 1:prompt + 1].to(torch.uint8)).long()
        right[:, 0] += tokens[:, 1] % 2
        said = F.pad(right, (prompt, tokens.shape[1]))[:, :tokens.shape[1]]
        return F.one_hot(said, len(self.task.vocab)).float()


OTHERS = [(ForwardAddition(), 1), (ForwardAddition(), 3), (Multiplication(), (1, 3)), (Multiplication(), (3, 1)),
          (MazeHops(nodes=8), 3)]


@pytest.mark.parametrize("task, level", OTHERS, ids=lambda x: getattr(x, "name", str(x)))
def test_answers_of_any_task_and_length(task, level):
    """Sums of one level end at two different tokens, so rows leave the block while others go on."""
    shape, block = draw_problems(task, level, Stream(0, "eval", level=level), 300)
    model = Knows(task, block.prompt.shape[1])
    said = decode(model, block.prompt, task.cap(shape), rows=128).tokens
    right = block.prompt[:, 0] % 2 == 0
    assert torch.equal(task.check(block, said), right) and 30 < right.sum() < 270
    assert torch.equal(matches_greedy(model, block.prompt, block.answer)[0], right)
    ends = (said == EOS).int().argmax(1)
    assert torch.equal(ends, (block.answer == EOS).int().argmax(1)), "each row ends where its answer does"
    assert len(ends.unique()) == (2 if task.name == "forward_addition" else 1)
    if task.name == "forward_addition":
        endless = torch.where(block.answer == EOS, PAD, block.answer)
        assert not matches_greedy(model, block.prompt, endless)[0].any()


def test_levels_that_are_pairs():
    """A problem of (1, 2) is not one of (2, 1), and each pair has its own measurement under its own key."""
    task = Multiplication()
    measured = accuracy(Knows(task), task, task.levels(1, 2), seed=5, n=100)
    assert list(measured) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for level, a in measured.items():
        shape, block = draw_problems(task, level, Stream(5, "eval", level=level), 100)
        assert shape == level and block.prompt.shape[1] == sum(level) + 2
        assert (a.right, a.n) == (int((block.prompt[:, 0] % 2 == 0).sum()), 100)
    assert len({a.right for a in measured.values()}) > 1


# the engine

def test_the_plain_engine_is_the_three_functions():
    assert PLAIN == Engine("plain", train_step, decode, matches_greedy)
