"""What several test modules use: a run small enough to be over in a moment."""
import pytest
import torch

from self_improve.model import ModelConfig
from self_improve.records import Config, LoopConfig
from self_improve.train import TrainConfig


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: a second thread costs more than it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny():
    """A configuration whose untrained models end about every answer, so that labels are kept although nothing is learnt."""
    def make(train=(), loop=(), **more):
        return Config(**dict(high=3, model=ModelConfig(layers=1, heads=2, width=16, ffn=16), train=TrainConfig(**dict(steps=5, batch=8) | dict(train)),
                             loop=LoopConfig(**dict(rounds=2, steps=3, problems=24, evaluate=8, final=8, ahead=2) | dict(loop))) | more)
    return make


@pytest.fixture
def talkative(monkeypatch):
    """Initial weights that say EOS often and early."""
    from self_improve import loop
    from self_improve.model import Decoder
    from self_improve.tasks import EOS

    def build(config, seed=0):
        model = Decoder(config, seed)
        with torch.no_grad():
            for p in model.parameters(): p.mul_(10 if p.dim() > 1 else 1)
            model.head.weight[EOS] *= 1.5
        return model
    monkeypatch.setattr(loop, "Decoder", build)
