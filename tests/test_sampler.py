"""Decoding: the same answers as a plain loop, whatever finishes first, and accuracy with its interval."""
import math

import pytest
import torch

from self_improve import sampler
from self_improve.model import POSITIONS, Decoder, ModelConfig
from self_improve.sampler import Accuracy, accuracy, choose, decode, problems, says
from self_improve.tasks import BOS, EOS, PAD, Copy, ForwardAddition, MazeHops, Multiplication, Stream, same_rows

CAP = 14


def chatty(positions="nope", seed=0):
    """Random weights that end some rows early and some late, so that finished rows are dropped on the way."""
    model = Decoder(ModelConfig(layers=2, heads=2, width=32, ffn=32, vocab=18, positions=positions, std=0.3), seed).double().eval()
    with torch.no_grad(): model.head.weight[EOS] *= 1.7
    return model


def some_prompts(n=60): return Copy().draw(5, Stream(0, "self", level=5), n).prompt


@torch.no_grad()
def plainly(model, prompts, cap, temperature=0.0, stream=None):
    """One token at a time, no cache, every row to the end."""
    read, alive = torch.cat([torch.full((len(prompts), 1), BOS), prompts.long()], 1), torch.ones(len(prompts), dtype=torch.bool)
    tokens, logprob = torch.zeros(len(prompts), cap, dtype=torch.long), torch.zeros(len(prompts), cap, dtype=torch.float64)
    for t in range(cap):
        logits = model(read)[:, -1]
        noise = stream.uniform(torch.arange(len(prompts)) * cap + t, logits.shape[1]) if temperature else None
        said = choose(logits, temperature, noise)
        tokens[alive, t] = said[alive]
        logprob[alive, t] = logits.log_softmax(1)[alive, said[alive]]
        alive = alive & (said != EOS)
        read = torch.cat([read, said[:, None]], 1)
    return tokens, logprob


def test_rows_finish_at_different_times():
    """Without that the comparisons below would not touch what drops finished rows."""
    tokens, _ = plainly(chatty(), some_prompts(), CAP)
    ends = torch.where((tokens == EOS).any(1), (tokens == EOS).int().argmax(1), CAP)
    assert len(ends.unique()) >= 4 and 0 < (ends < CAP).float().mean() < 1


@pytest.mark.parametrize("positions", POSITIONS)
def test_decoding_equals_the_plain_loop(positions):
    model, prompts = chatty(positions), some_prompts()
    said, (tokens, logprob) = decode(model, prompts, CAP, logprobs=True), plainly(model, prompts, CAP)
    assert torch.equal(said.tokens.long(), tokens)
    torch.testing.assert_close(said.logprob.double(), logprob, atol=1e-5, rtol=0)
    assert said.tokens.dtype == torch.uint8 and said.logprob.dtype == torch.float32


def test_all_ways_say_what_the_plain_path_says(monkeypatch):
    """Labels and verdicts of a CPU's one call and of the steps that a GPU replays are the same, bit for bit; log-probabilities to rounding."""
    model, prompts, found = chatty(), some_prompts(300), []
    for as_built, one_call in ((False, False), (True, True), (True, False)):
        monkeypatch.setattr(sampler, "as_built", lambda _, answer=as_built: answer)
        monkeypatch.setattr(sampler, "in_one_call", lambda _, answer=one_call: answer)
        said = decode(model, prompts, CAP, logprobs=True)
        wrong = said.tokens.clone()
        wrong[::3, 0] = 5
        found.append((said.tokens, said.logprob, says(model, prompts, said.tokens), says(model, prompts, wrong)))
    for plain, *others in zip(*found):
        for other in others: torch.testing.assert_close(other, plain, atol=1e-5, rtol=0)
    assert 0 < found[0][3].sum() < found[0][2].sum() < 300


@pytest.mark.parametrize("cap", [1, 2, 3, 4, 9, 30])
@pytest.mark.parametrize("check", [1, 2, 8, 100])
def test_replayed_steps_end_where_the_plain_ones_do(cap, check):
    with torch.inference_mode(): tokens, _ = sampler._decode_replayed(chatty(), some_prompts(), cap, check)
    assert torch.equal(tokens.long(), plainly(chatty(), some_prompts(), cap)[0])


def test_only_steps_on_the_same_memory_are_replayed(monkeypatch):
    """What a GPU records must find its inputs and leave its results where they were: a recording that copies nothing tells."""
    def recorded(step):
        answers = step.__self__
        def places(): return [t.data_ptr() for t in (answers.said, answers.tokens, answers.logprob, answers.alive, answers.t, answers.cache.store, answers.cache.at)]
        before = places()
        def replay():
            step()
            assert places() == before
        return replay
    monkeypatch.setattr(sampler, "replayed", recorded)
    with torch.inference_mode(): tokens, _ = sampler._decode_replayed(chatty(), some_prompts(), CAP)
    assert torch.equal(tokens.long(), plainly(chatty(), some_prompts(), CAP)[0])


@pytest.mark.parametrize("rows", [1, 7, 59, 60, 1024])
def test_block_size_changes_nothing(rows):
    assert torch.equal(decode(chatty(), some_prompts(), CAP, rows=rows).tokens, decode(chatty(), some_prompts(), CAP).tokens)


@pytest.mark.parametrize("path", ["plain", "one call"])
def test_finished_rows_stop_costing_work(monkeypatch, path):
    model, read, real = chatty(), [], sampler.logits_of
    for door in ("as_built", "in_one_call"): monkeypatch.setattr(sampler, door, lambda _: path == "one call")
    monkeypatch.setattr(sampler, "_greedy", sampler.greedy)   # not compiled, so that it can be watched
    monkeypatch.setattr(sampler, "logits_of", lambda w, said, *rest: (read.append(len(said)), real(w, said, *rest))[1])
    model.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    tokens = decode(model, some_prompts(), CAP).tokens
    alive = [int(((tokens[:, :t] == EOS).any(1) == 0).sum()) for t in range(len(read))]
    assert read[0] == 60 and read[-1] < 60 and all(a <= r and a >= 0.8 * r for a, r in zip(alive, read))


def test_decoding_stops_when_all_have_finished():
    """A head that always says EOS takes one pass."""
    model, calls = Decoder(ModelConfig(layers=1, heads=1, width=8, ffn=8, positions="rope")), []
    with torch.no_grad(): model.head.weight.zero_()
    model.register_forward_hook(lambda _, __, out: (calls.append(1), out.index_fill(1, torch.tensor([EOS]), 1.0))[1])
    assert decode(model, some_prompts(3), 9).tokens.tolist() == [[EOS] + [PAD] * 8] * 3 and len(calls) == 1


@pytest.mark.parametrize("cap", [1, 3, 20])
def test_cap_and_padding(cap):
    said = decode(chatty(), some_prompts(), cap, logprobs=True)
    assert said.tokens.shape == said.logprob.shape == (60, cap)
    after = (said.tokens == EOS).cumsum(1) - (said.tokens == EOS).int() > 0
    assert (said.tokens[after] == PAD).all() and (said.logprob[after] == 0).all() and (said.logprob[~after] < 0).all()
    longer = decode(chatty(), some_prompts(), cap + 5).tokens
    assert torch.equal(said.tokens, longer[:, :cap]), "the cap changed what is said before it"


def test_no_log_probabilities_unless_asked():
    assert decode(chatty(), some_prompts(2), 3).logprob is None


# with a temperature

def test_tempered_decoding_depends_on_its_stream_alone():
    model, prompts, stream = chatty(), some_prompts(), Stream(0, "sample")
    said = decode(model, prompts, CAP, 1.3, stream)
    for rows in (1, 7, 59): assert torch.equal(decode(model, prompts, CAP, 1.3, stream, rows=rows).tokens, said.tokens)
    assert torch.equal(said.tokens.long(), plainly(model, prompts, CAP, 1.3, stream)[0])
    assert not torch.equal(said.tokens, decode(model, prompts, CAP, 1.3, Stream(1, "sample")).tokens)


def test_same_prompts_in_a_block_say_different_things():
    said = decode(chatty(), some_prompts(1).expand(64, -1), 6, 1.5, Stream(0, "sample")).tokens
    assert len(said.unique(dim=0)) > 10


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution(temperature):
    """Chi-square with three degrees of freedom stays under 16.3 in 999 of 1,000 draws; the seed is fixed."""
    logits, n = torch.tensor([0.0, 1.0, 2.0, -1.0]), 20_000
    expected = n * (logits.double() / temperature).softmax(0)
    drawn = torch.bincount(choose(logits.expand(n, -1), temperature, Stream(3, "sample").uniform(n, 4)), minlength=4)
    assert ((drawn - expected) ** 2 / expected).sum() < 16.3


def test_log_probabilities_are_the_models_own():
    """Not those of the tempered distribution: a filter compares them across temperatures."""
    model, prompts, stream = chatty(), some_prompts(8), Stream(0, "sample")
    said, (_, logprob) = decode(model, prompts, 5, 2.0, stream, logprobs=True), plainly(model, prompts, 5, 2.0, stream)
    torch.testing.assert_close(said.logprob.double(), logprob, atol=1e-5, rtol=0)


def test_a_temperature_needs_a_stream():
    with pytest.raises(ValueError, match="stream"): decode(chatty(), some_prompts(1), 2, 1.0)


def test_greedy_takes_the_likeliest():
    assert choose(torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, -1.0]])).tolist() == [1, 0]


# accuracy

@pytest.mark.parametrize("rows", [7, 1024])
@pytest.mark.parametrize("positions", POSITIONS)
def test_reading_an_answer_tells_whether_it_would_be_said(positions, rows):
    """The same as decoding and comparing, for answers that are right, wrong in one token, cut short, with filling in front, and without an end."""
    model, prompts = chatty(positions), some_prompts()
    said = decode(model, prompts, CAP).tokens
    answers, row = said.clone(), torch.arange(60)
    ends = (said == EOS).any(1)
    answers[row % 4 == 1, 0] = 3 + (answers[row % 4 == 1, 0] - 2) % 15
    answers[row % 4 == 3, 0] = PAD   # no filling, where it stands: the model did not say it
    answers[row % 4 == 2, 1:] = PAD
    answers[(row % 4 == 2) & (answers[:, 0] != EOS), 1] = EOS
    expected = same_rows(answers, said) & ends
    agrees, logprob = says(model, prompts, said, rows, logprobs=True)
    assert torch.equal(agrees, ends)
    torch.testing.assert_close(logprob.double()[ends], plainly(model, prompts, CAP)[1][ends], atol=1e-5, rtol=0)
    assert torch.equal(says(model, prompts, answers, rows), expected) and 3 < expected.sum() < 30 and (~ends[row % 4 == 0]).any()


@pytest.mark.parametrize("right, n, low, high", [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (950, 1000, 0.9347, 0.9619), (1, 1, 0.2065, 1.0)])
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


def pick(logits, where, since):
    """What a decoder gives of its logits."""
    return logits[:, since:] if where is None else logits[where]


class Scripted(torch.nn.Module):
    """A decoder that copies, except that it is wrong about problems that begin with 7."""
    def __init__(self):
        super().__init__()
        self.config, self.head = ModelConfig(layers=1, heads=1, width=2, ffn=2), torch.nn.Linear(2, 18)

    def forward(self, read, cache=None, where=None, since=0):
        read, ids = read.long(), Copy.vocab.ids
        digits = int((read[0] == ids["="]).int().argmax()) - 1
        said = torch.full_like(read, EOS)
        for k in range(read.shape[1] - digits - 1): said[:, digits + 1 + k] = read[:, k + 1] if k < digits else EOS
        said[:, digits + 1] -= (read[:, 1] == ids["7"]).long()
        return pick(torch.nn.functional.one_hot(said, 18).float(), where, since)


def test_accuracy_counts_exact_matches_on_fresh_problems():
    measured = accuracy(Scripted(), Copy(), [2, 4], seed=3, n=200)
    for level in (2, 4):
        _, block = problems(Copy(), level, Stream(3, "eval", level=level), 200)
        right = int((block.prompt[:, 0] != Copy.vocab.ids["7"]).sum())
        assert (measured[level].right, measured[level].n) == (right, 200) and 150 < right < 200


def test_accuracy_does_not_see_the_training_problems():
    rows = {purpose: {bytes(r) for r in Copy().draw(12, Stream(0, purpose, level=12), 300).prompt.tolist()} for purpose in ("base", "self", "eval")}
    assert not rows["eval"] & (rows["base"] | rows["self"])


# other tasks

class Knows(torch.nn.Module):
    """A decoder that knows a task's answers, except to problems whose first token is odd. Rows are told apart by what the cache holds for them."""
    def __init__(self, task, width):
        super().__init__()
        self.task, self.prompt, self.config, self.head = task, width, ModelConfig(layers=1, heads=1, width=2, ffn=2), torch.nn.Linear(2, len(task.vocab))

    def answers(self, prompts):
        right = self.task.solve(prompts.to(torch.uint8)).long()
        right[:, 0] += prompts[:, 0].long() % 2
        return torch.nn.functional.pad(right, (0, 200))

    def forward(self, read, cache=None, where=None, since=0):
        if cache is None:   # the whole row at once
            said = torch.nn.functional.pad(self.answers(read[:, 1:self.prompt + 1]), (self.prompt, 0))[:, :read.shape[1]]
            return pick(torch.nn.functional.one_hot(said, len(self.task.vocab)).float(), where, since)
        if not cache.used:
            said = self.answers(read[:, 1:])
            cache.store[0, 0, :, 0, :, 0] = said[:, :cache.store.shape[4]].to(cache.store.dtype)
        cache.used += read.shape[1]
        return torch.nn.functional.one_hot(cache.store[0, 0, :, 0, cache.used - self.prompt - 1, 0].long(), len(self.task.vocab)).float()


OTHERS = [(ForwardAddition(), 1), (ForwardAddition(), 3), (Multiplication(), (1, 3)), (Multiplication(), (3, 1)), (MazeHops(nodes=8), 3)]


@pytest.mark.parametrize("task, level", OTHERS, ids=lambda x: x.name if hasattr(x, "name") else str(x))
def test_answers_of_any_task_and_length(task, level):
    """Sums of one level end at two different tokens, so rows leave the block while their neighbours go on; each keeps its own answer."""
    shape, block = problems(task, level, Stream(0, "eval", level=level), 300)
    model = Knows(task, block.prompt.shape[1])
    said = decode(model, block.prompt, task.cap(shape), rows=128).tokens
    right = block.prompt[:, 0] % 2 == 0
    assert torch.equal(task.check(block, said), right) and torch.equal(says(model, block.prompt, block.answer), right) and 30 < right.sum() < 270
    assert torch.equal((said == EOS).int().argmax(1), (block.answer == EOS).int().argmax(1)), "each row ends where its answer does"
    assert len((block.answer != PAD).sum(1).unique()) == (2 if task.name == "forward_addition" else 1)
    if task.name == "forward_addition": assert not says(model, block.prompt, torch.where(block.answer == EOS, PAD, block.answer)).any()


def test_levels_that_are_pairs():
    """A problem of (1, 2) is not one of (2, 1), and each pair has its own measurement under its own key."""
    task, stream = Multiplication(), lambda level: Stream(5, "eval", level=level)
    class Any(Knows):
        def forward(self, read, cache=None, where=None, since=0):
            self.prompt = int((read[0] == task.vocab.ids["="]).int().argmax())
            return super().forward(read, cache, where, since)
    measured = accuracy(Any(task, 0), task, task.levels(1, 2), seed=5, n=100)
    assert list(measured) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for level, a in measured.items():
        shape, block = problems(task, level, stream(level), 100)
        assert shape == level and block.prompt.shape[1] == sum(level) + 2
        assert (a.right, a.n) == (int((block.prompt[:, 0] % 2 == 0).sum()), 100)
    assert len({a.right for a in measured.values()}) > 1
