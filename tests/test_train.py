"""The mixture, the batches, the loss, the step and the trainer."""
import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from self_improve.arithmetic import ForwardAddition, Multiplication, ReverseAddition
from self_improve.mazes import MazeHops
from self_improve.model import Decoder, ModelConfig
from self_improve.optimizers import LRSchedule, TrainConfig, make_optimizers
from self_improve.streams import Stream
from self_improve.tasks import BOS, EOS, PAD, Block, Copy, Reverse, rows_equal
from self_improve.train import (
    EMPTY_ROWS,
    Mixture,
    Rows,
    Trainer,
    base_rows,
    include_prompts,
    label_loss,
    set_gradients,
    stack_rows,
    to_rows,
    train_model,
    train_step,
    width_groups,
)

MODEL = ModelConfig(layers=2, heads=2, width=16, ffn=16)


def copies(level, n, **name): return to_rows(Copy().draw(level, Stream(0, "self", level=level, **name), n))


def mixture(*sets, **more):
    return Mixture(Copy(), [1, 2, 3], Stream(0, "base"), 1000, sets, tuple(1.0 for _ in sets), **more)


def some_model(**changes): return Decoder(dataclasses.replace(MODEL, std=0.2, **changes), 1)
def gradients(model): return torch.cat([p.grad.flatten() for p in model.parameters()])
def label_tokens(rows): return int((rows.length - rows.start).sum())


# rows

def test_a_row_is_bos_prompt_and_label():
    rows = to_rows(Copy().parse("12=12"))
    assert [Copy.vocab.symbols[i] for i in rows.tokens[0]] == ["^", "1", "2", "=", "1", "2", "$"]
    assert (rows.start.item(), rows.length.item()) == (4, 7)


def test_rows_of_several_widths():
    rows = stack_rows([to_rows(Copy().parse("123=1")), to_rows(Copy().parse("12=12345"))])
    assert rows.tokens.shape == (2, 10) and rows.start.tolist() == [5, 4] and rows.length.tolist() == [7, 10]
    assert (rows.tokens[0, 7:] == PAD).all() and (rows.tokens[:, 0] == BOS).all() and rows.tokens[1, 9] == EOS


def test_base_rows_have_their_levels_evenly_and_depend_on_their_number_alone():
    rows = base_rows(Copy(), [1, 2, 3], Stream(0, "base"), torch.arange(3000))
    # BOS, one to three digits, '='
    assert set(rows.start.tolist()) == {3, 4, 5}
    assert (torch.bincount(rows.start)[3:] / 3000 - 1 / 3).abs().max() < 0.04
    some = torch.tensor([2999, 5, 5, 77])
    again = base_rows(Copy(), [1, 2, 3], Stream(0, "base"), some)
    width = again.tokens.shape[1]
    assert torch.equal(again.tokens, rows.tokens[some][:, :width]) and torch.equal(again.length, rows.length[some])
    for row, start in zip(rows.tokens[:200].tolist(), rows.start[:200].tolist(), strict=True):
        assert row[1:start - 1] == row[start:2 * start - 2] and row[2 * start - 2] == EOS


def test_members_have_base_data_of_their_own():
    one, two = (base_rows(Copy(), [8], Stream(0, "base", m), torch.arange(50)).tokens for m in (0, 1))
    assert not (one == two).all(1).any()


def lengths_of_numbers(rows, sign):
    """Digits of both numbers, told from where the sign and the label stand."""
    at = (rows.tokens == Copy.vocab.ids[sign]).int().argmax(1)
    return torch.stack([at - 1, rows.start - at - 2], 1)


MANY_SHAPES = [(ReverseAddition(), [1, 2, 3], "+", 9), (ForwardAddition(), [2, 3], "+", 8),
               (Multiplication(), Multiplication().levels(1, 2), "*", 4)]


@pytest.mark.parametrize("task, levels, sign, pairs", MANY_SHAPES, ids=lambda x: getattr(x, "name", ""))
def test_base_rows_of_many_shapes(task, levels, sign, pairs):
    """Both lengths are independent: each pair comes up equally often, in right problems, by number alone."""
    rows = base_rows(task, levels, Stream(0, "base"), torch.arange(4000))
    found, count = lengths_of_numbers(rows, sign).unique(dim=0, return_counts=True)
    assert len(found) == pairs and (count / 4000 - 1 / pairs).abs().max() < 4 * (1 / pairs / 4000) ** 0.5
    for i in range(0, 4000, 101):
        prompt, label = rows.tokens[i:i + 1, 1:rows.start[i]], rows.tokens[i:i + 1, rows.start[i]:]
        assert rows_equal(task.solve(prompt), label).all() and label[0, rows.length[i] - rows.start[i] - 1] == EOS
    some = torch.tensor([3999, 7, 7, 1234])
    again = base_rows(task, levels, Stream(0, "base"), some)
    assert torch.equal(again.tokens, rows.tokens[some][:, :again.tokens.shape[1]])
    assert torch.equal(again.start, rows.start[some])


def test_labels_of_one_block_may_end_at_different_places():
    """Sums written forwards: each row's label ends at its own EOS, and the loss does not look behind it."""
    rows, model = to_rows(ForwardAddition().draw((2, 2), Stream(0, "base", level=2), 40)), some_model()
    ends = (rows.tokens == EOS).int().argmax(1)
    assert torch.equal(rows.length, ends + 1) and len(ends.unique()) == 2
    torch.testing.assert_close(label_loss(model, rows), plain_loss(model, rows))


# the mixture

PUBLISHED = [(16, 1, 50), (16, 10, 32), (16, 50, 12.3), (10, 1, 50), (10, 10, 26.3), (10, 50, 8.5),
             (5, 10, 17.9), (5, 50, 4.6), (1, 10, 5), (1, 50, 1)]


@pytest.mark.parametrize("base, k, percent", PUBLISHED)
def test_shares_are_those_of_the_paper(base, k, percent):
    """§4.2: half from the newest set, the base set's weight among the rest as published for each task."""
    shares = mixture(*[copies(4, 1)] * k, base=base).shares()
    assert len(shares) == k + 1 and sum(shares) == pytest.approx(1) and shares[-1] == 0.5
    assert 100 * shares[0] == pytest.approx(percent, abs=0.06)
    assert max(shares[1:-1], default=0) == min(shares[1:-1], default=0)


def test_before_the_first_set_all_is_base():
    assert mixture().shares() == [1.0]
    assert mixture().rows(0, 0, 50).start.max() <= 5


def test_an_empty_set_gives_nothing():
    full = copies(4, 5)
    assert mixture(full, EMPTY_ROWS, base=10).shares() == pytest.approx([0.5, 0.5, 0.0])
    assert mixture(full, EMPTY_ROWS, full, base=10).shares() == pytest.approx([0.5 * 10 / 11, 0.5 / 11, 0.0, 0.5])
    assert mixture(EMPTY_ROWS).shares() == [1.0, 0.0]
    for sets in ((full, EMPTY_ROWS), (EMPTY_ROWS, full), (EMPTY_ROWS,), (EMPTY_ROWS, full, EMPTY_ROWS)):
        assert len(mixture(*sets).rows(1, 0, 300)) == 300


def test_a_set_of_several_levels_weighs_as_many():
    m = mixture(copies(4, 5), copies(5, 5), copies(6, 5))
    m = dataclasses.replace(m, weights=(3.0, 1.0, 1.0), base=4.0)
    assert m.shares() == pytest.approx([0.25, 0.1875, 0.0625, 0.5])


def test_drawn_rows_follow_the_shares():
    """Each source is told by its prompt's length; within 4 standard deviations."""
    m, n = mixture(*[copies(level, 50) for level in (11, 12, 13)], base=10.0), 8000
    starts = m.rows(3, 0, n).start
    for share, low, high in zip(m.shares(), (1, 11, 12, 13), (10, 11, 12, 13), strict=True):
        drawn = ((starts - 2 >= low) & (starts - 2 <= high)).float().mean()
        assert abs(drawn - share) < 4 * (share * (1 - share) / n) ** 0.5
    newest = m.rows(3, 0, n).tokens[starts == 15]
    assert len(newest.unique(dim=0)) == 50, "every row of a set has its turn"


MIXED = [(ReverseAddition(), [1, 2, 3, 4], [(6, 6), (7, 7)]),
         (Multiplication(), Multiplication().levels(1, 3), [(3, 5), (5, 3)]),
         (MazeHops(nodes=10), [1, 2, 3], [(10, 5), (10, 7)])]


@pytest.mark.parametrize("task, levels, shapes", MIXED, ids=lambda x: getattr(x, "name", ""))
def test_a_mixture_of_many_shapes(task, levels, shapes):
    """A base of many shapes beside two sets: shares as intended, every row whole, and grouping keeps the loss."""
    sets = tuple(to_rows(task.draw(shape, Stream(0, "self", level=shape), 30)) for shape in shapes)
    m, n = Mixture(task, levels, Stream(0, "base"), 1000, sets, (1.0, 1.0), base=4.0), 3000
    rows, keys = m.rows(2, 0, n), []
    own = []
    for s in sets: own.append({bytes(t[:length].tolist()) for t, length in zip(s.tokens, s.length, strict=True)})
    for tokens, length in zip(rows.tokens, rows.length, strict=True): keys.append(bytes(tokens[:length].tolist()))
    for share, among in zip((0.1, 0.5), own, strict=True):
        assert abs(sum(k in among for k in keys) / n - share) < 4 * (share * (1 - share) / n) ** 0.5
    base = [i for i, k in enumerate(keys) if k not in own[0] | own[1]]
    assert len({(int(rows.start[i]), int(rows.length[i])) for i in base}) > 2
    assert m.shares() == pytest.approx([0.4, 0.1, 0.5])
    for i in base[:60]:
        prompt, label = rows.tokens[i:i + 1, 1:rows.start[i]], rows.tokens[i:i + 1, rows.start[i]:]
        assert rows_equal(task.solve(prompt), label).all()
    few, model = rows.take(slice(0, 40)), some_model(vocab=len(task.vocab))
    grouped = set_gradients(model, few, label_tokens(few))
    torch.testing.assert_close(grouped, label_loss(model, few).detach() / label_tokens(few))


def same(a, b):
    """The same rows, whatever the padding."""
    width = max(a.tokens.shape[1], b.tokens.shape[1])
    pad = [F.pad(r.tokens, (0, width - r.tokens.shape[1])) for r in (a, b)]
    return torch.equal(*pad) and torch.equal(a.start, b.start) and torch.equal(a.length, b.length)


def test_a_row_has_its_number_and_no_memory():
    m = mixture(copies(4, 20), copies(5, 20))
    whole, left, right = m.rows(2, 0, 64), m.rows(2, 0, 32), m.rows(2, 32, 32)
    assert same(whole, stack_rows([left, right]))
    assert not same(whole, m.rows(3, 0, 64)) and not same(left, right)


def test_rounds_draw_other_rows():
    """Continuing a run repeats nothing: a round's rows are named by the round."""
    m = mixture(copies(9, 1000))
    rows = [{bytes(r) for r in m.rows(r, 0, 64).tokens[:, :20].tolist()} for r in (1, 2, 3)]
    # short base rows repeat by chance
    assert len(rows[0] & rows[1]) < 25 and len(rows[1] & rows[2]) < 25


# groups and loss

def uneven():
    return stack_rows([copies(level, n) for level, n in ((2, 40), (30, 7), (3, 20), (60, 3), (15, 10))])


@given(st.lists(st.integers(2, 300), min_size=1, max_size=80), st.sampled_from([0, 16, 256]))
@settings(deadline=None, max_examples=50)
def test_groups_hold_every_row_once(lengths, overhead):
    groups = width_groups(torch.tensor(lengths), overhead)
    assert sorted(torch.cat(groups).tolist()) == list(range(len(lengths))) and all(len(g) for g in groups)
    ends = [max(lengths[i] for i in g) for g in groups]
    assert ends == sorted(ends)


def test_groups_save_padding():
    rows = uneven()
    groups = width_groups(rows.length)
    padded = sum(len(g) * int(rows.length[g].max()) for g in groups)
    all_padding = len(rows) * int(rows.length.max()) - rows.length.sum()
    assert len(groups) > 1 and padded - rows.length.sum() < 0.3 * all_padding
    assert len(width_groups(torch.tensor([5, 6, 7] * 10))) == 1, "a cut must pay for itself"


@pytest.mark.parametrize("positions", ["nope", "rope", "alibi", "absolute"])
def test_grouping_never_changes_the_gradient(positions):
    """Width groups, one rectangle and random pieces give the same gradient and loss."""
    rows, model = uneven(), some_model(positions=positions)
    loss = set_gradients(model, rows, label_tokens(rows))
    expected = gradients(model).clone()
    pieces = list(torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).split(9))
    for groups in ([torch.arange(len(rows))], pieces):
        model.zero_grad()
        whole = sum(label_loss(model, rows.take(g)) for g in groups) / label_tokens(rows)
        whole.backward()
        torch.testing.assert_close(whole.detach(), loss)
        assert (gradients(model) - expected).norm() < 1e-5 * expected.norm()


def test_gradients_are_set_and_not_added():
    rows, model = uneven(), some_model()
    set_gradients(model, rows, label_tokens(rows))
    once = gradients(model).clone()
    set_gradients(model, rows, label_tokens(rows))
    assert torch.equal(gradients(model), once)


def plain_loss(model, rows):
    """Masked cross-entropy written out, a token at a time."""
    total, tokens = 0.0, rows.tokens.long()
    logits = model(tokens).log_softmax(-1)
    for i in range(len(rows)):
        for t in range(int(rows.start[i]), int(rows.length[i])): total = total - logits[i, t - 1, tokens[i, t]]
    return total


def test_loss_is_on_the_label_and_its_end_only():
    parsed = Copy().parse("123=9")
    rows = stack_rows([copies(2, 3), copies(6, 3), to_rows(Block(parsed.prompt, parsed.answer))])
    model = some_model()
    expected = plain_loss(model, rows)
    expected.backward()
    right = gradients(model)
    model.zero_grad()
    loss = label_loss(model, rows)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model), right)


def test_padding_is_never_a_target():
    rows, model = copies(3, 4), some_model()
    # whatever lies behind the end
    wider = Rows(F.pad(rows.tokens, (0, 9), value=7), rows.start, rows.length)
    torch.testing.assert_close(label_loss(model, wider), label_loss(model, rows))


# a step

def test_a_step_reports_the_mean_loss_of_a_label_token():
    rows, model = uneven(), some_model()
    expected = plain_loss(model, rows).detach() / label_tokens(rows)
    torch.testing.assert_close(Trainer(model, TrainConfig()).step(rows, 0.0), expected)


@pytest.mark.parametrize("positions", ["nope", "rope"])
def test_with_prompts_every_token_but_the_first_is_learnt(positions):
    rows, model = copies(4, 8), some_model(positions=positions)
    logits = model(rows.tokens[:, :-1]).detach()
    want = float(F.cross_entropy(logits.flatten(0, 1), rows.tokens[:, 1:].flatten().long()))
    loss = Trainer(model, TrainConfig(prompts=True)).step(rows, 1e-3)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    # they themselves are as they were
    assert rows.start.tolist() == [6] * 8
    assert include_prompts(stack_rows([rows, copies(7, 2)])).start.tolist() == [1] * 10


def test_a_step_in_shares_is_the_step_in_one():
    """Two processes, each with half of the rows, and their gradients added: the same loss and weights."""
    rows, config = uneven(), TrainConfig(lr=1e-2)
    one = some_model()
    expected = train_step(one, make_optimizers(one, config), rows, 1e-2)

    shares, sums = [rows.take(slice(i, None, 2)) for i in range(2)], []

    def keep(model, loss):
        sums.append(([p.grad.clone() for p in model.parameters()], loss))
        return loss

    def add(model, loss):
        other, other_loss = sums[0]
        for p, g in zip(model.parameters(), other, strict=True): p.grad += g
        return loss + other_loss

    for share, reduce in zip(shares, (keep, add), strict=True):
        model = some_model()
        loss = train_step(model, make_optimizers(model, config), share, 1e-2, 1.0, label_tokens(rows), reduce)
    torch.testing.assert_close(loss, expected)
    for p, q in zip(model.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


def test_an_empty_share_takes_part_in_the_sum():
    model, called = some_model(), []
    before = copy.deepcopy(model.state_dict())

    def reduce(model, loss):
        called.append(float(loss))
        for p in model.parameters(): p.grad = torch.ones_like(p)
        return loss + 5

    optimizers = make_optimizers(model, TrainConfig())
    loss = train_step(model, optimizers, EMPTY_ROWS, 1e-2, 1.0, 12, reduce)
    assert called == [0.0] and loss == 5
    assert not torch.equal(model.head.weight, before["head.weight"])


def test_another_way_to_the_gradients_is_used():
    model, rows, asked = some_model(), uneven(), []

    def other(model, rows, labels):
        asked.append((len(rows), labels))
        return set_gradients(model, rows, labels)

    train_step(model, make_optimizers(model, TrainConfig()), rows, 1e-3, set_gradients=other)
    assert asked == [(len(rows), label_tokens(rows))]


def test_clipping():
    rows, before = uneven(), some_model().state_dict()
    for clip, moves in ((1e-30, False), (1.0, True)):
        model = some_model()
        Trainer(model, TrainConfig(clip=clip, epsilon=1.0, weight_decay=0.0)).step(rows, 1.0)
        still = all(torch.allclose(p, before[n], atol=1e-9) for n, p in model.state_dict().items())
        assert moves != still


# the trainer

@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_few_steps_lower_the_loss(optimiser):
    trainer = Trainer(Decoder(MODEL, 1), TrainConfig(lr=3e-3, batch=32, optimiser=optimiser))
    losses = [float(loss) for loss in trainer.train_steps(mixture(), LRSchedule(40, 3e-3))]
    assert len(losses) == 40 and losses[0] == pytest.approx(math.log(18), abs=0.1)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5


@pytest.mark.parametrize("fresh", [True, False])
def test_moments_are_forgotten_or_kept_between_phases(fresh):
    trainer = Trainer(some_model(), TrainConfig(batch=4, fresh=fresh))
    for _ in range(2): list(trainer.train_steps(mixture(), LRSchedule(3, 1e-3)))
    assert {int(s["step"]) for s in trainer.optimizers[0].state.values()} == {3 if fresh else 6}


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_rows_made_together_are_the_same_rows(chunk):
    found = []
    for size in (32, chunk):
        trainer = Trainer(some_model(), TrainConfig(batch=8))
        found.append([float(loss) for loss in trainer.train_steps(mixture(copies(4, 9)), LRSchedule(7, 1e-3), 1, size)])
    assert found[0] == found[1]


def test_a_phase_of_no_steps():
    assert list(Trainer(some_model(), TrainConfig()).train_steps(mixture(), LRSchedule(0, 1e-3))) == []


def test_each_step_has_its_batch_and_its_rate():
    """The trainer hands rows, rate and clip to the step it was given."""
    seen = []

    def record(model, optimizers, rows, lr, clip):
        seen.append((rows, lr, clip))
        return torch.tensor(1.0)

    trainer, schedule = Trainer(some_model(), TrainConfig(batch=8, clip=0.5), record), LRSchedule(5, 1e-3)
    assert len(list(trainer.train_steps(mixture(), schedule, 2, chunk=2))) == 5
    assert same(stack_rows([rows for rows, _, _ in seen]), mixture().rows(2, 0, 40))
    assert [lr for _, lr, _ in seen] == [schedule.rate(s) for s in range(5)]
    assert {clip for _, _, clip in seen} == {0.5}


def test_operations_are_counted():
    """Three forward passes' worth: as `forward_flops` of each row, at half its length on average."""
    from self_improve.model import forward_flops
    trainer = Trainer(some_model(), TrainConfig(batch=8))
    for _ in range(2): list(trainer.train_steps(mixture(), LRSchedule(4, 1e-3)))
    length = mixture().rows(0, 0, 32).length
    assert trainer.tokens == length.sum()
    expected = sum(3 * forward_flops(MODEL, n, n / 2) for n in length.tolist())
    assert trainer.flops() == pytest.approx(expected, rel=0.01)


class Bigrams(torch.nn.Module):
    """A model of one's own: nothing but a table from a token to the next."""
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(18, 18)

    def forward(self, tokens): return self.table(tokens)


def test_a_model_of_ones_own_can_be_trained():
    trainer = Trainer(Bigrams(), TrainConfig(batch=32, optimiser="muon"))
    losses = [float(loss) for loss in trainer.train_steps(mixture(), LRSchedule(30, 0.1))]
    assert losses[-1] < losses[0] - 0.3
    assert trainer.flops() == 6 * 18 * 18 * trainer.tokens


def test_a_model_is_trained_in_one_call():
    """By its seed alone, on the levels asked for, with the task's vocabulary."""
    config = TrainConfig(batch=16, lr=5e-3)
    a, b = (train_model(Reverse(), [1, 2], 20, MODEL, config, seed=3) for _ in range(2))
    other = train_model(Reverse(), [1, 2], 20, MODEL, config, seed=4)
    assert torch.equal(a.head.weight, b.head.weight) and not torch.equal(a.head.weight, other.head.weight)
    rows = base_rows(Reverse(), [1, 2], Stream(9, "base"), torch.arange(64))
    assert label_loss(a, rows) < 0.9 * label_loss(Decoder(a.config, 3), rows)
    assert train_model(MazeHops(nodes=4), [1], 1, MODEL, config).config.vocab == len(MazeHops(nodes=4).vocab)
