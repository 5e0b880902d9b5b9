"""What a model looks at, and sums with carry chains."""
import pytest
import torch

from self_improve.experiments import experiment
from self_improve.explorers import TOLD_WEIGHT, attention_figure, attention_weights, carry_sum, read_prompt
from self_improve.model import Decoder, ModelConfig
from self_improve.records import find_run


@pytest.fixture(scope="module")
def copies(): return find_run(experiment("copy"), runs=None)


@pytest.mark.parametrize("positions", ["nope", "rope", "alibi", "absolute"])
def test_the_weights_are_those_the_layer_used(positions):
    model = Decoder(ModelConfig(vocab=16, layers=2, heads=2, width=16, ffn=16, positions=positions), 3)
    tokens = torch.arange(9, dtype=torch.uint8)
    weights = attention_weights(model, tokens)
    assert weights.shape == (2, 2, 9, 9) and not weights.triu(1).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 9))
    seen = []

    def compare(attention, given, out):
        x = given[0]
        value = attention.split_heads(attention.qkv(x).chunk(3, -1)[2])
        read = (weights[len(seen)] @ value).transpose(1, 2).reshape(x.shape)
        torch.testing.assert_close(attention.out(read), out)
        seen.append(True)

    for layer in model.layers: layer.attention.register_forward_hook(compare)
    with torch.no_grad(): model(tokens[None])
    assert len(seen) == 2


def test_no_hook_stays_even_after_a_failure():
    model = Decoder(ModelConfig(vocab=8, layers=1, heads=1, width=8, ffn=8), 0)
    attention_weights(model, torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(IndexError): attention_weights(model, torch.full((3,), 9, dtype=torch.uint8))
    assert not model.layers[0].attention._forward_pre_hooks


@pytest.mark.parametrize("written, layer, head", [(0, 0, -1), (3, -1, 0), (99, 1, 1)])
def test_a_picture_of_what_is_looked_at(copies, written, layer, head):
    ax = attention_figure(copies, "31415926", written, layer, head).axes[0]
    # 8 digits, the end sign, 8 digits
    line = [text.get_text() for text in ax.texts if text.get_position()[1] == 0.2]
    assert "".join(line) == "31415926=31415926"
    shares = [int(text.get_text()) for text in ax.texts if text.get_position()[1] != 0.2]
    assert sum(shares) <= 101 and all(share >= 100 * TOLD_WEIGHT - 1 for share in shares)
    next_one = "31415926"[min(written, 7)]
    assert ax.get_title().startswith(f"next: {next_one!r}")


def test_a_head_looks_at_the_digit_that_it_copies(copies):
    """As it does only if the model reads what it was trained on, BOS first."""
    text, found = "31415926", 0
    for written in range(len(text)):
        ax = attention_figure(copies, text, written, layer=-1, head=0).axes[0]
        shares = {}
        for label in ax.texts:
            place, height = label.get_position()
            # the line itself stands at 0.2, the numbers below it
            if height != 0.2: shares[place] = int(label.get_text())
        found += max(shares, key=shares.get, default=None) == written
    assert found >= 6


def test_a_wrong_character_is_red(copies):
    # an untrained length of digits that the base model fails at
    ax = attention_figure(copies, "1" * 60, 0, round=0).axes[0]
    line = [text for text in ax.texts if text.get_position()[1] == 0.2]
    assert [text.get_color() for text in line[:61]] == ["black"] * 61
    assert all((text.get_text() == "1") == (text.get_color() == "black") for text in line[61:121])


@pytest.mark.parametrize("text, sentence", [("12a", "'a' at position 3"), ("12=12", "goes on after the prompt"),
                                            ("1" * 400, "400 characters: at most 260"),
                                            ("", "stands where a digit was due")])
def test_what_is_no_prompt(copies, text, sentence):
    with pytest.raises(ValueError, match=sentence): read_prompt(copies, text)


def test_the_end_sign_may_be_left_out(copies):
    assert torch.equal(read_prompt(copies, "12"), read_prompt(copies, "12="))


@pytest.mark.parametrize("digits, chain", [(1, 0), (2, 1), (8, 7), (40, 13), (10, 9), (11, 10), (19, 18)])
def test_a_carry_runs_as_far_as_asked(digits, chain):
    a, b = carry_sum(digits, chain)
    assert len(a) == len(b) == digits and a[0] != "0" and b[0] != "0"
    carry, lengths, here = 0, [], 0
    for x, y in zip(reversed(a), reversed(b), strict=True):
        total = int(x) + int(y)
        here = here + 1 if carry and total == 9 else 0
        lengths.append(here)
        carry = int(total + carry > 9)
    assert max(lengths) == chain


@pytest.mark.parametrize("digits, chain", [(3, 3), (3, -1), (0, 0)])
def test_a_chain_that_does_not_fit(digits, chain):
    with pytest.raises(ValueError, match="carry chains of 0 to"): carry_sum(digits, chain)
