"""Named random streams, beside the published generator."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from self_improve.streams import GOLDEN_STRIDE, WORDS_PER_ROW, Stream, mix64

MASK = (1 << 64) - 1
# SplitMix64 with seed 1234567, as published
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
             16408922859458223821]


def splitmix(seed, n):
    """SplitMix64 as published, in plain integers: numbers 1 to n."""
    out = []
    for i in range(1, n + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def test_reference_is_the_published_generator():
    assert splitmix(1234567, 5) == PUBLISHED


@pytest.mark.parametrize("arange", [torch.arange, np.arange], ids=["torch", "numpy"])
def test_mix_gives_the_published_numbers(arange):
    assert [int(w) & MASK for w in mix64(arange(1, 6) * GOLDEN_STRIDE + 1234567)] == PUBLISHED


@given(st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_mix_is_the_same_in_numpy_and_torch(numbers):
    assert mix64(torch.tensor(numbers)).tolist() == mix64(np.array(numbers)).tolist()


def test_mix_leaves_its_argument_alone():
    x = torch.arange(1, 6)
    mix64(x)
    assert x.tolist() == [1, 2, 3, 4, 5]


def test_words_are_the_generator_started_at_the_key():
    stream = Stream(3, "base")
    numbers = splitmix(stream.key & MASK, 2 * WORDS_PER_ROW + 5)
    expected = [numbers[r * WORDS_PER_ROW + c] for r in range(3) for c in range(5)]
    assert [w & MASK for w in stream.words(3, 5).flatten().tolist()] == expected


def test_golden_numbers():
    """A record stores row numbers instead of problems: these numbers may never change."""
    stream = Stream(7, "eval", 1, 12, 3)
    assert stream.key == -2191945602283038289
    assert stream.words(2, 3).tolist() == [[8339235104688906433, -710724379236732933, 5639745150782683974],
                                           [4203909708167464298, -3337736102377345772, 2397625095165533570]]
    assert stream.integers(2, 5, 10).tolist() == [[4, 0, 9, 3, 3], [2, 2, 8, 9, 1]]
    assert stream.uniform(2, 2).tolist() == [[0.45207084086855476, 0.961471554199656],
                                             [0.2278944019264033, 0.819060963330959]]


@pytest.mark.parametrize("kind", ["words", "integers", "uniform"])
def test_a_row_does_not_depend_on_what_is_drawn_beside_it(kind):
    def draw(rows, columns):
        more = [1000] if kind == "integers" else []
        return getattr(Stream(5, "self", 2, 9, 1), kind)(rows, columns, *more)
    whole = draw(1000, 7)
    rows = torch.tensor([999, 0, 31, 31])
    assert torch.equal(draw(rows, 7), whole[rows])
    assert torch.equal(draw(rows, 3), whole[rows, :3])


def test_names_do_not_collide():
    """Every part of a name counts, and a pair is not the level its digits spell."""
    purposes = ("base", "self", "eval", "mix", "init", "sample")
    names = itertools.product((0, 1, 11), purposes, (0, 1, 11), (0, 1, 11, (1, 1), (1, 11)), (0, 1, 11))
    keys = [Stream(*name).key for name in names]
    assert len(set(keys)) == len(keys)
    words = []
    for purpose in ("base", "self", "eval"):
        for level in (1, 2): words.append(Stream(0, purpose, level=level).words(50, 20).flatten())
    words = torch.cat(words)
    assert len(words.unique()) == len(words)


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**40))
@settings(deadline=None, max_examples=30)
def test_integers_stay_below_their_end(high, row):
    drawn = Stream(0, "base").integers(torch.tensor([row]), 9, high)
    assert drawn.shape == (1, 9) and 0 <= drawn.min() and drawn.max() < high


def test_each_column_may_have_its_own_end():
    drawn = Stream(0, "base").integers(2000, 3, torch.tensor([1, 2, 10]))
    assert drawn.amax(0).tolist() == [0, 1, 9] and drawn.amin(0).tolist() == [0, 0, 0]


def test_a_uniform_number_never_reaches_one(monkeypatch):
    """Rounded to 32 bits the largest would, and a share or a row number made of it would lie past the end."""
    monkeypatch.setattr(Stream, "words", lambda *_: torch.full((1, 1), -1))
    u = Stream(0, "mix").uniform(1, 1)
    assert u.dtype == torch.float64 and u.item() == 1 - 2.0**-53


def test_numbers_are_uniform():
    u = Stream(0, "mix").uniform(20_000, 2)
    assert 0 <= u.min() and u.max() < 1
    assert (torch.histc(u, 10, 0, 1) / u.numel() - 0.1).abs().max() < 0.01
    assert torch.corrcoef(u.T)[0, 1].abs() < 0.03


def test_a_row_has_so_many_words():
    stream = Stream(0, "base")
    with pytest.raises(ValueError, match="4096.*4097"): stream.words(1, 4097)
    # the last word of a row is not the first of the next
    assert len(stream.words(3, WORDS_PER_ROW).unique()) == 3 * WORDS_PER_ROW


def test_streams_import_nothing_of_ours():
    """It is the first module: whatever it imported would be above it."""
    import self_improve.streams
    source = open(self_improve.streams.__file__, encoding="utf-8").read()
    assert "from self_improve" not in source and "from ." not in source
