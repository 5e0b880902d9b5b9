"""The class `Task`, the string tasks, and the registry."""
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from self_improve.streams import Stream
from self_improve.tasks import (
    ARITHMETIC,
    EOS,
    PAD,
    TASKS,
    Block,
    Copy,
    Reverse,
    Task,
    Vocab,
    check_task,
    concat_columns,
    draw_problems,
    level_text,
    make_task,
    register,
)

tasks = st.sampled_from([Copy(), Reverse()])


@pytest.fixture
def registry():
    """`TASKS`, as it was again after the test."""
    before = dict(TASKS)
    yield TASKS
    TASKS.clear()
    TASKS.update(before)


# rows

def test_worked_examples():
    """The formats of the paper: `1095477427=` → the same, `12345=` → `54321`."""
    for task, text in ((Copy(), "1095477427=1095477427"), (Reverse(), "12345=54321")):
        row = task.parse(text)
        assert ARITHMETIC.decode(task.solve(row.prompt)[0]) == text.partition("=")[2]
        assert task.check(row, task.solve(row.prompt)).tolist() == [True]
        assert row.answer[0, -1] == EOS


def test_golden_problems():
    block = Copy().draw(6, Stream(1, "self", level=6), 4)
    assert [Copy().show(row) for row in block.prompt] == ["712041=", "732752=", "686232=", "688437="]


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
    for array in (again.prompt, again.answer, block.prompt, block.answer): assert array.dtype == torch.uint8


def test_parse_without_an_answer():
    row = Copy().parse("12=")
    assert Copy().show(row.prompt[0]) == "12=" and row.answer.shape == (1, 0) and row.answer.dtype == torch.uint8
    with pytest.raises(ValueError, match="'12'"): Copy().parse("12")
    with pytest.raises(ValueError, match="'x' at position 2"): Copy().parse("1x=")


def test_parse_takes_a_wrong_answer():
    """An answer may be a model's."""
    assert Copy().show(Copy().parse("12=9+=").answer[0]) == "9+="


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
    # right; no EOS; too long; something after EOS; too short; wrong
    outputs = [good + [PAD], good[:-1] + [PAD, PAD], good[:-1] + good[:1] + [EOS], good + [EOS],
               good[:2] + [EOS, PAD, PAD], good[::-1] + [PAD]]
    six = Block(block.prompt.expand(6, -1), block.answer.expand(6, -1))
    right = Copy().check(six, torch.tensor(outputs, dtype=torch.uint8))
    assert right.tolist() == [True] + [False] * 5


# levels

@pytest.mark.parametrize("level", [0, -1, -3, 1.5, 2.0, "3", True, None, (3, 3), [3]])
def test_levels_a_task_does_not_have(level):
    for ask in (Copy().check_level, Copy().shapes):
        with pytest.raises(ValueError) as told: ask(level)
        assert str(told.value) == f"level {level!r} is not one that copy has: give a whole number from 1"


def test_which_levels_there_are():
    assert Copy().levels(3, 5) == [3, 4, 5] and Copy().levels(-2, 2) == [1, 2] and Copy().levels(3, 2) == []
    assert Copy().shapes(5) == Copy().shapes(5, "base") == [5]
    assert Copy().size(7) == 7 and Copy().size((5, 6)) == Copy().size((6, 5)) == 6


def test_levels_as_text():
    for level in Copy().levels(1, 4): assert Copy().parse_level(level_text(level)) == level


@pytest.mark.parametrize("text", ["", "ten", "5,6", "1.5", "-1", "0", "+3", "3 ", "٣", "9" * 5000], ids=lambda t: t[:9])
def test_typed_levels_that_are_no_number(text):
    with pytest.raises(ValueError, match="is not one that copy has: give a whole number from 1$"):
        Copy().parse_level(text)


# text and pictures

def test_a_picture_as_text():
    row = Copy().parse("345=345")
    output = Copy().parse("345=349").answer[0]
    assert str(Copy().picture(row.prompt[0], row.answer[0], output)) == \
        "prompt  345=\nanswer  345\noutput  349\n          ^"
    assert str(Copy().picture(row.prompt[0], row.answer[0])) == "prompt  345=\nanswer  345"


def test_a_string_task_has_no_verifier():
    with pytest.raises(ValueError, match="copy has no verifier"): Copy().verify(None, None)


# tasks by name

def test_tasks_by_name():
    assert make_task("reverse") == Reverse()
    assert all(TASKS[name].name == name and make_task(name) == TASKS[name]() for name in ("copy", "reverse"))
    with pytest.raises(ValueError, match="'cpy'.*copy, reverse"): make_task("cpy")
    with pytest.raises(ValueError, match="copy has no option 'base': it has none"): make_task("copy", base=10)


def test_the_seven_tasks_of_the_paper_and_a_light_import():
    """After importing the task modules, and without libraries that only pictures, tables or Hugging Face need."""
    code = ("import sys, self_improve.arithmetic, self_improve.mazes; from self_improve.tasks import TASKS; "
            "print(*sorted(TASKS), *({'matplotlib', 'pandas', 'transformers'} & set(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert out == ["copy", "forward_addition", "maze_hops", "maze_nodes", "multiplication", "reverse",
                   "reverse_addition"]


def test_problems_of_a_level():
    shape, block = draw_problems(Copy(), 5, Stream(3, "eval", level=5), 7)
    assert shape == 5 and torch.equal(block.prompt, Copy().draw(5, Stream(3, "eval", level=5), 7).prompt)
    assert draw_problems(Copy(), 5, Stream(3, "eval", level=5), 7, device="meta")[1].prompt.device.type == "meta"
    with pytest.raises(ValueError, match="level 0"): draw_problems(Copy(), 0, Stream(0, "eval"), 7)


# a task of one's own

class Last(Task):
    """`abc=` → `c`: a user's task, with nothing but what a task must have."""
    name: ClassVar[str] = "last"
    vocab: ClassVar[Vocab] = Vocab("abc=")

    def shapes(self, level, purpose="self"): return [self.check_level(level)]

    def draw(self, shape, stream, rows):
        letters = stream.integers(rows, shape, 3) + self.vocab.ids["a"]
        prompts = concat_columns(len(letters), letters, self.vocab.ids["="])
        return Block(prompts, concat_columns(len(letters), letters[:, -1:], EOS))


def test_own_task_gets_the_rest_from_the_defaults():
    task = Last()
    block = task.draw(4, Stream(0, "self"), 50)
    assert task.cap(4) == 2 + 4 and task.check(block, block.answer).all()
    last = [task.show(p)[-2] == task.show(a) for p, a in zip(block.prompt, block.answer, strict=True)]
    assert Counter(last) == {True: 50}
    assert task.parse("ab=b").answer.tolist() == [[task.vocab.ids["b"], EOS]]
    check_task(task)


def test_own_task_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="'ab' has no '='"): Last().parse("ab")
    with pytest.raises(ValueError, match="nothing before its '='"): Last().parse("=a")
    with pytest.raises(ValueError, match="last has no solver"): Last().solve(Last().parse("ab=").prompt)


def test_own_task_has_a_picture():
    row = Last().parse("ab=b")
    output = torch.tensor([Last.vocab.ids["a"], EOS])
    assert str(Last().picture(row.prompt[0], row.answer[0], output)) == "prompt  ab=\nanswer  b\noutput  a\n        ^"


def test_options_are_dataclass_fields(registry):
    @register
    @dataclass(frozen=True)
    class Sorted(Last):
        name: ClassVar[str] = "sorted"
        descending: bool = False
    assert make_task("sorted", descending=True) == Sorted(True) != make_task("sorted")
    with pytest.raises(ValueError, match="sorted has no option 'up': it has descending"): make_task("sorted", up=1)


def test_own_task_in_the_loop(registry):
    """The loop asks for nothing else; registered under its name it runs like any other."""
    from self_improve.config import Config, LoopConfig
    from self_improve.loop import SelfImprovement
    from self_improve.model import ModelConfig
    from self_improve.train import TrainConfig
    register(Last)
    config = Config(task="last", high=3, model=ModelConfig(1, 2, 16, 16, vocab=len(Last.vocab)),
                    train=TrainConfig(steps=2, batch=8),
                    loop=LoopConfig(rounds=1, steps=2, problems=8, evaluate=4, final=4, ahead=1))
    base, first = SelfImprovement(config)
    assert first.levels == [4] and first.filter[0]["made"] == 8 and set(base.accuracy) == {"1", "2", "3", "4"}
