"""Vocabularies, blocks, truth, and the text of problems."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from self_improve.blocks import (
    ARITHMETIC,
    BOS,
    EOS,
    PAD,
    Block,
    Truth,
    Vocab,
    concat_columns,
    level_from_text,
    level_text,
    mark_errors,
    numbers_end,
    random_digits,
    rows_equal,
)
from self_improve.streams import Stream

# vocabularies

@given(st.text(alphabet="0123456789=+*()"))
@settings(deadline=None)
def test_text_to_ids_and_back(text):
    assert ARITHMETIC.decode(ARITHMETIC.encode(text)) == text


def test_special_tokens_are_not_text():
    assert (PAD, BOS, EOS) == (0, 1, 2)
    assert ARITHMETIC.decode([BOS, *ARITHMETIC.encode("12"), EOS, *ARITHMETIC.encode("3"), PAD]) == "12"
    for text in ("^", "$", "1$"):
        with pytest.raises(ValueError): ARITHMETIC.encode(text)


def test_the_ids_of_arithmetic():
    """Stored weights and labels rely on these ids: they may never change."""
    assert ARITHMETIC.encode("0123456789=+*()") == list(range(3, 18)) and len(ARITHMETIC) == 18


def test_longer_symbols_are_read_first():
    vocab = Vocab(("1", "2", "12"))
    assert vocab.encode("1212") == [vocab.ids["12"]] * 2 and vocab.decode(vocab.encode("121")) == "121"


@pytest.mark.parametrize("text, character, position",
                         [("12a4=", "a", 3), ("x=", "x", 1), ("12=1 ", " ", 5), ("1=²", "²", 3)])
def test_a_foreign_character_is_named_with_its_place(text, character, position):
    with pytest.raises(ValueError, match=f"{character!r} at position {position}"): ARITHMETIC.encode(text)


def test_a_token_is_one_byte():
    assert len(Vocab([chr(1000 + i) for i in range(253)])) == 256
    with pytest.raises(ValueError, match="257 ids is too large"): Vocab([chr(1000 + i) for i in range(254)])


@pytest.mark.parametrize("symbols", ["aba", ("1", ""), ("10", "1", "10")])
def test_symbols_are_different_and_not_empty(symbols):
    with pytest.raises(ValueError, match="all different"): Vocab(symbols)


# rows

def test_several_numbers_stand_side_by_side():
    digits = random_digits(Stream(0, "base"), 2000, 3, 1, 2)
    assert digits.amin(0).tolist() == [1, 0, 0, 1, 1, 0] and digits.amax(0).tolist() == [9] * 6


def test_rows_equal_ignores_padding_only():
    a = torch.tensor([[5, 2, 0], [5, 2, 0], [5, 2, 7]], dtype=torch.uint8)
    b = torch.tensor([[5, 2], [5, 3], [5, 2]], dtype=torch.uint8)
    assert rows_equal(a, b).tolist() == rows_equal(b, a).tolist() == [True, False, False]


def test_concat_columns():
    joined = concat_columns(2, torch.tensor([[3], [4]]), EOS)
    assert joined.tolist() == [[3, EOS], [4, EOS]] and joined.dtype == torch.uint8
    assert concat_columns(2, EOS, torch.empty(2, 1, device="meta")).device.type == "meta"


def test_take():
    digits = random_digits(Stream(0, "self"), 5, 3)
    block = Block(digits, digits + 1)
    some = block.take([4, 1])
    assert len(block) == 5 and torch.equal(some.prompt, block.prompt[[4, 1]])
    assert torch.equal(some.answer, block.answer[[4, 1]])


def test_truth_is_a_type_of_its_own():
    """It holds answers only: no prompts that a model could be asked with, no columns that a block has."""
    assert not issubclass(Truth, Block)
    with pytest.raises(AttributeError): _ = Truth(torch.zeros(1, 1)).prompt


# text

def test_levels_as_text_and_back():
    assert level_text(12) == "12" and level_text((5, 6)) == "5,6"
    for level in (12, (5, 6), "ten", "5,6,7", "5,", "-1", "", "٣", "9" * 10):
        assert level_from_text(level_text(level)) == level


def test_where_numbers_end():
    assert numbers_end("12+34=46", "+=", reversed=False) == 6
    assert numbers_end("01+1=", "+=", reversed=True) == 5
    refused = {"12*34=": r"'\*' at position 3.*another digit or '\+'",
               "12+=": "'=' at position 4.*a digit was due",
               "12+034=": "'0' at position 4.*leading digit 1–9",
               "12+34": "ends after position 5.*another digit or '='"}
    for text, message in refused.items():
        with pytest.raises(ValueError, match=message): numbers_end(text, "+=", reversed=False)
    with pytest.raises(ValueError, match="'0' at position 2.*leading digit"): numbers_end("10+1=", "+=", reversed=True)


@given(st.text(alphabet="0123456789=+*()", min_size=1, max_size=12),
       st.text(alphabet="0123456789=+*()", max_size=14), st.booleans())
@settings(deadline=None)
def test_errors_are_marked(true, given_text, end):
    def row(text, end): return torch.tensor(ARITHMETIC.encode(text) + [EOS] * end, dtype=torch.uint8)
    shown, wrong = mark_errors(ARITHMETIC, row(true, True), row(given_text, end))
    assert (wrong == []) == (end and given_text == true)
    said = given_text if end else given_text + "…"
    assert shown == said + "·" * (len(true) - len(said))
    assert wrong == [i for i in range(len(shown)) if i >= len(true) or i >= len(said) or true[i] != said[i]]
