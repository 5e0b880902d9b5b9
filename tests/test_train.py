"""The mixture, the batches, the loss and the schedule."""
import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from self_improve.model import Compiled, Decoder, ModelConfig
from self_improve.tasks import BOS, EOS, PAD, Block, Copy, ForwardAddition, MazeHops, Multiplication, ReverseAddition, Stream, same_rows
from self_improve.train import (NO_ROWS, Mixture, Muon, Phase, Rows, TrainConfig, Trainer, base_rows, label_loss, pack, packed_gradient, packed_loss, shelves, stack_rows, to_rows,
                                whole, width_groups)

MODEL = ModelConfig(layers=2, heads=2, width=16, ffn=16)


def copies(level, n, **name): return to_rows(Copy().draw(level, Stream(0, "self", level=level, **name), n))
def mixture(*sets, **more): return Mixture(Copy(), [1, 2, 3], Stream(0, "base"), 1000, sets, tuple(1.0 for _ in sets), **more)
def some_model(**changes): return Decoder(dataclasses.replace(MODEL, std=0.2, **changes), 1)
def gradients(model): return torch.cat([p.grad.flatten() for p in model.parameters()])


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
    assert set(rows.start.tolist()) == {3, 4, 5}   # BOS, one to three digits, '='
    assert (torch.bincount(rows.start)[3:] / 3000 - 1 / 3).abs().max() < 0.04
    some = torch.tensor([2999, 5, 5, 77])
    again = base_rows(Copy(), [1, 2, 3], Stream(0, "base"), some)
    width = again.tokens.shape[1]
    assert torch.equal(again.tokens, rows.tokens[some][:, :width]) and torch.equal(again.length, rows.length[some])
    for row, start in zip(rows.tokens[:200].tolist(), rows.start.tolist()): assert row[1:start - 1] == row[start:2 * start - 2] and row[2 * start - 2] == EOS


def test_members_have_base_data_of_their_own():
    one, two = (base_rows(Copy(), [8], Stream(0, "base", m), torch.arange(50)).tokens for m in (0, 1))
    assert not (one == two).all(1).any()


def lengths_of_numbers(rows, sign):
    """Digits of both numbers, told from where the sign and the label stand."""
    at = (rows.tokens == Copy.vocab.ids[sign]).int().argmax(1)
    return torch.stack([at - 1, rows.start - at - 2], 1)


@pytest.mark.parametrize("task, levels, sign, pairs", [(ReverseAddition(), [1, 2, 3], "+", 9), (ForwardAddition(), [2, 3], "+", 8), (Multiplication(), Multiplication().levels(1, 2), "*", 4)], ids=lambda x: getattr(x, "name", ""))
def test_base_rows_of_many_shapes(task, levels, sign, pairs):
    """Lengths of the two numbers are independent: each pair comes up equally often, in right problems, and a row depends on its number alone."""
    rows = base_rows(task, levels, Stream(0, "base"), torch.arange(4000))
    found, count = lengths_of_numbers(rows, sign).unique(dim=0, return_counts=True)
    assert len(found) == pairs and (count / 4000 - 1 / pairs).abs().max() < 4 * (1 / pairs / 4000) ** 0.5
    for i in range(0, 4000, 101):
        prompt, label = rows.tokens[i:i + 1, 1:rows.start[i]], rows.tokens[i:i + 1, rows.start[i]:]
        assert same_rows(task.solve(prompt), label).all() and label[0, rows.length[i] - rows.start[i] - 1] == EOS
    some = torch.tensor([3999, 7, 7, 1234])
    again = base_rows(task, levels, Stream(0, "base"), some)
    assert torch.equal(again.tokens, rows.tokens[some][:, :again.tokens.shape[1]]) and torch.equal(again.start, rows.start[some])


def test_labels_of_one_block_may_end_at_different_places():
    """Sums written forwards: each row's label ends at its own EOS, and neither loss looks behind it."""
    rows, model = to_rows(ForwardAddition().draw((2, 2), Stream(0, "base", level=2), 40)), some_model()
    ends = (rows.tokens == EOS).int().argmax(1)
    assert torch.equal(rows.length, ends + 1) and len(ends.unique()) == 2
    expected = plain_loss(model, rows)
    torch.testing.assert_close(label_loss(model, rows), expected)
    torch.testing.assert_close(packed_loss(model, pack(rows)), expected)


@pytest.mark.parametrize("layers, heads, task", [(1, 1, Copy()), (3, 2, ReverseAddition()), (2, 4, MazeHops(nodes=8))], ids=["copy", "reverse_addition", "maze_hops"])
def test_the_gradient_by_hand_is_torchs(layers, heads, task):
    """Every weight's, to double precision; and in single precision within 1e-5 of its size."""
    rows = base_rows(task, task.levels(1, 4), Stream(0, "base"), torch.arange(40))
    model = Decoder(ModelConfig(layers=layers, heads=heads, width=32, ffn=24, vocab=len(task.vocab), std=0.3), 0).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1: torch.nn.init.uniform_(p, 0.5, 1.5, generator=torch.Generator().manual_seed(0))
    labels = int((rows.length - rows.start).sum())
    for m, close in ((model, dict(rtol=1e-9, atol=1e-12)), (copy.deepcopy(model).float(), None)):
        p = pack(rows)
        expected = F.cross_entropy(m(p.tokens, where=p.where, strings=p.strings), p.target)   # `packed_loss`, without its rounding to single precision
        expected.backward()
        wanted = [p.grad.clone() for p in m.parameters()]
        m.zero_grad()
        found = packed_gradient(m, pack(rows), labels)
        if close: torch.testing.assert_close(found, expected.detach(), **close)
        for (name, p), w in zip(m.named_parameters(), wanted, strict=True):
            if close: torch.testing.assert_close(p.grad, w, **close, msg=lambda text, name=name: f"{name}: {text}")
        whole, hand = torch.cat([w.flatten() for w in wanted]), torch.cat([p.grad.flatten() for p in m.parameters()])
        assert (hand - whole).norm() < 1e-5 * whole.norm()


# the mixture

def test_what_a_gpu_compiles_has_the_same_gradient(monkeypatch):
    """Dynamo traces it for any size, and autograd goes through; the code generator behind it is left out, it takes most of a minute."""
    traced = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: traced(f, backend="aot_eager", **how))
    model, compiled = some_model(), Compiled(packed_loss)
    for n in (8, 5, 11):
        rows, found = stack_rows([copies(2, n), copies(6, 3)]), []
        for loss in (packed_loss, compiled):
            model.zero_grad()
            loss(model, pack(rows)).backward()
            found.append(gradients(model))
        assert (found[0] - found[1]).norm() < 1e-5 * found[0].norm()
    assert compiled.run is not packed_loss, "it fell back"


def test_a_row_that_holds_one_string_needs_no_mask(monkeypatch):
    for rows, alone in ((copies(5, 4), True), (stack_rows([copies(6, 3), copies(5, 3)]), True), (stack_rows([copies(6, 3), copies(2, 2)]), False)):
        model, p = some_model(), pack(rows)
        assert p.alone == alone
        torch.testing.assert_close(packed_loss(model, p), packed_loss(model, dataclasses.replace(p, alone=False)))


@pytest.mark.parametrize("base, k, percent", [(16, 1, 50), (16, 10, 32), (16, 50, 12.3), (10, 1, 50), (10, 10, 26.3), (10, 50, 8.5), (5, 10, 17.9), (5, 50, 4.6), (1, 10, 5), (1, 50, 1)])
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
    assert mixture(full, NO_ROWS, base=10).shares() == pytest.approx([0.5, 0.5, 0.0])
    assert mixture(full, NO_ROWS, full, base=10).shares() == pytest.approx([0.5 * 10 / 11, 0.5 / 11, 0.0, 0.5])
    assert mixture(NO_ROWS).shares() == [1.0, 0.0]
    for m in (mixture(full, NO_ROWS), mixture(NO_ROWS, full), mixture(NO_ROWS), mixture(NO_ROWS, full, NO_ROWS)): assert len(m.rows(1, 0, 300)) == 300


def test_a_set_of_several_levels_weighs_as_many():
    m = dataclasses.replace(mixture(copies(4, 5), copies(5, 5), copies(6, 5)), weights=(3.0, 1.0, 1.0), base=4.0)
    assert m.shares() == pytest.approx([0.25, 0.1875, 0.0625, 0.5])


def test_drawn_rows_follow_the_shares():
    """Each source is told by its prompt's length; within 4 standard deviations."""
    m, n = mixture(*[copies(level, 50) for level in (11, 12, 13)], base=10.0), 8000
    starts = m.rows(3, 0, n).start
    for share, low, high in zip(m.shares(), (1, 11, 12, 13), (10, 11, 12, 13)):
        drawn = ((starts - 2 >= low) & (starts - 2 <= high)).float().mean()
        assert abs(drawn - share) < 4 * (share * (1 - share) / n) ** 0.5
    newest = m.rows(3, 0, n).tokens[starts == 15]
    assert len(newest.unique(dim=0)) == 50, "every row of a set has its turn"


@pytest.mark.parametrize("task, levels, sets", [(ReverseAddition(), [1, 2, 3, 4], [(6, 6), (7, 7)]), (Multiplication(), Multiplication().levels(1, 3), [(3, 5), (5, 3)]),
                                                (MazeHops(nodes=10), [1, 2, 3], [(10, 5), (10, 7)])], ids=lambda x: getattr(x, "name", ""))
def test_a_mixture_of_many_shapes(task, levels, sets):
    """A base of many shapes beside two sets: shares as intended, every row whole, and packing keeps them apart."""
    made = tuple(to_rows(task.draw(shape, Stream(0, "self", level=shape), 30)) for shape in sets)
    m, n = Mixture(task, levels, Stream(0, "base"), 1000, made, (1.0, 1.0), base=4.0), 3000
    rows, keys = m.rows(2, 0, n), []
    own = [{bytes(t[:l].tolist()) for t, l in zip(s.tokens, s.length)} for s in made]
    for tokens, length in zip(rows.tokens, rows.length): keys.append(bytes(tokens[:length].tolist()))
    for share, among in zip((0.1, 0.5), own): assert abs(sum(k in among for k in keys) / n - share) < 4 * (share * (1 - share) / n) ** 0.5
    base = [i for i, k in enumerate(keys) if k not in own[0] | own[1]]
    assert len({(int(rows.start[i]), int(rows.length[i])) for i in base}) > 2 and m.shares() == pytest.approx([0.4, 0.1, 0.5])
    for i in base[:60]: assert same_rows(task.solve(rows.tokens[i:i + 1, 1:rows.start[i]]), rows.tokens[i:i + 1, rows.start[i]:]).all()
    few, model = rows.take(slice(0, 40)), some_model(vocab=len(task.vocab))
    torch.testing.assert_close(packed_loss(model, pack(few)), label_loss(model, few))


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


def test_a_later_row_comes_from_the_same_set_whatever_was_drawn_in_other_rounds():
    """Continuing a run repeats nothing: a round's rows are named by the round."""
    m = mixture(copies(9, 1000))
    rows = [{bytes(r) for r in m.rows(r, 0, 64).tokens[:, :20].tolist()} for r in (1, 2, 3)]
    assert len(rows[0] & rows[1]) < 25 and len(rows[1] & rows[2]) < 25   # short base rows repeat by chance


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
    assert len(groups) > 1 and padded - rows.length.sum() < 0.3 * (len(rows) * int(rows.length.max()) - rows.length.sum())
    assert len(width_groups(torch.tensor([5, 6, 7] * 10))) == 1, "a cut must pay for itself"


@pytest.mark.parametrize("positions", ["nope", "rope", "alibi", "absolute"])
def test_grouping_never_changes_the_gradient(positions, monkeypatch):
    """A trainer's step packs or groups; one rectangle and any other pieces give the same gradient."""
    rows, found = uneven(), []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, _: found.append(torch.cat([p.grad.flatten().clone() for p in parameters])))
    Trainer(some_model(positions=positions), TrainConfig()).step(rows, 1e-3)
    for groups in (width_groups(rows.length), [torch.arange(len(rows))], list(torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).split(9))):
        model = some_model(positions=positions)
        (sum(label_loss(model, rows.take(g)) for g in groups) / (rows.length - rows.start).sum()).backward()
        assert (gradients(model) - found[0]).norm() < 1e-5 * found[0].norm()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(0, 30))
@settings(deadline=None, max_examples=100)
def test_shelves_hold_every_string_once(lengths, more):
    width = max(lengths) + more
    begins, rows = shelves(lengths, width)
    taken = [cell for b, n in zip(begins, lengths) for cell in range(b, b + n)]
    assert len(set(taken)) == sum(lengths) and max(taken) < rows * width
    assert all(b // width == (b + n - 1) // width for b, n in zip(begins, lengths)), "a string may not run over the end of its shelf"
    assert rows <= 1 + 2 * sum(lengths) / width, "any two shelves together are more than full"


def test_a_packed_batch_holds_every_token_and_label():
    rows = uneven()
    packed = pack(rows)
    for i in (0, 17, len(rows) - 1):
        mine = (packed.strings == i).flatten()
        assert torch.equal(packed.tokens.flatten()[mine], rows.tokens[i, : rows.length[i] - 1].long())
        assert torch.equal(packed.target[(packed.strings[packed.where] == i)], rows.tokens[i, rows.start[i]: rows.length[i]].long())
    assert len(packed.target) == (rows.length - rows.start).sum() and packed.tokens.numel() < 1.1 * (rows.length - 1).sum()


def test_packing_is_refused_where_positions_count():
    with pytest.raises(ValueError, match="'rope'"): packed_loss(some_model(positions="rope"), pack(uneven()))


def plain_loss(model, rows):
    """Masked cross-entropy written out, a token at a time."""
    total, tokens = 0.0, rows.tokens.long()
    logits = model(tokens).log_softmax(-1)
    for i in range(len(rows)):
        for t in range(int(rows.start[i]), int(rows.length[i])): total = total - logits[i, t - 1, tokens[i, t]]
    return total


def test_loss_is_on_the_label_and_its_end_only():
    rows, model = stack_rows([copies(2, 3), copies(6, 3), to_rows(Block(*[getattr(Copy().parse("123=9"), k) for k in ("prompt", "answer")]))]), some_model()
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
    wider = Rows(F.pad(rows.tokens, (0, 9), value=7), rows.start, rows.length)   # whatever lies behind the end
    torch.testing.assert_close(label_loss(model, wider), label_loss(model, rows))


def test_a_step_reports_the_mean_loss_of_a_label_token():
    rows, model = uneven(), some_model()
    expected = plain_loss(model, rows).detach() / (rows.length - rows.start).sum()
    torch.testing.assert_close(Trainer(model, TrainConfig()).step(rows, 0.0), expected)


# schedule

@pytest.mark.parametrize("positions", ["nope", "rope"])
def test_with_prompts_every_token_but_the_first_is_learnt(positions):
    rows, model = copies(4, 8), some_model(positions=positions)
    logits = model(rows.tokens[:, :-1]).detach()
    want = float(F.cross_entropy(logits.flatten(0, 1), rows.tokens[:, 1:].flatten().long()))
    assert float(Trainer(model, TrainConfig(prompts=True)).step(rows, 1e-3)) == pytest.approx(want, rel=1e-5)
    assert rows.start.tolist() == [6] * 8   # they themselves are as they were
    assert whole(stack_rows([rows, copies(7, 2)])).start.tolist() == [1] * 10


def test_rate_warms_up_stays_decays_and_ends_in_a_tail():
    phase = Phase(steps=1000, lr=2.0, warmup=0.1, decay=0.3, tail=0.1)
    rate = [phase.rate(s) for s in range(1000)]
    assert rate[:100] == pytest.approx([2.0 * (s + 0.5) / 100 for s in range(100)])
    assert rate[100:600] == [2.0] * 500
    assert rate[600:900] == pytest.approx([2 * (0.01 + 0.99 * (1 + math.cos(math.pi * (s + 0.5) / 300)) / 2) for s in range(300)])
    assert rate[900:] == pytest.approx([0.02] * 100)


@pytest.mark.parametrize("warmup, decay, tail", [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0.5, 0.5, 0), (0, 0, 1), (0.1, 0.9, 0)])
def test_rate_at_the_edges(warmup, decay, tail):
    for steps in (1, 2, 7, 1000):
        rate = [Phase(steps, 1.0, warmup, decay, tail).rate(s) for s in range(steps)]
        assert all(0 < r <= 1 for r in rate)
    assert not decay or rate[-1] == pytest.approx(0.01, abs=1e-4)


@pytest.mark.parametrize("changes, said", [(dict(steps=-1), "steps=-1"), (dict(lr=0.0), "lr=0"), (dict(lr=float("nan")), "lr=nan"), (dict(lr=float("inf")), "lr=inf"),
                                           (dict(warmup=-0.1), "warmup=-0.1"), (dict(warmup=0.6, decay=0.5), "warmup=0.6.*decay=0.5"),
                                           (dict(warmup=float("nan")), "warmup=nan"), (dict(decay=float("nan")), "decay=nan"), (dict(tail=float("nan")), "tail=nan")], ids=str)
def test_impossible_schedules_are_refused(changes, said):
    with pytest.raises(ValueError, match=said): Phase(**dict(steps=10, lr=0.1) | changes)


@pytest.mark.parametrize("changes, said", [(dict(batch=0), "batch=0"), (dict(optimiser="sgd"), "'sgd'.*adamw, muon"), (dict(beta1=1.0), "beta1=1"), (dict(beta2=-0.1), "beta2=-0.1"),
                                           (dict(epsilon=-1.0), "epsilon=-1"), (dict(weight_decay=-1.0), "weight_decay=-1"), (dict(clip=0.0), "clip=0"), (dict(clip=float("nan")), "clip=nan")], ids=str)
def test_impossible_training_is_refused(changes, said):
    """Before a folder is begun, not by the optimiser after it."""
    with pytest.raises(ValueError, match=said): TrainConfig(**changes)


# the trainer

@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has its own from 2.9 on, to compare with")
def test_muon_is_torchs_but_for_its_bfloat16():
    """The same three gradients for both; bfloat16 keeps two to three digits."""
    generator, shapes = torch.Generator().manual_seed(0), [(48, 16), (16, 16), (16, 32), (16, 16)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(s)) for s in shapes] for _ in range(2))
    a, b = Muon(ours, 1e-2, 0.1), torch.optim.Muon(theirs, 1e-2, 0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for p, q in zip(ours, theirs): p.grad = q.grad = torch.randn(p.shape, generator=generator)
        a.step(), b.step()
    for p, q in zip(ours, theirs): assert (p - q).norm() < 0.04 * (p - 1).norm()


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_few_steps_lower_the_loss(optimiser):
    trainer = Trainer(Decoder(MODEL, 1), TrainConfig(lr=3e-3, batch=32, optimiser=optimiser))
    losses = [float(loss) for loss in trainer.phase(mixture(), Phase(40, 3e-3))]
    assert len(losses) == 40 and losses[0] == pytest.approx(math.log(18), abs=0.1) and sum(losses[-5:]) / 5 < losses[0] - 0.5


def test_muon_takes_the_matrices_inside_the_layers():
    model = some_model()
    adamw, muon = Trainer(model, TrainConfig(optimiser="muon")).optimisers
    held = [{id(p) for g in o.param_groups for p in g["params"]} for o in (adamw, muon)]
    assert held[1] == {id(p) for n, p in model.named_parameters() if n.startswith("layers") and p.dim() == 2}
    assert held[0] | held[1] == {id(p) for p in model.parameters()} and not held[0] & held[1]


def test_clipping():
    rows, before = uneven(), some_model().state_dict()
    for clip, moves in ((1e-30, False), (1.0, True)):
        model = some_model()
        Trainer(model, TrainConfig(clip=clip, epsilon=1.0, weight_decay=0.0)).step(rows, 1.0)
        assert moves != all(torch.allclose(p, before[n], atol=1e-9) for n, p in model.state_dict().items())


@pytest.mark.parametrize("fresh", [True, False])
def test_moments_are_forgotten_or_kept_between_phases(fresh):
    trainer = Trainer(some_model(), TrainConfig(batch=4, fresh=fresh))
    for _ in range(2): list(trainer.phase(mixture(), Phase(3, 1e-3)))
    assert {int(s["step"]) for s in trainer.optimisers[0].state.values()} == {3 if fresh else 6}


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_rows_made_together_are_the_same_rows(chunk):
    found = []
    for size in (32, chunk):
        trainer = Trainer(some_model(), TrainConfig(batch=8))
        found.append([float(loss) for loss in trainer.phase(mixture(copies(4, 9)), Phase(7, 1e-3), 1, size)])
    assert found[0] == found[1]


def test_a_phase_of_no_steps():
    assert list(Trainer(some_model(), TrainConfig()).phase(mixture(), Phase(0, 1e-3))) == []
