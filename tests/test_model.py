"""The decoder: equal to Hugging Face's Llama, causal, and the same with and without a cache."""
import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from self_improve.model import (
    POSITIONS,
    Decoder,
    KVCache,
    ModelConfig,
    NoRotation,
    device_of,
    forward_flops,
    from_llama_weights,
    parameter_count,
    to_llama,
    to_llama_weights,
)

# a large spread of weights, so that attention matters
SMALL = ModelConfig(layers=2, heads=4, width=32, ffn=48, vocab=19, context=64, std=0.3)
PAPER = ModelConfig(layers=6, heads=6, width=384, ffn=1536, vocab=102)
every_position = pytest.mark.parametrize("positions", POSITIONS)


def make(positions="nope", seed=1, **changes):
    return Decoder(dataclasses.replace(SMALL, positions=positions, **changes), seed).double().eval()


def some_tokens(rows=3, length=12, seed=0):
    return torch.randint(0, SMALL.vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def scale_norms(model):
    """At their initial 1 a forgotten scale would not show."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "norm" in name: torch.nn.init.uniform_(p, 0.5, 1.5, generator=generator)
    return model


# Hugging Face's Llama

@pytest.fixture
def llama():
    """Hugging Face's Llama with random weights; without positions its rotary step does nothing."""
    transformers = pytest.importorskip("transformers")

    def build(c):
        torch.manual_seed(0)
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=c.vocab, hidden_size=c.width, intermediate_size=c.ffn,
            num_hidden_layers=c.layers, num_attention_heads=c.heads,
            max_position_embeddings=c.context, rms_norm_eps=c.eps,
            initializer_range=0.3, tie_word_embeddings=False)).eval()
        if c.positions == "nope": theirs.model.rotary_emb = NoRotation(c.width // c.heads)
        return scale_norms(theirs)
    return build


@pytest.mark.parametrize("positions", ["nope", "rope"])
@torch.no_grad()
def test_logits_equal_llama(llama, positions):
    config = dataclasses.replace(SMALL, positions=positions)
    theirs, tokens = llama(config), some_tokens(length=20)
    ours = from_llama_weights(Decoder(config, 7), theirs.state_dict())
    expected = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=0)
    other = dataclasses.replace(config, positions="rope" if positions == "nope" else "nope")
    wrong = from_llama_weights(Decoder(other, 7), theirs.state_dict())(tokens)
    assert (wrong - expected).abs().max() > 0.01, "positions make no difference: this test could not fail"


@torch.no_grad()
def test_weights_to_llama_and_back(llama):
    theirs, ours = llama(SMALL), Decoder(SMALL, 3)
    assert set(to_llama_weights(ours)) == set(theirs.state_dict())
    theirs.load_state_dict(to_llama_weights(ours))
    again = from_llama_weights(Decoder(SMALL, 4), theirs.state_dict())
    for name, p in ours.state_dict().items(): assert torch.equal(p, again.state_dict()[name]), name
    torch.testing.assert_close(theirs(some_tokens()).logits, ours(some_tokens()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [dict(), dict(positions="rope"), dict(positions="rope", theta=100.0)], ids=str)
@torch.no_grad()
def test_to_llama_gives_the_same_logits(changes):
    pytest.importorskip("transformers")
    ours = scale_norms(Decoder(dataclasses.replace(SMALL, **changes), 2))
    theirs = to_llama(ours)
    torch.testing.assert_close(theirs(some_tokens(length=20)).logits, ours(some_tokens(length=20)), atol=1e-4, rtol=0)
    assert not theirs.training


@torch.no_grad()
def test_to_llama_changes_one_model_only():
    """A Llama made before, and one made after, still rotate."""
    pytest.importorskip("transformers")
    rope = Decoder(dataclasses.replace(SMALL, positions="rope"), 2)
    before = to_llama(rope)
    to_llama(Decoder(SMALL, 2))
    after = to_llama(rope)
    expected = rope(some_tokens())
    for theirs in (before, after): torch.testing.assert_close(theirs(some_tokens()).logits, expected, atol=1e-4, rtol=0)


def test_to_llama_generates_what_we_decode():
    """With the key-value cache of transformers."""
    pytest.importorskip("transformers")
    ours, prompt = Decoder(SMALL, 2), some_tokens(3, 5)
    text = prompt
    with torch.no_grad():
        for _ in range(6): text = torch.cat([text, ours(text)[:, -1:].argmax(-1)], 1)
    # no token ends the text, and none of the prompt's is padding
    found = to_llama(ours).generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6,
                                    do_sample=False, eos_token_id=SMALL.vocab, pad_token_id=0)
    assert torch.equal(found, text)


@pytest.mark.parametrize("positions", ["alibi", "absolute"])
def test_what_llama_cannot_do_is_refused(positions):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=f"{positions}.*'nope' and 'rope'"): to_llama(make(positions))


@every_position
def test_weights_through_a_file(tmp_path, positions):
    ours = Decoder(dataclasses.replace(SMALL, positions=positions), 3)
    save_file(to_llama_weights(ours), tmp_path / "w.safetensors")
    again = from_llama_weights(Decoder(ours.config, 4), load_file(tmp_path / "w.safetensors"))
    for name, p in ours.state_dict().items(): assert torch.equal(p, again.state_dict()[name]), name


def test_learned_positions_keep_their_common_name():
    weights = to_llama_weights(make("absolute"))
    assert weights["model.embed_positions.weight"].shape == (64, 32)


def test_foreign_weights_are_refused_by_name():
    weights = to_llama_weights(Decoder(SMALL))
    q, k = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"
    without_k = {n: w for n, w in weights.items() if n != k}
    wrong = [
        ({**weights, "bias": torch.zeros(1)}, "bias"),
        (without_k, k),
        ({**weights, "lm_head.weight": torch.zeros(20, 32)}, "lm_head.weight"),
        ({**weights, q: torch.zeros(32, 16)}, "layers.1.self_attn"),
        ({**weights, q: torch.zeros(32)}, "layers.1.self_attn"),
        # the sum of their heights is right
        ({**weights, q: torch.zeros(48, 32), k: torch.zeros(16, 32)}, "layers.1.self_attn")]
    for changed, message in wrong:
        model = Decoder(SMALL)
        with pytest.raises(ValueError, match=message): from_llama_weights(model, changed)
        for name, p in Decoder(SMALL).state_dict().items(): assert torch.equal(p, model.state_dict()[name])


# the cache

@every_position
@pytest.mark.parametrize("pieces", [[7, 1, 1, 1, 1, 1], [1] * 12, [12], [5, 4, 3]], ids=str)
@torch.no_grad()
def test_cached_equals_uncached(positions, pieces):
    """Whatever the pieces that the tokens come in."""
    model, tokens = make(positions), some_tokens()
    cache = model.new_cache(3, 12)
    parts = [model(part, cache) for part in tokens.split(pieces, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens))
    assert cache.used == 12


@every_position
@pytest.mark.parametrize("kept", [[True, False, True], [2, 0]], ids=["bool", "indices"])
@torch.no_grad()
def test_cache_drops_rows(positions, kept):
    model, tokens, kept = make(positions), some_tokens(), torch.tensor(kept)
    cache = model.new_cache(3, 12)
    model(tokens[:, :8], cache)
    cache.keep(kept)
    torch.testing.assert_close(model(tokens[kept, 8:9], cache)[:, -1], model(tokens[kept, :9])[:, -1])


def test_a_full_cache_is_refused():
    model = make()
    cache = model.new_cache(3, 5)
    with pytest.raises(ValueError, match="holds 5 tokens, 12"): model(some_tokens(), cache)


def test_a_new_cache_follows_the_model():
    cache = make().new_cache(7, 5)
    assert isinstance(cache, KVCache) and cache.used == 0
    assert cache.store.shape == (2, 2, 7, 4, 5, 8) and cache.store.dtype == torch.float64


# masks and causality

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
def test_a_mask_keeps_texts_in_one_row_apart():
    """Without positions a text in the middle of a row is read as if it stood alone."""
    model, a, b = make(), some_tokens(1, 7), some_tokens(1, 9, seed=2)
    text, number = torch.cat([a, b], 1), torch.tensor([0] * 7 + [1] * 9)
    may_look = (number[:, None] == number[None, :]).tril()
    mask = torch.zeros(16, 16).masked_fill(~may_look, -torch.inf)
    expected = torch.cat([model(a), model(b)], 1)
    # single precision, though the model is in double; and every shape that broadcasts
    for shape in ((16, 16), (1, 1, 16, 16)):
        torch.testing.assert_close(model(text, mask=mask.view(shape)), expected)
    assert not torch.allclose(model(text)[:, 7:], model(b))


@torch.no_grad()
def test_a_mask_adds_to_alibi():
    model, tokens = make("alibi"), some_tokens()
    hidden = torch.zeros(12, 12)
    # the first token is shown to itself only
    hidden[1:, 0] = -torch.inf
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % SMALL.vocab
    a, b = model(tokens, mask=hidden), model(changed, mask=hidden)
    torch.testing.assert_close(a[:, 1:], b[:, 1:])
    assert not torch.allclose(model(tokens)[:, 1:], model(changed)[:, 1:])
    # still causal
    torch.testing.assert_close(model(tokens[:, :6], mask=hidden[:6, :6]), a[:, :6])


def test_a_mask_of_yes_and_no_is_refused():
    with pytest.raises(ValueError, match="0 and -inf"): make()(some_tokens(), mask=torch.ones(12, 12).bool())


@torch.no_grad()
def test_only_positions_tell_order():
    """One layer without positions: the last logits are the same for any order of the tokens before."""
    tokens = some_tokens()
    turned = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], 1)
    for positions in POSITIONS:
        model = make(positions, layers=1)
        gap = (model(tokens)[:, -1] - model(turned)[:, -1]).abs().max()
        assert gap < 1e-9 if positions == "nope" else gap > 1e-3, positions


@torch.no_grad()
def test_two_layers_tell_order_without_positions():
    model, tokens = make(layers=2), some_tokens()
    turned = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], 1)
    assert (model(tokens)[:, -1] - model(turned)[:, -1]).abs().max() > 1e-3


def test_learned_positions_end():
    model = make("absolute")
    with pytest.raises(ValueError, match="65 tokens.*model.context=64"): model(some_tokens(length=65))
    cache = model.new_cache(3, 70)
    model(some_tokens(length=64), cache)
    with pytest.raises(ValueError, match="65 tokens"): model(some_tokens(length=1), cache)


# numbers

@every_position
def test_parameter_count(positions):
    config = dataclasses.replace(SMALL, positions=positions)
    assert parameter_count(config) == sum(p.numel() for p in Decoder(config).parameters())


def test_parameter_count_of_the_paper():
    assert parameter_count(PAPER) == 14_239_104
    assert parameter_count(dataclasses.replace(PAPER, vocab=140)) == 14_268_288


def test_flops_follow_parameters_and_context():
    """Two for every weight in a product and token, and twice the context for keys and values."""
    c = ModelConfig(layers=2, heads=2, width=8, ffn=16, vocab=10)
    products = 0
    for name, p in Decoder(c).named_parameters():
        if p.dim() == 2 and "embed" not in name: products += p.numel()
    assert forward_flops(c, 5, 0) == 2 * 5 * products
    assert forward_flops(c, 5, 3) - forward_flops(c, 5, 0) == 5 * 2 * c.layers * 2 * c.width * 3


def test_initial_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    a = Decoder(SMALL, 5).state_dict()
    torch.manual_seed(2)
    b, other = Decoder(SMALL, 5).state_dict(), Decoder(SMALL, 6).state_dict()
    for name in a: assert torch.equal(a[name], b[name]), name
    assert not torch.equal(a["head.weight"], other["head.weight"])
    big = Decoder(ModelConfig(width=128, heads=2)).state_dict()
    assert abs(big["layers.0.attention.qkv.weight"].std() - 0.02) < 1e-3 and (big["norm.weight"] == 1).all()


# The first number of each parameter, in their order, recorded when the formats were fixed: stored runs depend on
# both. Weights are drawn by torch's generator on the CPU.
FIRST_WEIGHTS = [
    ("embed.weight", 0.036847),
    ("layers.0.norm1.weight", 1.0),
    ("layers.0.attention.qkv.weight", -0.012718),
    ("layers.0.attention.out.weight", -0.010126),
    ("layers.0.norm2.weight", 1.0),
    ("layers.0.feed_forward.gate_up.weight", -0.005002),
    ("layers.0.feed_forward.down.weight", -0.003065),
    ("layers.1.norm1.weight", 1.0),
    ("layers.1.attention.qkv.weight", 0.011361),
    ("layers.1.attention.out.weight", 0.043228),
    ("layers.1.norm2.weight", 1.0),
    ("layers.1.feed_forward.gate_up.weight", 0.028641),
    ("layers.1.feed_forward.down.weight", 0.010017),
    ("norm.weight", 1.0),
    ("head.weight", -0.01888),
]
FIRST_WEIGHTS_ABSOLUTE = [
    ("embed.weight", 0.036847),
    ("positions.weight", -0.012718),
    ("layers.0.norm1.weight", 1.0),
    ("layers.0.attention.qkv.weight", 0.004184),
    ("layers.0.attention.out.weight", 0.018541),
    ("layers.0.norm2.weight", 1.0),
    ("layers.0.feed_forward.gate_up.weight", -0.003065),
    ("layers.0.feed_forward.down.weight", -0.019375),
    ("layers.1.norm1.weight", 1.0),
    ("layers.1.attention.qkv.weight", 0.027972),
    ("layers.1.attention.out.weight", -0.019973),
    ("layers.1.norm2.weight", 1.0),
    ("layers.1.feed_forward.gate_up.weight", 0.010017),
    ("layers.1.feed_forward.down.weight", -0.002233),
    ("norm.weight", 1.0),
    ("head.weight", 0.010855),
]


@every_position
def test_weights_and_their_order_are_the_recorded_ones(positions):
    config = ModelConfig(layers=2, heads=2, width=16, ffn=16, positions=positions, context=32)
    first = [(name, round(p.flatten()[0].item(), 6)) for name, p in Decoder(config, 5).named_parameters()]
    assert first == (FIRST_WEIGHTS_ABSOLUTE if positions == "absolute" else FIRST_WEIGHTS)


def test_device_of_a_model():
    assert device_of(make()) == torch.device("cpu") == device_of(torch.nn.Identity())


@pytest.mark.parametrize("changes, message", [
    (dict(heads=3), "heads=3"), (dict(layers=0), "layers=0"), (dict(ffn=-1), "ffn=-1"),
    (dict(positions="abs"), "'abs'.*absolute"), (dict(positions="rope", heads=32), "rope"),
    (dict(std=-1.0), "std=-1"), (dict(std=float("nan")), "std=nan"),
    (dict(theta=0.0), "theta=0"), (dict(eps=-1.0), "eps=-1")], ids=str)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message): dataclasses.replace(SMALL, **changes)
