"""Tasks of one's own: registration, the rules that `check_task` tests, files and installed packages."""
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from self_improve.arithmetic import ForwardAddition, Multiplication, ReverseAddition
from self_improve.mazes import MazeHops, MazeNodes
from self_improve.tasks import (
    ARITHMETIC,
    BOS,
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
    load_entry_points,
    load_plugin,
    make_task,
    random_digits,
    register,
)

MY_TASKS = '''
from dataclasses import dataclass
from typing import ClassVar
from self_improve.tasks import ARITHMETIC, EOS, Block, Task, Vocab, concat_columns, random_digits, register

@register
@dataclass(frozen=True)
class MySorting(Task):
    name: ClassVar[str] = "my_sorting"
    vocab: ClassVar[Vocab] = ARITHMETIC
    descending: bool = False

    def shapes(self, level, purpose="self"): return [self.check_level(level)]

    def draw(self, shape, stream, rows):
        digits = random_digits(stream, rows, shape) + self.vocab.ids["0"]
        ordered = digits.sort(dim=1, descending=self.descending).values
        prompts = concat_columns(len(digits), digits, self.vocab.ids["="])
        return Block(prompts, concat_columns(len(digits), ordered, EOS))
'''


@pytest.fixture(autouse=True)
def registry():
    """`TASKS` as it was again after each test."""
    before = dict(TASKS)
    yield TASKS
    TASKS.clear()
    TASKS.update(before)


@pytest.fixture
def my_tasks(tmp_path):
    file = tmp_path / "my_tasks.py"
    file.write_text(MY_TASKS)
    return file


@dataclass(frozen=True)
class Sorting(Task):
    """What the broken tasks below are made of."""
    name: ClassVar[str] = "sorting"
    vocab: ClassVar[Vocab] = ARITHMETIC

    def shapes(self, level, purpose="self"): return [self.check_level(level)]

    def draw(self, shape, stream, rows):
        digits = random_digits(stream, rows, shape) + self.vocab.ids["0"]
        return self.write(digits, digits.sort(dim=1).values)

    def write(self, digits, answer):
        n = len(digits)
        return Block(concat_columns(n, digits, self.vocab.ids["="]), concat_columns(n, answer, EOS))


# registration

def test_a_registered_task_can_be_made_by_name():
    assert register(Sorting) is Sorting and make_task("sorting") == Sorting()


def test_a_name_belongs_to_one_class():
    class Impostor(Sorting):
        name = "copy"
    with pytest.raises(ValueError, match="'copy' belongs to Copy of self_improve.tasks: give .*Impostor another name"):
        register(Impostor)
    assert TASKS["copy"] is Copy


def test_a_name_that_is_only_inherited_is_taken():
    class Sub(Reverse): pass
    with pytest.raises(ValueError, match="'reverse' belongs to Reverse"): register(Sub)


def test_the_same_class_defined_again_replaces_itself():
    def define():
        class Again(Sorting):
            name = "again"
        return register(Again)
    first = define()
    assert define() is TASKS["again"] is not first


def test_a_notebook_may_redefine_a_class_of_the_package():
    kind = type("Copy", (Task,), {"name": "copy", "__module__": "__main__"})
    assert register(kind) is TASKS["copy"]
    assert register(Copy) is TASKS["copy"]
    other = type("Copy", (Task,), {"name": "copy", "__module__": "elsewhere"})
    with pytest.raises(ValueError, match="'copy' belongs to Copy of self_improve.tasks"): register(other)


@pytest.mark.parametrize("name", ["", "two words", "a-b", "1st", None, 3])
def test_names_are_words(name):
    kind = type("Mine", (Sorting,), {"name": name})
    with pytest.raises(ValueError, match=f"Mine has the name {name!r}: give it one of letters"): register(kind)


@pytest.mark.parametrize("thing", [Sorting(), int, "copy"])
def test_only_classes_of_tasks_are_registered(thing):
    with pytest.raises(ValueError, match="is not a task"): register(thing)


# rules

EVERY_TASK = [Copy(), Reverse(), Sorting(), ReverseAddition(), ForwardAddition(), ForwardAddition("padded"),
              ForwardAddition("plain"), Multiplication(), MazeHops(), MazeNodes(), MazeHops(nodes=2), MazeNodes(hops=1)]


@pytest.mark.parametrize("task", EVERY_TASK, ids=repr)
def test_every_task_of_the_library_keeps_the_rules(task):
    check_task(task)


class WrongShapes(Sorting):
    def shapes(self, level, purpose="self"): return [level, level + 1]


class NoList(Sorting):
    def shapes(self, level, purpose="self"): return self.check_level(level)


class NoBase(Sorting):
    def shapes(self, level, purpose="self"): return [] if purpose == "base" else [level]


class UnreadableLevel(Sorting):
    def parse_level(self, text): return int(text) + 1


class Long(Sorting):
    def write(self, digits, answer):
        block = super().write(digits, answer)
        return Block(block.prompt, block.answer.long())


class OneProblem(Sorting):
    def draw(self, shape, stream, rows): return super().draw(shape, stream, 1)


class FlatAnswer(Sorting):
    def write(self, digits, answer):
        block = super().write(digits, answer)
        return Block(block.prompt, block.answer[:, 0])


class ForeignIds(Sorting):
    vocab = Vocab("0123456789")

    def write(self, digits, answer):
        return Block(concat_columns(len(digits), digits, 13), concat_columns(len(digits), answer, EOS))


class EndInPrompt(Sorting):
    def write(self, digits, answer):
        block = super().write(digits, answer)
        return Block(concat_columns(len(digits), BOS, block.prompt), block.answer)


class NoEnd(Sorting):
    def write(self, digits, answer): return Block(super().write(digits, answer).prompt, answer.to(torch.uint8))


class PaddingInside(Sorting):
    def write(self, digits, answer):
        block = super().write(digits, answer)
        return Block(block.prompt, concat_columns(len(digits), answer, PAD, EOS))


class TwoEnds(Sorting):
    def write(self, digits, answer):
        return Block(super().write(digits, answer).prompt, concat_columns(len(digits), answer, EOS, EOS))


class EmptyAnswer(Sorting):
    def write(self, digits, answer):
        return Block(super().write(digits, answer).prompt, concat_columns(len(digits), answer[:, :0], EOS))


class DownTheColumns(Sorting):
    def draw(self, shape, stream, rows):
        digits = random_digits(stream, rows, shape) + self.vocab.ids["0"]
        return self.write(digits, digits.sort(dim=0).values)


class UnnamedChance(Sorting):
    def draw(self, shape, stream, rows):
        n = rows if isinstance(rows, int) else len(rows)
        digits = torch.randint(1, 10, (n, shape)) + self.vocab.ids["0"]
        return self.write(digits, digits.sort(dim=1).values)


class OwnSeed(Sorting):
    def draw(self, shape, stream, rows):
        from self_improve.streams import Stream
        return super().draw(shape, Stream(5, "mine"), rows)


class Trimmed(Sorting):
    """Repeated digits are left out, and the block is as wide as its longest answer."""
    def draw(self, shape, stream, rows):
        block = super().draw(shape, stream, rows)
        answers = [[*dict.fromkeys(row)] for row in block.answer.tolist()]
        width = max(map(len, answers))
        padded = [row + [PAD] * (width - len(row)) for row in answers]
        return Block(block.prompt, torch.tensor(padded, dtype=torch.uint8))


class SmallCap(Sorting):
    def cap(self, shape): return shape


class Unreadable(Sorting):
    def prompt_end(self, text): raise ValueError("this is no prompt")


class Misread(Sorting):
    def show(self, prompt, answer=()): return super().show(prompt.flip(0)[1:]) + "=" + super().show(answer)


class WrongSolver(Sorting):
    def solve(self, prompts): return concat_columns(len(prompts), prompts[:, :-1], EOS)


class StrictVerifier(Sorting):
    def verify(self, prompts, outputs): return outputs[:, 0] != self.vocab.ids["1"]


class NeverRight(Sorting):
    def check(self, block, outputs): return torch.zeros(len(outputs), dtype=torch.bool)


class Crash(Sorting):
    def draw(self, shape, stream): return None


class NoLevels(Sorting):
    def levels(self, low, high): return []


# broken task → the rule that its message names, and an example in it
BROKEN = {
    WrongShapes: ("one shape", r"at level 1: for 'self' it is \[1, 2\]"),
    NoList: ("one shape", "for 'self' it is 1"),
    NoBase: ("one shape", r"for 'base' it is \[\]"),
    UnreadableLevel: ("parse_level reads", "'1' is read differently"),
    Long: ("uint8", r"answers are torch.int64 \[64, 2\], the first is \[\[\d+, 2\]\]"),
    OneProblem: ("a row for each row asked for", r"prompts are torch.uint8 \[1, 2\]"),
    FlatAnswer: ("uint8", r"answers are torch.uint8 \[64\]"),
    ForeignIds: ("ids are below the length of the vocabulary", r"row 0 is \[\d+, 13\]"),
    EndInPrompt: ("no PAD, BOS or EOS", r"row 0 is \[1, "),
    NoEnd: ("symbols, then one EOS, then PAD", r"row 0 is \[\d+, 13\] → \[\d+\]"),
    PaddingInside: ("symbols, then one EOS, then PAD", "row 0 is"),
    TwoEnds: ("symbols, then one EOS, then PAD", "row 0 is"),
    EmptyAnswer: ("symbols, then one EOS, then PAD", "row 0 is"),
    DownTheColumns: ("depend on the rows drawn beside it", r"row 0 is '(\d)=\1' alone and '(\d)=1' in a block"),
    UnnamedChance: ("depend on the rows drawn beside it", r"row \d+ is '\d=\d' alone"),
    OwnSeed: ("the stream decides the problems", r"two streams begin with '\d=\d'"),
    Trimmed: ("one width", r"at level 2: .*\d.* columns"),
    SmallCap: ("the cap leaves room", "2 columns, cap 1"),
    Unreadable: ("parse reads what show writes", r"row 0 is '\d=\d', which parse refuses: this is no prompt"),
    Misread: ("parse reads what show writes", r"at level 2: row \d+ is '\d\d=\d\d'"),
    WrongSolver: ("solve gives the answers of draw", r"at level 2: row \d+ is '(\d)(\d)=\2\1'"),
    StrictVerifier: ("verify accepts the true answers", r"row \d+ is '1=1'"),
    NeverRight: ("check accepts the true answers", r"row 0 is '(\d)=\1'"),
    Crash: ("every method runs", "at level 1: TypeError: .*draw"),
    NoLevels: ("a task has levels", "levels"),
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_task_is_told_its_rule_and_an_example(kind):
    rule, example = BROKEN[kind]
    with pytest.raises(ValueError) as told: check_task(kind())
    message = str(told.value)
    assert message.startswith("sorting breaks the rule '") and rule in message.split("'")[1]
    assert "\n" not in message
    with pytest.raises(ValueError, match=example): check_task(kind())


@pytest.mark.parametrize("thing", [Sorting, "copy", None])
def test_only_tasks_are_checked(thing):
    with pytest.raises(ValueError, match=r"is not a task: give one such as Copy\(\)"): check_task(thing)


def test_hard_levels_are_checked_too():
    """A fault that begins at level 4 is seen."""
    class LaterFault(Sorting):
        def cap(self, shape): return super().cap(shape) if shape < 4 else 3
    with pytest.raises(ValueError, match="at level 4: 5 columns, cap 3"): check_task(LaterFault())


# files

def test_a_file_registers_its_tasks(my_tasks):
    assert load_plugin(my_tasks) == ["my_sorting"]
    task = make_task("my_sorting", descending=True)
    check_task(task)
    row = task.parse("352=532")
    assert task.check(row, row.answer).all()


def test_a_changed_file_is_taken_in(my_tasks):
    load_plugin(my_tasks)
    my_tasks.write_text(MY_TASKS.replace("descending: bool = False", "descending: bool = True"))
    assert load_plugin(str(my_tasks)) == ["my_sorting"] and make_task("my_sorting").descending


def test_two_files_may_not_claim_one_name(my_tasks, tmp_path):
    load_plugin(my_tasks)
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "my_tasks.py"
    other.write_text(MY_TASKS)
    with pytest.raises(ValueError, match=f"does not import .*'my_sorting' belongs to MySorting of {my_tasks}"):
        load_plugin(other)


def test_a_file_may_have_the_name_of_a_module(tmp_path):
    """It hides nothing."""
    import json
    file = tmp_path / "json.py"
    file.write_text(MY_TASKS)
    assert load_plugin(file) == ["my_sorting"] and sys.modules["json"] is json


def test_a_file_without_tasks_registers_none(tmp_path):
    """It may hold filters or schedules."""
    file = tmp_path / "nothing.py"
    file.write_text("x = 1\n")
    assert load_plugin(file) == []


@pytest.mark.parametrize("text, message", [
    ("import nothing_of_that_name\n", r"\(line 1\): ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ("x = 1\ny = x +\n", r"\(line 2\): SyntaxError: invalid syntax$"),
    (MY_TASKS + "\n1 / 0\n", r"\(line \d+\): ZeroDivisionError: division by zero"),
    (MY_TASKS.replace('"my_sorting"', '"copy"'),
     r"ValueError: the task name 'copy' belongs to Copy of self_improve.tasks"),
])
def test_a_file_that_does_not_import(tmp_path, text, message):
    """One sentence, and nothing of it stays registered."""
    file = tmp_path / "bad.py"
    file.write_text(text)
    before = dict(TASKS)
    with pytest.raises(ValueError, match="bad.py' does not import.*" + message): load_plugin(file)
    assert before == TASKS and str(file) not in sys.modules


@pytest.mark.parametrize("path", ["missing.py", ".", "README.md"])
def test_a_path_that_is_no_python_file(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("text")
    with pytest.raises(ValueError, match=f"'{path}' is no Python file: give the path of a .py file"): load_plugin(path)


def test_a_plugin_needs_nothing_but_its_file(my_tasks, tmp_path):
    """In a fresh process: make, draw, check."""
    code = (f"from self_improve.tasks import *; load_plugin({str(my_tasks)!r}); task = make_task('my_sorting'); "
            "check_task(task); print(task.show(task.parse('352=235').prompt[0]))")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "352=\n"


# installed packages

def install(tmp_path, monkeypatch, source):
    """A package with an entry point, on the path of this process only."""
    (tmp_path / "their_tasks.py").write_text(source)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[self_improve.plugins]\ntheirs = their_tasks\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_installed_packages_register_their_tasks(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, MY_TASKS)
    monkeypatch.delitem(sys.modules, "their_tasks", raising=False)
    assert load_entry_points() == ["my_sorting"] and make_task("my_sorting").name == "my_sorting"
    assert load_entry_points() == []
    del sys.modules["their_tasks"]


def test_an_installed_package_that_does_not_import_is_named(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "import nothing_of_that_name\n")
    message = r"plugin 'theirs' \(their_tasks\) does not import: ModuleNotFoundError: .*nothing_of_that_name"
    with pytest.raises(ValueError, match=message): load_entry_points()


def test_a_missing_method_is_named():
    class Nothing(Task):
        name = "nothing"
        vocab = ARITHMETIC

    with pytest.raises(ValueError, match="Nothing does not define shapes"): check_task(Nothing())
