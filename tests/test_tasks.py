"""Vocabularies, streams, blocks, and the string tasks."""
import itertools
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from self_improve.tasks import (ARITHMETIC, BOS, COLUMNS, EOS, GOLDEN, PAD, TASKS, Block, Copy, Reverse, Stream, Task, Vocab, join_columns,
                                make_task, mix64, same_rows)

MASK = (1 << 64) - 1
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]   # SplitMix64, seed 1234567
tasks = st.sampled_from([Copy(), Reverse()])


def splitmix(seed, n):
    """SplitMix64 as published, in plain integers: numbers 1 to n."""
    out = []
    for i in range(1, n + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


# streams

def test_reference_is_the_published_generator():
    assert splitmix(1234567, 5) == PUBLISHED


@pytest.mark.parametrize("arange", [torch.arange, np.arange], ids=["torch", "numpy"])
def test_mix_gives_the_published_numbers(arange):
    assert [int(w) & MASK for w in mix64(arange(1, 6) * GOLDEN + 1234567)] == PUBLISHED


@given(st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_mix_is_the_same_in_numpy_and_torch(numbers):
    assert mix64(torch.tensor(numbers)).tolist() == mix64(np.array(numbers)).tolist()


def test_words_are_the_generator_started_at_the_key():
    stream = Stream(3, "base")
    numbers = splitmix(stream.key & MASK, 2 * COLUMNS + 5)
    assert [w & MASK for w in stream.words(3, 5).flatten().tolist()] == [numbers[r * COLUMNS + c] for r in range(3) for c in range(5)]


def test_golden_numbers():
    """A record stores row numbers instead of problems: these numbers may never change."""
    stream = Stream(7, "eval", 1, 12, 3)
    assert stream.key == -2191945602283038289
    assert stream.words(2, 3).tolist() == [[8339235104688906433, -710724379236732933, 5639745150782683974],
                                           [4203909708167464298, -3337736102377345772, 2397625095165533570]]
    assert stream.integers(2, 5, 10).tolist() == [[4, 0, 9, 3, 3], [2, 2, 8, 9, 1]]
    assert stream.uniform(2, 2).tolist() == [[0.45207084086855476, 0.961471554199656], [0.2278944019264033, 0.819060963330959]]


def test_golden_problems():
    block = Copy().draw(6, Stream(1, "self", level=6), 4)
    assert [Copy().show(row) for row in block.prompt] == ["712041=", "732752=", "686232=", "688437="]


@pytest.mark.parametrize("kind", ["words", "integers", "uniform"])
def test_a_row_does_not_depend_on_what_is_drawn_beside_it(kind):
    def draw(rows, columns): return getattr(Stream(5, "self", 2, 9, 1), kind)(rows, columns, *([1000] if kind == "integers" else []))
    whole = draw(1000, 7)
    rows = torch.tensor([999, 0, 31, 31])
    assert torch.equal(draw(rows, 7), whole[rows])
    assert torch.equal(draw(rows, 3), whole[rows, :3])


def test_names_do_not_collide():
    """Every part of a name counts, and a pair is not the level its digits spell."""
    keys = [Stream(*name).key for name in itertools.product((0, 1, 11), ("base", "self", "eval", "mix", "init", "sample"), (0, 1, 11), (0, 1, 11, (1, 1), (1, 11)), (0, 1, 11))]
    assert len(set(keys)) == len(keys)
    words = torch.cat([Stream(0, purpose, level=level).words(50, 20).flatten() for purpose in ("base", "self", "eval") for level in (1, 2)])
    assert len(words.unique()) == len(words)


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**40))
@settings(deadline=None, max_examples=30)
def test_integers_stay_below_their_end(high, row):
    drawn = Stream(0, "base").integers(torch.tensor([row]), 9, high)
    assert drawn.shape == (1, 9) and 0 <= drawn.min() and drawn.max() < high


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
    assert len(stream.words(3, COLUMNS).unique()) == 3 * COLUMNS   # the last word of a row is not the first of the next


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


def test_longer_symbols_are_read_first():
    vocab = Vocab(("1", "2", "12"))
    assert vocab.encode("1212") == [vocab.ids["12"]] * 2 and vocab.decode(vocab.encode("121")) == "121"


@pytest.mark.parametrize("text, character, position", [("12a4=", "a", 3), ("x=", "x", 1), ("12=1 ", " ", 5), ("1=²", "²", 3)])
def test_a_foreign_character_is_named_with_its_place(text, character, position):
    with pytest.raises(ValueError, match=f"{character!r} at position {position}"): ARITHMETIC.encode(text)


# rows

def test_worked_examples():
    """The formats of the paper: `1095477427=` → the same, `12345=` → `54321`."""
    for task, text in ((Copy(), "1095477427=1095477427"), (Reverse(), "12345=54321")):
        row = task.parse(text)
        assert ARITHMETIC.decode(task.solve(row.prompt)[0]) == text.partition("=")[2]
        assert task.check(row, task.solve(row.prompt)).tolist() == [True]
        assert row.answer[0, -1] == EOS


@given(tasks, st.integers(1, 60), st.integers(0, 2**40), st.sampled_from(["base", "self", "eval"]))
@settings(deadline=None, max_examples=40)
def test_rows_to_text_and_back(task, level, row, purpose):
    block = task.draw(level, Stream(0, purpose, level=level), torch.tensor([row]))
    text = task.show(block.prompt[0], block.answer[0])
    prompt, answer = text.split("=")
    assert answer == (prompt if task.name == "copy" else prompt[::-1])
    assert len(prompt) == level and prompt[0] in "123456789"
    again = task.parse(text)
    assert torch.equal(again.prompt, block.prompt) and torch.equal(again.answer, block.answer)
    assert again.prompt.dtype == again.answer.dtype == block.prompt.dtype == block.answer.dtype == torch.uint8


def test_parse_without_an_answer():
    row = Copy().parse("12=")
    assert Copy().show(row.prompt[0]) == "12=" and row.answer.shape == (1, 0)
    with pytest.raises(ValueError, match="'12'"): Copy().parse("12")
    with pytest.raises(ValueError, match="'x' at position 2"): Copy().parse("1x=")


@given(tasks, st.lists(st.integers(0, 10_000), min_size=1, max_size=20))
@settings(deadline=None, max_examples=25)
def test_problems_do_not_depend_on_their_neighbours(task, rows):
    stream = Stream(0, "self", level=12, round=2)
    some, one = task.draw(12, stream, torch.tensor(rows)), task.draw(12, stream, torch.tensor(rows[-1:]))
    assert torch.equal(some.prompt[-1:], one.prompt) and torch.equal(some.answer[-1:], one.answer)


def test_digits_are_fair():
    """First 1–9, the others 0–9, each about equally often: 5 standard deviations."""
    digits = Copy().draw(3, Stream(0, "base", level=3), 9000).prompt[:, :3].long() - ARITHMETIC.ids["0"]
    for column, low in ((0, 1), (1, 0), (2, 0)):
        counts = torch.bincount(digits[:, column], minlength=10)
        share = 1 / (10 - low)
        assert counts[:low].sum() == 0
        assert (counts[low:] - 9000 * share).abs().max() < 5 * (9000 * share) ** 0.5


@pytest.mark.parametrize("task", [Copy(), Reverse()], ids=lambda t: t.name)
@pytest.mark.parametrize("level", [1, 4, 31, 32, 100])
def test_cap_follows_from_the_format(task, level):
    width = level + 1
    assert task.width(level) == width and task.cap(level) == width + max(4, width // 8)


def test_check_wants_the_whole_output():
    block = Copy().parse("123=123")
    good = block.answer[0].tolist()
    outputs = [good + [PAD], good[:-1] + [PAD, PAD], good[:-1] + good[:1] + [EOS], good + [EOS], good[:2] + [EOS, PAD, PAD], good[::-1] + [PAD]]
    right = Copy().check(Block(block.prompt.expand(6, -1), block.answer.expand(6, -1)), torch.tensor(outputs, dtype=torch.uint8))
    assert right.tolist() == [True] + [False] * 5   # no EOS, too long, something after EOS, too short, wrong


def test_same_rows_ignores_padding_only():
    a = torch.tensor([[5, 2, 0], [5, 2, 0], [5, 2, 7]], dtype=torch.uint8)
    b = torch.tensor([[5, 2], [5, 3], [5, 2]], dtype=torch.uint8)
    assert same_rows(a, b).tolist() == same_rows(b, a).tolist() == [True, False, False]


def test_join_columns():
    joined = join_columns(2, torch.tensor([[3], [4]]), EOS)
    assert joined.tolist() == [[3, EOS], [4, EOS]] and joined.dtype == torch.uint8


@pytest.mark.parametrize("level", [0, -1, 1.5, "3", True, None])
def test_levels_a_task_does_not_have(level):
    with pytest.raises(ValueError, match="copy.*whole number from 1"): Copy().shapes(level)


def test_levels_include_both_ends():
    assert Copy().levels(3, 5) == [3, 4, 5]


def test_a_string_task_has_no_verifier():
    with pytest.raises(ValueError, match="copy has no verifier"): Copy().verify(None, None)


def test_tasks_by_name():
    assert {"reverse_addition", "forward_addition", "copy", "reverse", "multiplication", "maze_hops", "maze_nodes"} == set(TASKS) and make_task("reverse") == Reverse()
    assert all(TASKS[name].name == name and make_task(name) == TASKS[name]() for name in TASKS)
    with pytest.raises(ValueError, match="'cpy'.*copy, reverse"): make_task("cpy")
    with pytest.raises(ValueError, match="'base'"): make_task("copy", base=10)


# a task of one's own

class Last(Task):
    """`314=` → `4`: a user's task, with nothing but what a task must have."""
    name: ClassVar[str] = "last"
    vocab: ClassVar[Vocab] = Vocab("abc=")

    def shapes(self, level, purpose="self"): return [self.check_level(level)]

    def draw(self, shape, stream, rows):
        letters = stream.integers(rows, shape, 3) + self.vocab.ids["a"]
        return Block(join_columns(len(letters), letters, self.vocab.ids["="]), join_columns(len(letters), letters[:, -1:], EOS))


def test_own_task_gets_the_rest_from_the_defaults():
    task = Last()
    block = task.draw(4, Stream(0, "self"), 50)
    assert task.cap(4) == 2 + 4 and task.check(block, block.answer).all()
    assert Counter(task.show(p)[-2] == task.show(a) for p, a in zip(block.prompt, block.answer)) == {True: 50}
    assert task.parse("ab=b").answer.tolist() == [[task.vocab.ids["b"], EOS]]


def test_own_task_in_the_loop(monkeypatch):
    """The loop asks for nothing else; registered under its name it runs like any other."""
    from self_improve.loop import SelfImprovement
    from self_improve.records import Config, LoopConfig, ModelConfig, TrainConfig
    monkeypatch.setitem(TASKS, "last", Last)
    config = Config(task="last", high=3, model=ModelConfig(1, 2, 16, 16, vocab=len(Last.vocab)), train=TrainConfig(steps=2, batch=8),
                    loop=LoopConfig(rounds=1, steps=2, problems=8, evaluate=4, final=4, ahead=1))
    base, first = SelfImprovement(config)
    assert first.levels == [4] and first.filter[0]["made"] == 8 and set(base.accuracy) == {"1", "2", "3", "4"}
