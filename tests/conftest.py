"""What several test modules use: a run small enough to be over in a moment."""
import pytest
import torch

from self_improve.config import Config, LoopConfig
from self_improve.model import Decoder, ModelConfig
from self_improve.tasks import EOS
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
    """A configuration that is over in a moment; with `talkative` its untrained models end about every answer."""
    def make(train=(), loop=(), **more):
        fields = {
            "high": 3,
            "model": ModelConfig(layers=1, heads=2, width=16, ffn=16),
            "train": TrainConfig(**{"steps": 5, "batch": 8} | dict(train)),
            "loop": LoopConfig(**{"rounds": 2, "steps": 3, "problems": 24, "evaluate": 8, "final": 8, "ahead": 2}
                               | dict(loop)),
        }
        return Config(**fields | more)
    return make


@pytest.fixture
def talkative(monkeypatch):
    """Initial weights that say EOS often and early, so that labels are kept although nothing is learned."""
    original = Decoder.__init__

    def init(self, config, seed=0):
        original(self, config, seed)
        with torch.no_grad():
            for p in self.parameters(): p.mul_(10 if p.dim() > 1 else 1)
            self.head.weight[EOS] *= 1.5
    monkeypatch.setattr(Decoder, "__init__", init)
