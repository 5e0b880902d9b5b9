"""The decoder: equal to Hugging Face's Llama, causal, and the same with and without a cache."""
import dataclasses
import subprocess
import sys
import warnings

import pytest
import torch

from self_improve.model import (LAST, POSITIONS, Cache, Compiled, Decoder, ModelConfig, OneCall, Still, flops, from_hf, glance, half, logits_of, parameters, replayed,
                                to_hf)
from self_improve.records import load_tensors, save_tensors

SMALL = ModelConfig(layers=2, heads=4, width=32, ffn=48, vocab=19, context=64, std=0.3)   # a large spread, so that attention matters
every_position = pytest.mark.parametrize("positions", POSITIONS)


def make(positions="nope", seed=1, **changes):
    return Decoder(dataclasses.replace(SMALL, positions=positions, **changes), seed).double().eval()


def some_tokens(rows=3, length=12, seed=0):
    return torch.randint(0, SMALL.vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def llama(monkeypatch):
    """Hugging Face's Llama of the same shape with random weights; without positions its rotary step does nothing."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama import modeling_llama

    def build(c):
        if c.positions == "nope": monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *a, **kw: (q, k))
        torch.manual_seed(0)
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=c.vocab, hidden_size=c.width, intermediate_size=c.ffn, num_hidden_layers=c.layers, num_attention_heads=c.heads,
            max_position_embeddings=c.context, rms_norm_eps=c.eps, initializer_range=0.3, tie_word_embeddings=False)).eval()
        for name, p in theirs.named_parameters():
            if "norm" in name: torch.nn.init.uniform_(p, 0.5, 1.5)   # at their initial 1 a forgotten scale would not show
        return theirs
    return build


@pytest.mark.parametrize("positions", ["nope", "rope"])
@torch.no_grad()
def test_logits_equal_llama(llama, positions):
    config = dataclasses.replace(SMALL, positions=positions)
    theirs, tokens = llama(config), some_tokens(length=20)
    ours = from_hf(Decoder(config, 7), theirs.state_dict())
    expected = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=0)
    other = dataclasses.replace(config, positions="rope" if positions == "nope" else "nope")
    wrong = from_hf(Decoder(other, 7), theirs.state_dict())(tokens)
    assert (wrong - expected).abs().max() > 0.01, "positions make no difference: this test could not fail"


@torch.no_grad()
def test_weights_to_llama_and_back(llama):
    theirs, ours = llama(SMALL), Decoder(SMALL, 3)
    assert set(to_hf(ours)) == set(theirs.state_dict())
    theirs.load_state_dict(to_hf(ours))
    again = from_hf(Decoder(SMALL, 4), theirs.state_dict())
    for name, p in ours.state_dict().items(): assert torch.equal(p, again.state_dict()[name]), name
    torch.testing.assert_close(theirs(some_tokens()).logits, ours(some_tokens()), atol=1e-4, rtol=0)


@every_position
def test_weights_through_a_file(tmp_path, positions):
    ours = Decoder(dataclasses.replace(SMALL, positions=positions), 3)
    save_tensors(tmp_path / "w.safetensors", to_hf(ours))
    again = from_hf(Decoder(ours.config, 4), load_tensors(tmp_path / "w.safetensors"))
    assert all(torch.equal(p, again.state_dict()[name]) for name, p in ours.state_dict().items())


def test_foreign_weights_are_refused_by_name():
    weights, q, k = to_hf(Decoder(SMALL)), "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"
    for changed, said in (({**weights, "bias": torch.zeros(1)}, "bias"), ({n: w for n, w in weights.items() if n != k}, k),
                          ({**weights, "lm_head.weight": torch.zeros(20, 32)}, "lm_head.weight"),
                          ({**weights, q: torch.zeros(32, 16)}, "layers.1.self_attn"), ({**weights, q: torch.zeros(32)}, "layers.1.self_attn"),
                          ({**weights, q: torch.zeros(48, 32), k: torch.zeros(16, 32)}, "layers.1.self_attn")):   # the sum of heights is right
        with pytest.raises(ValueError, match=said): from_hf(Decoder(SMALL), changed)


@every_position
@torch.no_grad()
def test_where_gives_the_logits_of_the_full_pass(positions):
    model, tokens = make(positions), some_tokens()
    full, mask = model(tokens), torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.4
    torch.testing.assert_close(model(tokens, where=mask), full[mask])
    torch.testing.assert_close(model(tokens, where=LAST), full[:, -1])


@every_position
@pytest.mark.parametrize("pieces", [[7, 1, 1, 1, 1, 1], [1] * 12, [12], [5, 4, 3]], ids=str)
@torch.no_grad()
def test_cached_equals_uncached(positions, pieces):
    """Whatever the pieces that the tokens come in."""
    model, tokens = make(positions), some_tokens()
    cache = Cache(model.config, 3, 12, dtype=torch.float64)
    parts = [model(part, cache) for part in tokens.split(pieces, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens))
    assert cache.used == 12


@every_position
@torch.no_grad()
def test_cache_forgets_rows(positions):
    model, tokens = make(positions), some_tokens()
    cache, kept = Cache(model.config, 3, 12, dtype=torch.float64), torch.tensor([True, False, True])
    model(tokens[:, :8], cache)
    cache.keep(kept)
    torch.testing.assert_close(model(tokens[kept, 8:9], cache, LAST), model(tokens[kept, :9], where=LAST))


def test_in_one_call_the_logits_are_the_same():
    """All at once, from a column on, and token by token with a cache."""
    model = Decoder(ModelConfig(layers=3, heads=2, width=32, ffn=48, std=0.3), 1).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1: torch.nn.init.uniform_(p, 0.5, 1.5)
        tokens, w = torch.randint(3, 18, (5, 9)), [p.detach() for p in model.parameters()]
        read = lambda t, since, keys=[], values=[], used=0: OneCall(logits_of)(w, t, since, 2, 1e-6, keys, values, used)
        wanted = model(tokens)
        torch.testing.assert_close(read(tokens, 0), wanted)
        torch.testing.assert_close(read(tokens, 4), wanted[:, 4:])
        keys, values = ([torch.zeros(5, 2, 9, 16, dtype=torch.double) for _ in range(3)] for _ in range(2))
        parts = [read(part, 0, keys, values, used) for part, used in zip(tokens.split([4, 3, 1, 1], 1), (0, 4, 7, 8))]
        torch.testing.assert_close(torch.cat(parts, 1), wanted)


def test_what_cannot_be_compiled_runs_as_it_stands():
    """One warning that names the function and the cause, then silence."""
    def odd(x):
        "TorchScript knows no generators."
        return sum(v for v in x)
    call, x = OneCall(odd), torch.arange(4.0)
    with pytest.warns(UserWarning, match="odd could not be compiled and runs slower"): assert call(x) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(x) == 6


def test_what_torch_compile_refuses_runs_as_it_stands(monkeypatch):
    """One warning that names the function and the cause, then silence, also for other shapes; and the function's own errors are its own."""
    def refuses(f, **_):
        def fail(*args): raise RuntimeError("no such backend\nand a long trace")
        return fail
    monkeypatch.setattr(torch, "compile", refuses)
    call = Compiled(lambda x: x.sum() * 2)
    with pytest.warns(UserWarning, match=r"could not be compiled and runs slower, with the same results \(RuntimeError: no such backend\)$"): assert call(torch.ones(3)) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(torch.ones(4)) == 8
        with pytest.raises(AttributeError, match="sum"): call(None)


def test_what_cannot_be_captured_runs_as_it_stands(monkeypatch):
    """This torch has no CUDA, which is as good a failure as any."""
    count = []
    assert replayed(count.append) == count.append   # no GPU, no warning
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", None)
    with pytest.warns(UserWarning, match="runs slower"): assert replayed(count.append) == count.append
    assert count == []


def test_a_still_cache_gives_the_same_logits():
    model, tokens = make(), some_tokens()
    with torch.no_grad():
        for read in (1, 5, 8):
            cache, told = Still(model.config, 3, 12, dtype=torch.float64), []
            for part in (tokens[:, :read], *tokens[:, read:].split(1, 1)):
                cache.at.fill_(cache.used)
                told.append(model(part, cache))
            torch.testing.assert_close(torch.cat(told, 1), model(tokens))


def test_a_processor_answers_with_the_model_itself():
    assert half(model := make()) is model


def test_importing_compiles_nothing():
    code = "import self_improve.train as t, self_improve.sampler as s; print(t._gradient.run, t._packed_loss.run, s._greedy.run, s._logits_of.run)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["None"] * 4


def test_compiling_gives_no_warning_of_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(OneCall(logits_of).compiled(), torch.jit.ScriptFunction)


@pytest.mark.parametrize("keys", [1, 5, 15, 16, 17, 90])
def test_a_glance_is_attention(keys):
    q, k, v = (torch.randn(6, 4, n, 32, dtype=torch.double, generator=torch.Generator().manual_seed(n)) for n in (1, keys, keys))
    torch.testing.assert_close(glance(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_strings_in_one_row_do_not_see_each_other():
    model, a, b = make(), some_tokens(1, 7), some_tokens(1, 9, seed=2)
    strings = torch.tensor([[4] * 7 + [2] * 9])
    torch.testing.assert_close(model(torch.cat([a, b], 1), strings=strings), torch.cat([model(a), model(b)], 1))
    assert not torch.allclose(model(torch.cat([a, b], 1))[:, 7:], model(b))
    with pytest.raises(ValueError, match="'nope'"): make("absolute")(torch.cat([a, b], 1), strings=strings)


@every_position
@torch.no_grad()
def test_no_token_sees_the_future(positions):
    model, tokens = make(positions), some_tokens()
    later = tokens.clone()
    later[:, 7:] = (later[:, 7:] + 1) % SMALL.vocab
    before, after = model(tokens), model(later)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax((0, 2)).min() > 1e-3


@torch.no_grad()
def test_only_positions_tell_order():
    """Without positions and with one layer, the last logits are the same for any order of the tokens before; with them they are not."""
    tokens = some_tokens()
    turned = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], 1)
    for positions in POSITIONS:
        model = make(positions, layers=1)
        gap = (model(tokens, where=LAST) - model(turned, where=LAST)).abs().max()
        assert gap < 1e-9 if positions == "nope" else gap > 1e-3, positions


def test_learned_positions_end():
    model = make("absolute")
    with pytest.raises(ValueError, match="65 tokens.*64.*model.context"): model(some_tokens(length=65))


@every_position
def test_parameter_count(positions):
    config = dataclasses.replace(SMALL, positions=positions)
    assert parameters(config) == sum(p.numel() for p in Decoder(config).parameters())


def test_parameter_count_of_the_paper():
    assert parameters(ModelConfig(layers=6, heads=6, width=384, ffn=1536, vocab=102)) == 14_239_104
    assert parameters(ModelConfig(layers=6, heads=6, width=384, ffn=1536, vocab=140)) == 14_268_288


def test_flops_follow_parameters_and_context():
    """Two for every weight in a product and token, and twice the context for keys and values."""
    c = ModelConfig(layers=2, heads=2, width=8, ffn=16, vocab=10)
    products = sum(p.numel() for n, p in Decoder(c).named_parameters() if p.dim() == 2 and "embed" not in n)
    assert flops(c, 5, 0) == 2 * 5 * products and flops(c, 5, 3) - flops(c, 5, 0) == 5 * 2 * c.layers * 2 * c.width * 3


def test_initial_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    a = Decoder(SMALL, 5).state_dict()
    torch.manual_seed(2)
    b, other = Decoder(SMALL, 5).state_dict(), Decoder(SMALL, 6).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["head.weight"], other["head.weight"])
    big = Decoder(ModelConfig(width=128, heads=2)).state_dict()
    assert abs(big["layers.0.attention.qkv.weight"].std() - 0.02) < 1e-3 and (big["norm.weight"] == 1).all()


@pytest.mark.parametrize("changes, said", [
    (dict(heads=3), "heads=3"), (dict(layers=0), "layers=0"), (dict(ffn=-1), "ffn=-1"), (dict(positions="abs"), "'abs'.*absolute"),
    (dict(positions="rope", heads=32), "rope"), (dict(std=-1.0), "std=-1"), (dict(std=float("nan")), "std=nan"), (dict(theta=0.0), "theta=0"),
    (dict(eps=-1.0), "eps=-1")], ids=str)
def test_impossible_shapes_are_refused(changes, said):
    with pytest.raises(ValueError, match=said): dataclasses.replace(SMALL, **changes)
