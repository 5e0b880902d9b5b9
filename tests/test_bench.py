"""The bench: both sides do the same work, ratios are of the times measured, and a limit in minutes is kept."""
import json
import math
import time
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from self_improve import bench as room
from self_improve.bench import (
    Budget,
    bench,
    bench_ensemble,
    bench_growth,
    bench_labelling,
    bench_round,
    bench_together,
    bench_training,
    cache_bytes,
    decoding_products,
    differs_in_bf16,
    exponent,
    own_products,
    race,
    ratios,
    summary,
)
from self_improve.blocks import BOS
from self_improve.cli import main
from self_improve.experiments import experiment
from self_improve.model import Decoder, forward_flops, to_llama
from self_improve.train import Mixture, label_loss

SMOKE = experiment("copy", "smoke")
def members(config): return [Decoder(config.model, m) for m in range(config.loop.members)]


def test_a_race_takes_turns_and_the_first_does_not_count():
    turns = []
    def slow():
        turns.append("b")
        time.sleep(0.02)
    seconds = race({"a": lambda: turns.append("a"), "b": slow}, repeats=3)
    assert turns == ["a", "b"] * 4 and seconds["b"] > seconds["a"]


def test_a_race_that_is_late_has_one_counted_turn():
    turns = []
    race({"a": lambda: turns.append("a")}, repeats=9, until=time.monotonic() - 1)
    assert len(turns) == 2


def test_an_exponent_is_found():
    assert exponent([10, 20, 40], [3 * x**1.5 for x in (10, 20, 40)]) == 1.5


@pytest.mark.parametrize("scale", ["smoke", "tiny", "paper"])
def test_own_products_are_those_of_the_model(scale):
    """Their operations are the model's own count without attention, where every token is followed by a label."""
    config = experiment("reverse_addition", scale)
    operations = own_products(config, 7, 7)[1]
    assert operations == pytest.approx(3 * forward_flops(config.model, 7, 0))
    assert own_products(config, 7, 3)[1] < operations


def test_own_products_are_done():
    run, operations = own_products(SMOKE, 6, 4)
    with FlopCounterMode(display=False) as counter: run()
    assert counter.get_total_flops() == operations


def test_bytes_of_keys_and_values():
    """One output of three tokens to a prompt of two: BOS and the prompt, then one more each time."""
    outputs, c = torch.tensor([[5, 6, 2, 0, 0]]), SMOKE.model
    assert cache_bytes(SMOKE, 2, outputs) == (3 + 4 + 5) * 2 * c.layers * c.width * 4


def test_a_gpus_products_are_timed_in_what_it_multiplies_in():
    assert room.number_format("cuda:0") == {"device": "cuda:0", "dtype": torch.bfloat16}
    assert room.number_format("cpu")["dtype"] == torch.float32


def test_products_of_decoding_are_those_of_the_model():
    """Counted by torch: the prompt once, then each token; behind the last attention only where a token is chosen."""
    outputs, c = torch.tensor([[5, 6, 2, 0, 0]] * 3, dtype=torch.uint8), replace(SMOKE.model, layers=2)
    run = decoding_products(replace(SMOKE, model=c), 4, outputs)
    with FlopCounterMode(display=False) as counter: run()
    # the tokens of the prompt but its last
    skipped = 3 * 4 * 2 * (c.width**2 + 3 * c.width * c.ffn + c.width * c.vocab)
    assert counter.get_total_flops() == forward_flops(c, 3 * (5 + 2), 0) - skipped


def test_both_sides_learn_from_the_same_labels():
    """The peer's step begins at the mean loss of a label token, and ends below it."""
    model = Decoder(SMOKE.model)
    rows = room.batches_of(SMOKE, room.mixture_of(SMOKE, 4), 1)[0]
    peer, losses = to_llama(model), []
    forward = peer.forward
    def watched(*args, **more):
        out = forward(*args, **more)
        losses.append(float(out.loss.detach()))
        return out
    peer.forward = watched
    step = room.hf_trainer(peer, SMOKE)
    for _ in range(3): step(rows)
    wanted = float(label_loss(model, rows).detach()) / int((rows.length - rows.start).sum())
    assert losses[0] == pytest.approx(wanted, rel=1e-5) and losses[2] < losses[0]


def test_a_mixture_has_a_set_for_every_level_up_to_the_newest():
    assert room.mixture_of(SMOKE, 0).sets == ()
    sets = room.mixture_of(SMOKE, SMOKE.high + 3).sets
    digits = [int(rows.start[0]) - 2 for rows in sets]
    assert digits == [SMOKE.high + 1, SMOKE.high + 2, SMOKE.high + 3] and (sets[0].tokens[:, 0] == BOS).all()


def test_many_models_beside_one(monkeypatch):
    """Both sides do the same to every model: five answer and five train beside one of each.
    For a vote everybody but the first is asked what it says beyond the others' outputs."""
    answered, trained, voted = [], [], []
    engine, step, ask = room.engine_for(Decoder(SMOKE.model)), room.Trainer.step, room.candidates
    def decode(model, prompts, *args, **more):
        if not voted or voted[-1] == "over": answered.append(len(prompts))
        return engine.decode(model, prompts, *args, **more)
    def train(self, rows, rate):
        trained.append(self)
        return step(self, rows, rate)
    def vote(models, own, task, prompts, cap, needs, engine):
        voted.append((len(models), own, len(prompts), needs))
        found = ask(models, own, task, prompts, cap, needs, engine)
        voted.append("over")
        return found
    monkeypatch.setattr(room, "engine_for", lambda _: replace(engine, decode=decode))
    monkeypatch.setattr(room.Trainer, "step", train)
    monkeypatch.setattr(room, "candidates", vote)
    found = bench_together(SMOKE, members(SMOKE), 4, k=5, n=8, repeats=1)
    # two turns of one and of five, and twice the one beside whom five vote
    assert answered == [8] * (12 + 2) and len(trained) == 20 * 12 and len(set(trained)) == 5
    assert voted == [(5, 0, 8, ("votes",)), "over"] * 2 and (found["models"], found["different"]) == (5, 2)
    for part in ("answer", "label", "train"):
        seconds = found[part]["seconds"]
        assert found[part]["times"] == round(seconds["all"] / seconds["one"], 2) > 0


def test_training_without_a_peer_has_no_ratio():
    found = bench_training(SMOKE, 0, repeats=1, peer=False)
    assert found["ratio"] is None and "peer" not in found and found["ours"] > 0
    assert found["share_of_own_products"] > 0 and 0 < found["share_of_large_product"] < 1.5


def test_training_beside_the_peer():
    found = bench_training(SMOKE, SMOKE.high + 1, repeats=1)
    seconds = found["seconds"]
    assert found["ratio"] == round(seconds["peer"] / seconds["ours"], 2) and found["models"] == SMOKE.loop.members
    assert found["ours"] / found["peer"] == pytest.approx(seconds["peer"] / seconds["ours"], rel=1e-3)


def test_labelling_compares_the_outputs():
    found = bench_labelling(SMOKE, members(SMOKE), 4, n=20, repeats=1)
    seconds = found["vote"]["seconds"]
    assert found["same_answers"] > 0.9 and found["vote"]["ratio"] == round(seconds["peer"] / seconds["ours"], 2)
    assert found["peer_batch"] in (20, *room.PEER_BATCHES) and found["differs_in_bf16"] is None


def test_labelling_without_a_peer():
    found = bench_labelling(SMOKE, members(SMOKE), 4, n=20, repeats=1, peer=False)
    assert found["peer_batch"] is None and found["same_answers"] is None
    assert found["vote"]["ratio"] is None and found["vote"]["ours"] > 0


def test_only_a_gpu_is_asked_about_bfloat16():
    assert differs_in_bf16(Decoder(SMOKE.model), torch.zeros(1, 3), 4) is None


def test_a_round_of_the_peer_keeps_what_ours_keeps(monkeypatch, talkative):
    """Same problems, same outputs, same filter: the same sets join the mixtures."""
    found = []
    class Watched(room.Ensemble):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            found.append(self)
    monkeypatch.setattr(room, "Ensemble", Watched)
    done = bench_round(SMOKE, members(SMOKE), 2, repeats=1)
    # the turn that counts
    ours, theirs = found[2:4]
    assert set(done["phases"]) == {"ours", "peer"} and list(done["share"]["ours"]) == ["label", "train", "measure"]
    assert list(done["share_within"]) == ["draw", "filter"] and done["level"] == SMOKE.high + 2
    for a, b in zip(ours.members, theirs.members, strict=True):
        assert [len(s) for s in a.sets] == [len(s) for s in b.sets]
        if len(a.sets[-1]): assert torch.equal(a.sets[-1].tokens, b.sets[-1].tokens)
    assert any(len(m.sets[-1]) for m in ours.members)


def test_the_bench_leaves_other_llamas_alone():
    """The peer without positions does not change what transformers does elsewhere."""
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(
        vocab_size=18, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    other, tokens = LlamaForCausalLM(config).eval(), torch.arange(12)[None]
    with torch.no_grad(): before = other(tokens).logits
    bench_training(SMOKE, 0, repeats=1)
    with pytest.raises(RuntimeError), room.no_rotation(): raise RuntimeError
    with torch.no_grad():
        assert torch.equal(other(tokens).logits, before)
        # inside it is another model: this test could fail
        with room.no_rotation(): assert not torch.allclose(other(tokens).logits, before)


def test_the_peer_has_our_logits_without_rotating(monkeypatch):
    from transformers.models.llama import modeling_llama
    def refuse(*_, **__): raise AssertionError("rotated")
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", refuse)
    model, tokens = Decoder(SMOKE.model), torch.arange(3, 15)[None]
    with torch.no_grad(), room.no_rotation():
        torch.testing.assert_close(to_llama(model)(tokens).logits, model(tokens), atol=1e-4, rtol=0)
    # neither side of the bench rotates
    bench_training(SMOKE, 0, repeats=1)
    bench_labelling(SMOKE, members(SMOKE), 4, n=4, repeats=1)


def test_a_benchs_ensemble_has_a_set_for_every_round_before():
    e = bench_ensemble(SMOKE, members(SMOKE), 3)
    assert [len(s) for s in e.members[0].sets] == [500, 500] and isinstance(e.members[0].mixture(), Mixture)


def test_growth_is_fitted():
    found = bench_growth(SMOKE, levels=(2, 4), widths=(8, 16), n=4, repeats=1)
    assert set(found["by_level"]) == {2, 4} and math.isfinite(found["exponent_in_length"])
    assert set(found["by_width"]) == {8, 16} and math.isfinite(found["exponent_in_width"])


def test_each_part_may_use_its_share_of_the_time():
    def part(until): return until
    budget = Budget(1, 3)
    for left in (3, 2, 1):
        now = time.monotonic()
        assert budget.measure(part) - now == pytest.approx((budget.end - now) / left, abs=0.01)
    over = Budget(1e-9, 1)
    assert over.measure(part) == {"not measured": "the 1e-09 minutes were over"}


@pytest.fixture
def quick(monkeypatch):
    """The parts replaced by their results, so that what is tested is how they are put together."""
    times = {"ours": 1.0, "peer": 3.0}
    training = {"ours": 5, "ratio": 3.0, "seconds": times, "share_of_own_products": 0.5, "share_of_large_product": 0.25}
    labelling = {"one_model": {"ours": 5, "ratio": 2.0}, "vote": {"ours": 5, "ratio": 3.0, "seconds": times},
                 "share_of_own_products": 0.5, "share_of_copy_bandwidth": 0.1, "peer_batch": 128}
    together = {"models": 5, "answer": {"times": 4.5}, "label": {"times": 4.0}, "train": {"times": 3.5}}
    a_round = {"ratio": 3.0, "share": {"ours": {"label": 0.4, "train": 0.6}},
               "share_within": {"draw": 0.01, "filter": 0.01}}
    growth = {"by_level": {}, "exponent_in_length": 1.1, "exponent_in_width": 1.5}
    asked = []

    def bench_round(config, models, r, **more):
        asked.append((r, more["batch"], more["repeats"]))
        return a_round | {"round": r, "seconds": times if r == 1 else {"ours": 1.0, "peer": 5.0}}

    monkeypatch.setattr(room, "bench_training", lambda config, newest, **_: training | {"newest": newest})
    monkeypatch.setattr(room, "bench_labelling", lambda config, models, level, **_: labelling | {"level": level})
    monkeypatch.setattr(room, "bench_round", bench_round)
    monkeypatch.setattr(room, "bench_together", lambda *_, **__: together)
    monkeypatch.setattr(room, "bench_growth", lambda *_, **__: growth)
    monkeypatch.setattr(room, "bench_drawing", lambda name, level: {"task": name, "ours": 1})
    return asked


def test_ratios_are_of_total_times(quick):
    found = bench(peer=True)
    assert found["ratios"] == {"training": 3.0, "labelling": 3.0, "round": 4.0} and found["peak_mb"] > 0
    # the peer's best batch in a round too, and no more than two turns of it
    assert quick == [(1, 128, 2), (11, 128, 2)]
    text = summary(found)
    assert "round 1" in text and "4.0" in text and "draw 1.0%" in text
    assert "5 models take 4.00 times as long as one to label a set by vote; side by side, 4.50 times" in text


def test_minutes_that_are_over_leave_nothing_invented(quick):
    found = bench(peer=True, minutes=1e-9)
    for part in ("training", "labelling", "round", "together", "growth"):
        assert all("not measured" in x for x in found[part])
    assert ratios(found) == {"training": None, "labelling": None, "round": None}
    assert summary(found).startswith("most memory") and quick == []


def test_recorded_benches_can_be_read():
    """The records of the project, with all keys that an earlier one had."""
    from self_improve.records import data_folders
    texts = []
    for place in data_folders():
        for path in place.glob("bench/*.json"):
            found = json.loads(path.read_text())
            if isinstance(found, dict): texts.append((summary(found), ratios(found), found["ratios"]))
    assert texts
    for text, again, recorded in texts: assert "answers/s with a vote" in text and again == recorded


def test_the_keys_of_a_record_stay(monkeypatch):
    """What a bench of the smallest size writes has the keys of the recorded one."""
    from self_improve.records import data_folders
    paths = [p for place in data_folders() for p in place.glob("bench/tiny-cpu.json")]
    recorded = json.loads(paths[0].read_text())
    monkeypatch.setitem(room.SIZES, "tiny", ("copy", (0, 4), (1, 2)))
    monkeypatch.setattr(room, "bench_members", lambda *_: (SMOKE, members(SMOKE)))
    monkeypatch.setattr(room, "DRAWN", (("copy", 3),))
    usual = room.bench_growth
    monkeypatch.setattr(room, "bench_growth", lambda *args, **more: usual(*args, (2, 4), (8, 16), 4, **more))
    found = json.loads(json.dumps(bench(repeats=1)))
    def keys(x):
        if isinstance(x, dict): return {k: keys(v) for k, v in x.items()}
        return [keys(x[0])] if isinstance(x, list) else None
    for x in (found, recorded):
        # keyed by levels and widths, or by what the machine says of itself
        del x["provenance"], x["growth"][0]["by_level"], x["growth"][0]["by_width"]
    assert keys(found) == keys(recorded)


def test_the_command_writes_a_record(quick, tmp_path, capsys):
    words = ["bench", "--peer", "hf", "--size", "tiny", "--json", str(tmp_path / "b.json")]
    words += ["--minutes", "1", "--device", "cpu"]
    assert main(words) == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["ratios"]["training"] == 3.0 and found["size"] == "tiny" and found["peer"] == "hf"
    assert "3.00 times as fast" in capsys.readouterr().out


@pytest.mark.parametrize("args, words", [
    (["--size", "huge"], "'huge': the sizes are tiny, paper"), (["--peer", "jax"], "'jax': the only one is hf"),
    (["--repeats", "0"], "--repeats 0"), (["--minutes", "-3"], "--minutes -3"), (["--json", "."], "name a file"),
    (["--json", "nowhere/b.json"], "name a file in a folder that exists")])
def test_bad_input(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *args]) == 2
    out = capsys.readouterr()
    assert words in out.err and out.err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_papers_size_is_the_papers_model():
    config, models = room.bench_members("paper", 1)
    assert config == experiment("reverse_addition", "paper") and len(models) == config.loop.members
    assert replace(config.model) == models[0].config
