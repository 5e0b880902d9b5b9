"""The bench: both sides do the same work, ratios are of the times measured, and a limit in minutes is kept."""
import json
import math
import time
from dataclasses import replace

import pytest
import torch

from self_improve import bench as room
from self_improve.bench import answer_products, bench, bench_ensemble, bench_growth, bench_labelling, bench_round, bench_together, bench_training, exponent, moved, own_products, race, ratios, summary
from self_improve.cli import main
from self_improve.experiments import experiment
from self_improve.model import Decoder
from self_improve.train import Mixture

SMOKE = experiment("copy", "smoke")
def members(config): return [Decoder(config.model, m) for m in range(config.loop.members)]


@pytest.fixture(autouse=True)
def llamas_get_their_positions_back(monkeypatch):
    """The bench takes them from every Llama of the process; other tests want them."""
    from transformers.models.llama import modeling_llama
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)


def test_a_race_takes_turns_and_the_first_does_not_count():
    turns = []
    seconds = race({"a": lambda: turns.append("a"), "b": lambda: (turns.append("b"), time.sleep(0.02))}, repeats=3)
    assert turns == ["a", "b"] * 4 and seconds["b"] > seconds["a"]


def test_a_race_that_is_late_has_one_counted_turn():
    turns = []
    race({"a": lambda: turns.append("a")}, repeats=9, until=time.monotonic() - 1)
    assert len(turns) == 2


def test_an_exponent_is_found():
    assert exponent([10, 20, 40], [3 * x**1.5 for x in (10, 20, 40)]) == 1.5


def test_own_products_are_those_of_the_model():
    """Their operations are the model's own count without attention, where every token is followed by a label."""
    from self_improve.model import flops
    for scale in ("smoke", "tiny", "paper"):
        config = experiment("reverse_addition", scale)
        assert own_products(config, 7, 7)[1] == pytest.approx(3 * flops(config.model, 7, 0)) and own_products(config, 7, 3)[1] < own_products(config, 7, 7)[1]


def test_bytes_of_keys_and_values():
    """One answer of three tokens to a prompt of two: BOS and the prompt, then one more each time."""
    said = torch.tensor([[5, 6, 2, 0, 0]])
    assert moved(SMOKE, 2, said) == (3 + 4 + 5) * 2 * SMOKE.model.layers * SMOKE.model.width * 4


def test_a_gpus_products_are_timed_in_what_it_multiplies_in():
    assert room.numbers("cuda:0") == dict(device="cuda:0", dtype=torch.bfloat16) and room.numbers("cpu")["dtype"] == torch.float32


def test_products_of_answers_are_those_of_the_model():
    """Counted by the library: what is read once, and each token said, without attention; behind the last attention only where a token is said."""
    from torch.utils.flop_counter import FlopCounterMode

    from self_improve.model import flops
    said, c = torch.tensor([[5, 6, 2, 0, 0]] * 3, dtype=torch.uint8), replace(SMOKE.model, layers=2)
    with FlopCounterMode(display=False) as counter: answer_products(replace(SMOKE, model=c), 4, said)()
    skipped = 3 * 4 * 2 * (c.width**2 + 3 * c.width * c.ffn + c.width * c.vocab)   # of the prompt's tokens but the last
    assert counter.get_total_flops() == flops(c, 3 * (5 + 2), 0) - skipped


def test_many_models_beside_one(monkeypatch):
    """Both sides do the same to every model: five answer and five train beside one of each. For a vote everybody but the first is asked what it says beyond the others' answers."""
    answered, trained, voted = [], [], []
    usual, step, ask = room.decode, room.Trainer.step, room.candidates
    monkeypatch.setattr(room, "decode", lambda model, *args: answered.append(len(args[0])) or usual(model, *args))
    monkeypatch.setattr(room.Trainer, "step", lambda self, rows, rate: trained.append(self) or step(self, rows, rate))
    monkeypatch.setattr(room, "candidates", lambda models, own, task, prompts, *args: voted.append((len(models), own, len(prompts), *args[1:])) or ask(models, own, task, prompts, *args))
    found = bench_together(SMOKE, members(SMOKE), 4, k=5, n=8, repeats=1)
    assert answered == [8] * (12 + 2) and len(trained) == 20 * 12 and len(set(trained)) == 5   # two turns of one and of five, and twice the one beside whom five vote
    assert voted == [(5, 0, 8, ("votes",))] * 2 and (found["models"], found["different"]) == (5, 2)
    for part in ("answer", "label", "train"): assert found[part]["times"] == round(found[part]["seconds"]["all"] / found[part]["seconds"]["one"], 2) > 0


def test_training_without_a_peer_has_no_ratio():
    found = bench_training(SMOKE, 0, repeats=1, peer=False)
    assert found["ratio"] is None and "peer" not in found and found["ours"] > 0 and 0 < found["share_of_own_products"] and 0 < found["share_of_large_product"] < 1.5


def test_labelling_compares_the_answers():
    found = bench_labelling(SMOKE, members(SMOKE), 4, n=20, repeats=1)
    assert found["same_answers"] > 0.9 and found["vote"]["ratio"] == round(found["vote"]["seconds"]["peer"] / found["vote"]["seconds"]["ours"], 2)


def test_a_round_of_the_peer_keeps_what_ours_keeps(monkeypatch):
    """Same problems, same answers, same filter: the same sets join the mixtures."""
    found = []
    class Watched(room.Ensemble):
        def __init__(self, *args, **more): super().__init__(*args, **more), found.append(self)
    monkeypatch.setattr(room, "Ensemble", Watched)
    done = bench_round(SMOKE, members(SMOKE), 2, repeats=1)
    ours, theirs = found[2:4]   # the turn that counts
    assert set(done["phases"]) == {"ours", "peer"} and list(done["share"]["ours"]) == ["label", "train", "measure"] and list(done["share_within"]) == ["draw", "filter"] and done["level"] == SMOKE.high + 2
    for a, b in zip(ours.members, theirs.members):
        assert [len(s) for s in a.sets] == [len(s) for s in b.sets]
        if len(a.sets[-1]): assert torch.equal(a.sets[-1].tokens, b.sets[-1].tokens)
    assert any(len(m.sets[-1]) for m in ours.members)


def test_a_benchs_ensemble_has_a_set_for_every_round_before():
    e = bench_ensemble(SMOKE, members(SMOKE), 3)
    assert [len(s) for s in e.members[0].sets] == [500, 500] and isinstance(e.members[0].mixture(), Mixture)


def test_growth_is_fitted():
    found = bench_growth(SMOKE, levels=(2, 4), widths=(8, 16), n=4, repeats=1)
    assert set(found["by_level"]) == {2, 4} and math.isfinite(found["exponent_in_length"]) and math.isfinite(found["exponent_in_width"])


@pytest.fixture
def quick(monkeypatch):
    """The parts replaced by their results, so that what is tested is how they are put together."""
    times = {"ours": 1.0, "peer": 3.0}
    monkeypatch.setattr(room, "bench_training", lambda config, newest, repeats, peer, until, device: dict(newest=newest, ours=5, ratio=3.0, seconds=times, share_of_own_products=0.5, share_of_large_product=0.25))
    monkeypatch.setattr(room, "bench_labelling", lambda config, models, level, **_: dict(level=level, one_model=dict(ours=5, ratio=2.0), vote=dict(ours=5, ratio=3.0, seconds=times), share_of_own_products=0.5, share_of_copy_bandwidth=0.1))
    monkeypatch.setattr(room, "bench_round", lambda config, models, r, *_: dict(round=r, ratio=3.0, seconds=times if r == 1 else dict(ours=1.0, peer=5.0), share=dict(ours=dict(label=0.4, train=0.6)), share_within=dict(draw=0.01, filter=0.01)))
    monkeypatch.setattr(room, "bench_together", lambda *_, **__: dict(models=5, answer=dict(times=4.5), label=dict(times=4.0), train=dict(times=3.5)))
    monkeypatch.setattr(room, "bench_growth", lambda *_, **__: dict(by_level={}, exponent_in_length=1.1, exponent_in_width=1.5))
    monkeypatch.setattr(room, "bench_drawing", lambda name, level: dict(task=name, ours=1))


def test_ratios_are_of_total_times(quick):
    found = bench(peer=True)
    assert found["ratios"] == {"training": 3.0, "labelling": 3.0, "round": 4.0} and found["peak_mb"] > 0
    assert "round 1" in summary(found) and "4.0" in summary(found) and "5 models take 4.00 times as long as one to label a set by vote; side by side, 4.50 times" in summary(found) and "draw 1.0%" in summary(found)


def test_minutes_that_are_over_leave_nothing_invented(quick):
    found = bench(peer=True, minutes=1e-9)
    assert all("not measured" in x for part in ("training", "labelling", "round", "together", "growth") for x in found[part])
    assert ratios(found) == {"training": None, "labelling": None, "round": None} and summary(found).startswith("most memory")


def test_the_command_writes_a_record(quick, tmp_path, capsys):
    assert main(["bench", "--peer", "hf", "--size", "tiny", "--json", str(tmp_path / "b.json"), "--minutes", "1", "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["ratios"]["training"] == 3.0 and found["size"] == "tiny" and found["peer"] == "hf" and "3.00 times as fast" in capsys.readouterr().out


@pytest.mark.parametrize("args, words", [(["--size", "huge"], "'huge': the sizes are tiny, paper"), (["--peer", "jax"], "'jax': the only one is hf"), (["--repeats", "0"], "--repeats 0"),
                                         (["--minutes", "-3"], "--minutes -3"), (["--json", "."], "name a file"), (["--json", "nowhere/b.json"], "name a file in a folder that exists")])
def test_bad_input(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *args]) == 2
    out = capsys.readouterr()
    assert words in out.err and out.err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_papers_size_is_the_papers_model():
    config, models = room.bench_members("paper", 1)
    assert config == experiment("reverse_addition", "paper") and replace(config.model) == models[0].config and len(models) == config.loop.members
