"""The learning rate over time, the settings of training, AdamW and Muon."""
import math

import pytest
import torch

from self_improve.model import Decoder, ModelConfig
from self_improve.optimizers import LRSchedule, Muon, TrainConfig, make_optimizers, orthogonalize

# schedule

def test_rate_warms_up_stays_decays_and_ends_in_a_tail():
    schedule = LRSchedule(steps=1000, lr=2.0, warmup=0.1, decay=0.3, tail=0.1)
    rate = [schedule.rate(s) for s in range(1000)]
    assert rate[:100] == pytest.approx([2.0 * (s + 0.5) / 100 for s in range(100)])
    assert rate[100:600] == [2.0] * 500
    cosine = [(1 + math.cos(math.pi * (s + 0.5) / 300)) / 2 for s in range(300)]
    assert rate[600:900] == pytest.approx([2 * (0.01 + 0.99 * c) for c in cosine])
    assert rate[900:] == pytest.approx([0.02] * 100)


EDGES = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0.5, 0.5, 0), (0, 0, 1), (0.1, 0.9, 0), (0.7, 0.2, 0.1)]


@pytest.mark.parametrize("warmup, decay, tail", EDGES)
def test_rate_at_the_edges(warmup, decay, tail):
    for steps in (1, 2, 7, 1000):
        schedule = LRSchedule(steps, 1.0, warmup, decay, tail)
        rate = [schedule.rate(s) for s in range(steps)]
        assert all(0 < r <= 1 for r in rate)
    assert not decay or rate[-1] == pytest.approx(0.01, abs=1e-4)


@pytest.mark.parametrize("changes, message", [
    (dict(steps=-1), "steps=-1"), (dict(lr=0.0), "lr=0"), (dict(lr=float("nan")), "lr=nan"),
    (dict(lr=float("inf")), "lr=inf"), (dict(warmup=-0.1), "warmup=-0.1"),
    (dict(warmup=0.6, decay=0.5), "warmup=0.6.*decay=0.5"), (dict(warmup=float("nan")), "warmup=nan"),
    (dict(decay=float("nan")), "decay=nan"), (dict(tail=float("nan")), "tail=nan")], ids=str)
def test_impossible_schedules_are_refused(changes, message):
    with pytest.raises(ValueError, match=message): LRSchedule(**dict(steps=10, lr=0.1) | changes)


@pytest.mark.parametrize("changes, message", [
    (dict(batch=0), "batch=0"), (dict(optimiser="sgd"), "'sgd'.*adamw, muon"), (dict(beta1=1.0), "beta1=1"),
    (dict(beta2=-0.1), "beta2=-0.1"), (dict(epsilon=-1.0), "epsilon=-1"), (dict(weight_decay=-1.0), "weight_decay=-1"),
    (dict(weight_decay=float("nan")), "weight_decay=nan"), (dict(clip=0.0), "clip=0"),
    (dict(clip=float("nan")), "clip=nan"), (dict(lr=-1.0), "lr=-1")], ids=str)
def test_impossible_training_is_refused(changes, message):
    """Before a folder is begun, not by the optimizer after it."""
    with pytest.raises(ValueError, match=message): TrainConfig(**changes)


# optimizers

def test_orthogonalized_matrices_have_singular_values_near_one():
    """And the singular vectors that they had: for wide, tall and square ones."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 24, 48), (3, 48, 24), (2, 32, 32)):
        g = torch.randn(shape, generator=generator)
        found = orthogonalize(g)
        values = torch.linalg.svdvals(found)
        assert found.shape == g.shape and values.min() > 0.3 and values.max() < 1.3
        u, _, v = torch.linalg.svd(g, full_matrices=False)
        inner = u.mT @ found @ v.mT
        off_diagonal = inner - torch.diag_embed(torch.diagonal(inner, dim1=1, dim2=2))
        assert off_diagonal.abs().max() < 1e-3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has its own from 2.9 on, to compare with")
def test_muon_is_torchs_but_for_its_bfloat16():
    """The same three gradients for both; bfloat16 keeps two to three digits."""
    generator, shapes = torch.Generator().manual_seed(0), [(48, 16), (16, 16), (16, 32), (16, 16)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(s)) for s in shapes] for _ in range(2))
    a, b = Muon(ours, 1e-2, 0.1), torch.optim.Muon(theirs, 1e-2, 0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True): p.grad = q.grad = torch.randn(p.shape, generator=generator)
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True): assert (p - q).norm() < 0.04 * (p - 1).norm()


def test_muon_takes_the_matrices_inside_the_layers():
    model = Decoder(ModelConfig(layers=2, heads=2, width=16, ffn=16), 1)
    adamw, muon = make_optimizers(model, TrainConfig(optimiser="muon"))
    held = [{id(p) for g in o.param_groups for p in g["params"]} for o in (adamw, muon)]
    assert held[1] == {id(p) for n, p in model.named_parameters() if n.startswith("layers") and p.dim() == 2}
    assert held[0] | held[1] == {id(p) for p in model.parameters()} and not held[0] & held[1]
