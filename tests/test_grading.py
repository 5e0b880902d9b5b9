"""Hostile submissions, each with its own case; points, feedback; and the proof of every assignment's checks."""
import contextlib
import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from self_improve.child import DTYPES, definitions, pack, unpack
from self_improve.course import Master, Part, build_course, find_masters
from self_improve.grading import (
    Child,
    ChildLost,
    Here,
    Limits,
    Nursery,
    Session,
    Submission,
    demonstrations,
    difference,
    form_difference,
    grade,
    grade_session,
    prepare,
    read_answer,
    read_submission,
)
from self_improve.marking import grade_course, prove, submission_of

MASTERS = find_masters()
# small, so that attacks are over soon
QUICK = Limits(seconds=1.5, memory=300 << 20, printed=500)
DOUBLE = "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"
TRIPLE = "def triple(x):\n    ### BEGIN SOLUTION\n    return 3 * x\n    ### END SOLUTION"
CASES = "def cases(stream):\n    for n in stream.integers(3, 1, 10**6)[:, 0].tolist(): yield (n + 1,)"
# two exercises: an attack has the first, the second is right
TOY = Master("01_toy", "Toy", (
    Part("setup", "#| without self_improve.arithmetic\nimport math"),
    Part("exercise", DOUBLE, "double", 2), Part("hidden", CASES, "double"),
    Part("exercise", TRIPLE, "triple", 2), Part("hidden", CASES, "triple"),
    Part("quiz", 'facts = {"a": 2, "b": 1}', "facts", 2),
))
FAMILIES = prepare(TOY, 7)
RIGHT = {"double": 2, "triple": 2, "facts": 2}


@pytest.fixture(scope="module", autouse=True)
def temporary():
    """Where children have their folders: one that the user nobody can look into, and no one else writes to."""
    folder, before = tempfile.mkdtemp(), tempfile.tempdir
    os.chmod(folder, 0o755)
    tempfile.tempdir = folder
    yield Path(folder)
    tempfile.tempdir = before
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def nursery():
    """One for all tests: that its children do not harm it is tested on the way."""
    with contextlib.closing(Nursery(TOY, QUICK)) as found: yield found


@pytest.fixture
def graded(nursery, monkeypatch):
    """Grades a submission, or the right one with a source in the place of the first exercise."""
    def run(given, hidden=(), **limits):
        monkeypatch.setattr(nursery, "limits", replace(QUICK, **limits))
        submission = submission_of(TOY, {"double": given}) if isinstance(given, str) else given
        return grade(TOY, submission, FAMILIES, nursery, hidden)
    return run


def points(result):
    found = {}
    for line in result.lines: found[line.exercise] = found.get(line.exercise, 0) + line.points
    return found


# answers as data

@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_tensors_arrive_as_they_left(dtype, shape):
    tensor = torch.randint(0, 2, shape).to(dtype)
    there = unpack(json.loads(json.dumps(pack(tensor))))
    assert there.dtype == dtype and there.shape == tensor.shape and torch.equal(there, tensor)


def test_plain_data_arrive():
    value = {"a": [1, 2.5, None, True, "x"], 3: [[], {}]}
    assert unpack(json.loads(json.dumps(pack(value)))) == value
    assert unpack(pack((1, (2, 3)))) == [1, [2, 3]]
    assert unpack(pack(torch.ones(2).numpy())).tolist() == [1, 1]
    assert pack(torch.tensor(3, dtype=torch.int64).numpy()) == 3
    # a view is packed as what it shows
    assert unpack(pack(torch.arange(6).reshape(2, 3).T)).tolist() == [[0, 3], [1, 4], [2, 5]]
    # a byte that is neither 0 nor 1 is true, and not a third value
    odd = {"is": "tensor", "dtype": "bool", "shape": [3], "data": "AAEC"}
    assert unpack(odd).tolist() == [False, True, True] and torch.equal(unpack(odd), torch.tensor([False, True, True]))
    for value in ({1, 2}, object(), b"x", torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="an answer may hold"): pack(value)


TENSOR = {"is": "tensor", "dtype": "int64", "shape": [2], "data": "AAAAAAAAAAAAAAAAAAAAAA=="}


@pytest.mark.parametrize("line", [
    b"", b"hello", b"4", b"[]", b"{}", b'{"answer": 1, "error": ""}', b'{"error": 5}', b'{"points": 100}',
    b"[" * 100_000, b'{"answer": ' + b"9" * 10_000 + b"}", b'{"answer": {"is": "pickle"}}',
    b'{"answer": {"is": "dict", "items": [[[], 1]]}}', b'{"answer": {"is": "dict", "items": [1]}}',
    *(json.dumps({"answer": TENSOR | change}).encode() for change in (
        {"dtype": "object"}, {"shape": [3]}, {"shape": [-2]}, {"shape": "2"}, {"shape": [True, 2]}, {"data": "?"},
        {"data": None}, {"shape": [0, 2**62, 2**62], "data": ""}, {"shape": [10**30], "data": ""})),
])
def test_nonsense_is_told_from_answers(line):
    with pytest.raises(ChildLost, match="nonsense"): read_answer(line)


def test_differences_are_told():
    a = torch.tensor([1.0, 2.0])
    assert difference(a, a.clone()) is None and difference(a + 1e-5, a, 1e-4) is None
    assert difference(a + 1e-3, a, 1e-4) == "2 of 2 values are wrong"
    assert difference(torch.tensor([float("nan")]), torch.tensor([float("nan")])) is None
    for answer, complaint in [(a.double(), "torch.float32 was expected"), (a[:1], "shape"), (None, "None"), (1, "int")]:
        assert complaint in difference(answer, a)
    assert difference([1, 2], [1, 2]) is None and "2 items" in difference([1], [1, 2])
    assert difference({"a": 1}, {"b": 1}) and difference({"a": [1]}, {"a": [2]})
    assert difference(True, 1) and difference(1, True) and difference("1", 1)
    assert difference(2, 2.0) is None and difference(2.5, 2) and difference(1.1, 1.0, 0.2) is None
    assert form_difference([a], [a * 5]) is None


# what of a cell is run

def test_experiments_of_students_are_not_run():
    cell = "%time\n!ls\nimport math\nX = 3\nx: int = 4\nwhile True: pass\nprint('a')\ndef f(): pass\nclass A: pass"
    assert [type(node).__name__ for node in definitions(cell)] == [
        "Import", "Assign", "AnnAssign", "FunctionDef", "ClassDef"]


def test_an_error_in_a_cell_leaves_the_others_alone(graded):
    result = graded("def double(x) return 2 * x")
    assert points(result) == {"double": 0, "triple": 2, "facts": 2}
    assert result.lines[0].message.startswith("SyntaxError: ") and "(line 1 of the cell)" in result.lines[0].message
    # names that a student takes over break nothing of the grader's
    result = graded("json = os = pack = print = sum = None\n" + DOUBLE)
    assert points(result) == RIGHT


def test_answers_are_judged(graded):
    assert points(graded(DOUBLE)) == RIGHT
    assert graded("def double(x):\n    raise NotImplementedError('about 1 line')").lines[0].message == "not written yet"
    assert "no double" in graded("").lines[0].message
    for source, complaint in [("x + 1", "another one"), ("str(x)", "str"), ("{1}", "set"), ("1 / 0", "ZeroDivision")]:
        result = graded(f"def double(x): return {source}")
        assert points(result)["double"] == 0 and complaint in result.lines[0].message, result.lines[0]


def test_a_quiz_gives_a_share(graded):
    for cell, due in [('facts = {"a": 2, "b": 3}', 1), ("facts = 7", 0), ("facts = {}", 0), ("facts = {'a': True}", 0)]:
        assert points(graded(submission_of(TOY, {"facts": cell})))["facts"] == due


# hostile code: the first exercise is lost, what comes behind it is graded

ATTACKS = {
    "endless loop": "def double(x):\n    while True: pass",
    "sleep": "import time\ndef double(x): time.sleep(1000)",
    "endless allocation": "def double(x):\n    kept = []\n    while True: kept.append(bytearray(1 << 26))",
    "exit": "import os\ndef double(x): os._exit(0)",
    "exit while it is loaded": "import os\nfinished = os._exit(0)\ndef double(x): return 2 * x",
    "polite exit": "import sys\ndef double(x): sys.exit(0)",
    "crash": "def double(x):\n    def deeper(n): return deeper(n + 1)\n    import sys\n"
             "    sys.setrecursionlimit(10**9)\n    return deeper(0)",
    "an answer without end": "def double(x): return 'a' * (1 << 26)",
    "fork bomb": "import os\ndef double(x):\n    while True: os.fork()",
    "threads without end": "import threading, time\ndef double(x):\n    while True:\n"
                           "        threading.Thread(target=time.sleep, args=(1000,)).start()",
    "another program": "import subprocess\ndef double(x):\n    subprocess.check_output(['true'])\n    return 2 * x",
    "the network": "import socket\ndef double(x):\n    socket.socket().close()\n    return 2 * x",
    "end the nursery": "import os\ndef double(x):\n    os.kill(os.getppid(), 9)\n    return 2 * x",
    "memory by ctypes": "import ctypes\ndef double(x):\n    ctypes.string_at(0)\n    return 2 * x",
    "write a file": "def double(x):\n    open('mine', 'w').write('x' * 9)\n    return 2 * x",
    "the solution of the library": "def double(x):\n    import self_improve.arithmetic\n    return 2 * x",
    "a forged result on paper": "def double(x):\n    print('{\"answer\": 2}', flush=True)\n    return None",
    "patched assert, print and traceback": """
import builtins, sys
def double(x):
    class Always:
        def __eq__(self, other): return True
        def showtraceback(self, *more): pass
    builtins.AssertionError = builtins.print = builtins.isinstance = lambda *more, **named: True
    builtins.get_ipython = Always
    sys.excepthook = lambda *more: None
    return Always()""",
    "patched grader": """
import json, sys
def double(x):
    for module in list(sys.modules.values()):
        for name in ("difference", "grade", "judge", "same_as_solution", "read_answer", "form_difference"):
            if hasattr(module, name): setattr(module, name, lambda *more: None)
    child = sys.modules["self_improve.child"]
    child.pack = json.dumps = lambda value, *more: '{"points": 100}'
    return 0""",
    "a forged line in the pipe": """
import os
def double(x):
    for descriptor in range(3, 64):
        try: os.write(descriptor, b'{"answer": 2}\\n')
        except OSError: pass
    return 0""",
    "many forged lines": """
import os
def double(x):
    for descriptor in range(3, 64):
        try: os.write(descriptor, b'{"answer": null}\\n' * 3000)
        except OSError: pass
    return 2 * x""",
    "closed pipes": "import os\ndef double(x): return os.closerange(0, 64)",
}


@pytest.mark.parametrize("source", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_costs_its_exercise(source, graded):
    result = graded(source)
    assert points(result) == RIGHT | {"double": 0}, result.lines
    assert len(result.printed) <= QUICK.printed


def test_what_an_attack_leaves_behind(nursery, temporary):
    """The nursery is alive, and no folder is left."""
    assert nursery.process is None or nursery.process.poll() is None
    assert list(temporary.iterdir()) == []


def test_a_nursery_that_died_is_started_again(graded, nursery):
    assert points(graded(DOUBLE)) == RIGHT
    os.kill(nursery.process.pid, signal.SIGKILL)
    assert points(graded(DOUBLE)) == RIGHT


def test_a_nursery_that_cannot_start_says_why():
    broken = replace(TOY, parts=(Part("setup", "import no_such_module"), *TOY.parts[1:]))
    with pytest.raises(ValueError, match="no process for submissions can be started: .*no_such_module"):
        Nursery(broken, QUICK).start()


def test_a_gigabyte_of_output_is_not_kept(graded):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = "def double(x):\n    for _ in range(1 << 10): print('x' * (1 << 20))\n    return 0"
    result = graded(source, seconds=20)
    assert points(result) == RIGHT | {"double": 0}
    assert 0 < len(result.printed) <= QUICK.printed
    # kilobytes on Linux
    if sys.platform == "linux": assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_files_of_the_grader_are_out_of_reach(tmp_path, graded):
    """Neither read nor changed: by name, by a link that Python follows, or by listing folders."""
    secret = tmp_path / "secret.py"
    secret.write_text(f"{DOUBLE}\n")
    for attempt in (f"open({str(secret)!r}).read()", f"open({str(secret)!r}, 'w').write('gone')",
                    f"__import__('os').remove({str(secret)!r})", f"__import__('os').listdir({str(tmp_path)!r})",
                    f"__import__('torch').from_file({str(secret)!r}, size=4, dtype=__import__('torch').uint8)",
                    "open('/proc/self/environ').read()", "open('/etc/passwd').read()"):
        result = graded(f"def double(x):\n    {attempt}\n    return 2 * x", hidden=[tmp_path])
        assert points(result)["double"] == 0, attempt
    assert secret.read_text() == f"{DOUBLE}\n"


def test_masters_cannot_be_executed(tmp_path, graded):
    """A submission that takes its answers from the assignment's own master."""
    (tmp_path / "01_toy.py").write_text(DOUBLE)
    # an assignment is run, where a bare call is not
    source = f"ran = exec(open({str(tmp_path / '01_toy.py')!r}).read(), globals())"
    assert points(graded(source))["double"] == 0
    # without fences the same line has all points
    assert grade_session(TOY, Here(TOY, submission_of(TOY, {"double": source})), FAMILIES)[0].points == 2


def test_a_folder_that_submissions_cannot_reach_is_told(tmp_path, nursery, monkeypatch):
    """And it is not the students' fault: nobody gets zero points for it."""
    def lost(self, do, seconds, **arguments): raise ChildLost("its process ended")
    monkeypatch.setattr(Child, "ask", lost)
    with pytest.raises(ValueError, match="no submission can be graded: its process ended .* TMPDIR"):
        grade(TOY, submission_of(TOY), FAMILIES, nursery)


def test_nothing_of_the_environment_arrives(monkeypatch, graded, nursery):
    monkeypatch.setenv("COURSE_TOKEN", "4711")
    nursery.close()
    source = "import os\ndef double(x): return 2 * x if 'COURSE_TOKEN' not in os.environ else 0"
    assert points(graded(source)) == RIGHT


def test_too_many_losses_end_it(graded):
    cells = [("", f"import os\nx{i} = os._exit(0)") for i in range(5)]
    submission = Submission([*cells, *submission_of(TOY).cells])
    assert graded(submission, losses=2).points == 0
    # with more patience the cells that end the process are left out, one by one
    assert points(graded(submission, losses=9)) == RIGHT


def test_time_is_limited_altogether(graded):
    source = "import time\ndef double(x):\n    time.sleep(0.2)\n    return 2 * x"
    assert points(graded(source, total_seconds=0.1))["triple"] == 0
    assert points(graded(source)) == RIGHT


def test_a_child_is_gone_when_it_is_closed(nursery):
    child = Child(nursery)
    assert os.path.isdir(child.folder)
    os.kill(child.number, 0)
    child.close()
    assert not os.path.exists(child.folder)
    with pytest.raises(ProcessLookupError): os.kill(child.number, 0)


# each fence of the kernel on its own, without that of Python

FENCED = [
    ("fence_files([])", "open('/etc/hostname')"),
    ("fence_files([])", "open('/dev/null', 'w')"),
    ("fence_files(['/etc'])", "open('/etc/new', 'w')"),
    ("fence_files(['/etc'])", "os.listdir('/usr')"),
    ("fence_calls()", "os.fork()"),
    ("fence_calls()", "os.execv('/bin/true', ['true'])"),
    ("fence_calls()", "socket.socket()"),
    ("fence_calls()", "os.kill(os.getppid(), 0)"),
]
# each in a fork of its own: what is fenced stays fenced
PROGRAM = """
import os, socket, sys
from self_improve.child import fence_calls, fence_files
for fence, attempt in eval(sys.argv[1]):
    if os.fork():
        os.wait()
        continue
    try:
        print(eval(fence), flush=True)
        eval(attempt)
    except OSError as error: print(type(error).__name__, flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def fenced():
    """What came of each attempt: whether the fence stands, and the error."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, repr(FENCED)], capture_output=True, text=True)
    lines = done.stdout.split()
    return dict(zip(FENCED, zip(lines[::2], lines[1::2], strict=True), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
@pytest.mark.parametrize("attempt", FENCED, ids=[f"{fence} {attempt}" for fence, attempt in FENCED])
def test_fences_of_the_kernel(fenced, attempt):
    up, error = fenced[attempt]
    if up == "False": pytest.skip(f"this kernel has no {attempt[0]}")
    assert error == "PermissionError"


NO_KERNEL = "from self_improve import child\nchild.fence_files = child.fence_calls = lambda *more: False"


def test_the_fence_of_python_alone(tmp_path):
    """As on systems whose kernel has none: plain attempts fail there too."""
    (tmp_path / "secret.py").write_text(DOUBLE)
    secret, master = str(tmp_path / "secret.py"), replace(TOY, parts=(Part("setup", NO_KERNEL), *TOY.parts[1:]))
    attempts = [ATTACKS[name] for name in ("another program", "the network", "end the nursery", "memory by ctypes",
                                           "write a file", "fork bomb")]
    attempts += [f"def double(x):\n    {attempt}\n    return 2 * x" for attempt in (
        f"open({secret!r})", f"__import__('os').open({secret!r}, 0)", f"__import__('os').remove({secret!r})",
        f"__import__('os').listdir({str(tmp_path)!r})", "__import__('gc').get_objects()")]
    with contextlib.closing(Nursery(master, QUICK)) as other:
        for attempt in attempts:
            result = grade(TOY, submission_of(TOY, {"double": attempt}), FAMILIES, other)
            assert points(result) == RIGHT | {"double": 0}, attempt
            assert "landlock" not in result.fences and "seccomp" not in result.fences
    assert (tmp_path / "secret.py").exists()


def test_torch_works_behind_the_fences(graded):
    """Training, random numbers, gradients: what assignments need."""
    source = """
def double(x):
    import torch
    from self_improve.model import Decoder, ModelConfig
    model = Decoder(ModelConfig(layers=1, heads=2, width=16, ffn=16))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    tokens = torch.randint(3, 10, (8, 6))
    for _ in range(3):
        logits = model(tokens)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    return 2 * x"""
    # an optimizer imports a part of torch that takes seconds
    result = graded(source, seconds=60)
    assert points(result) == RIGHT, result.lines


# submissions that are files

def write_notebook(path, cells):
    """A notebook from (id, source) pairs, with nbgrader's names where the id has one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = []
    for name, source in cells:
        about = {"nbgrader": {"grade_id": name}} if "-" in name else {}
        found.append({"cell_type": "code", "id": "x", "metadata": about, "source": source.splitlines(True)})
    path.write_text(json.dumps({"cells": found, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def right_cells(): return submission_of(TOY).cells


def test_a_thousand_cells(tmp_path, graded):
    cells = [("x", f"value_{i} = {i}\nprint(value_{i})") for i in range(1000)] + right_cells()
    submission = read_submission(write_notebook(tmp_path / "a.ipynb", cells))
    assert len(submission.cells) == 1003
    assert points(graded(submission)) == RIGHT


def test_a_cell_twice(tmp_path, graded):
    """The second definition counts, as in the notebook."""
    wrong = ("exercise-double", "def double(x): return 0")
    for cells, due in [([wrong, *right_cells()], 2), ([*right_cells(), wrong], 0)]:
        submission = read_submission(write_notebook(tmp_path / "a.ipynb", cells))
        assert points(graded(submission))["double"] == due


def test_cells_of_the_assignment_are_taken_from_the_master(tmp_path):
    cells = [("setup-c1", "math = None"), ("check-double", "def double(x): return 0"), *right_cells()]
    assert [name for name, _ in read_submission(write_notebook(tmp_path / "a.ipynb", cells)).cells] == [
        "exercise-double", "exercise-triple", "quiz-facts"]


def test_untouched_demonstrations_are_passed_over(tmp_path):
    shown = Part("code", "x = 1\nprint(x)")
    master = replace(TOY, parts=(*TOY.parts, shown))
    path = write_notebook(tmp_path / "a.ipynb", [("x", shown.source), ("x", shown.source + "\ny = 2")])
    assert [source for _, source in read_submission(path, ours=demonstrations(master)).cells] == [
        "x = 1\nprint(x)\ny = 2"]


@pytest.mark.parametrize("text", [
    "", "hello", "[]", "{}", '{"cells": 5}', '{"cells": [5]}', '{"cells": [{"cell_type": "code"}]}',
    '{"cells": [{"cell_type": "code", "source": [1, 2]}]}', "[" * 100_000, "\ud800"])
def test_what_is_no_notebook(tmp_path, text):
    (tmp_path / "a.ipynb").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="no notebook that can be read: a.ipynb"): read_submission(tmp_path / "a.ipynb")


def test_odd_metadata_are_passed_over(tmp_path):
    cell = {"cell_type": "code", "source": "x = 1", "metadata": [], "id": 5}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell, cell | {"metadata": {"nbgrader": 3}}]}))
    assert read_submission(tmp_path / "a.ipynb").cells == [("5", "x = 1")] * 2


def test_links_and_large_files_are_refused(tmp_path):
    (tmp_path / "there.ipynb").write_text("{}")
    (tmp_path / "a.ipynb").symlink_to(tmp_path / "there.ipynb")
    with pytest.raises(ValueError, match="no file"): read_submission(tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match="more than 1 bytes"):
        read_submission(tmp_path / "there.ipynb", replace(QUICK, submission_bytes=1))


# a class

@pytest.fixture
def course(tmp_path):
    """A class of six, of whom four hand in what can be graded."""
    build_course(MASTERS[:1], tmp_path / "c")
    submitted = tmp_path / "c" / "submitted"
    # half a character, in an error message and in a written answer: no file can hold it
    half = 'def double(x): raise ValueError("\\ud800")'
    odd = write_notebook(submitted / "fay" / "01_toy" / "01_toy.ipynb", [("exercise-double", half), *right_cells()[1:]])
    book = json.loads(odd.read_text())
    book["cells"] += [{"cell_type": "markdown", "metadata": {}, "id": "written-why", "source": "\ud800"}]
    odd.write_text(json.dumps(book))
    write_notebook(submitted / "ada" / "01_toy" / "01_toy.ipynb", right_cells())
    evil = 'def double(x): raise ValueError("<script>alert(1)</script>")'
    write_notebook(submitted / "ben" / "01_toy" / "mine.ipynb", [("exercise-double", evil), *right_cells()[1:]])
    (submitted / "cy" / "01_toy").mkdir(parents=True)
    (submitted / "cy" / "01_toy" / "01_toy.ipynb").write_text("my dog ate it")
    (submitted / "di" / "01_toy").mkdir(parents=True)
    (submitted / "eve" / "01_toy").mkdir(parents=True)
    (submitted / "eve" / "01_toy" / "toy.py").write_text("\n\n".join(source for _, source in right_cells()))
    return tmp_path / "c"


def test_a_class_is_graded(course):
    heard = []
    toy = replace(TOY, parts=(*TOY.parts, Part("written", "It depends.", "why", 3)))
    grades = grade_course(course, [toy], 3, QUICK, tell=lambda student, result: heard.append(student))
    assert heard == ["ada", "ben", "cy", "di", "eve", "fay"]
    assert [result.points for _, result in grades] == [6, 4, 0, 0, 6, 4]
    table = list(csv.DictReader((course / "grades.csv").open()))
    assert [row["points"] for row in table] == ["6", "4", "0", "0", "6", "4"]
    assert [row["by_hand"] for row in table] == ["3", "3", "0", "0", "3", "3"]
    assert "no notebook" in table[2]["trouble"] and "there is no 01_toy.ipynb" in table[3]["trouble"]
    page = (course / "feedback" / "ben" / "01_toy" / "01_toy.html").read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert {line["seed"] for line in json.loads((course / "grading.json").read_text())} == {3}
    # students see no seed
    assert not [p for p in course.glob("feedback/**/*.html") if "seed" in p.read_text()]
    assert course.stat().st_mode & 0o777 == 0o700


def test_other_assignments_keep_their_grades_and_their_seed(course):
    other = replace(TOY, name="02_toy")
    write_notebook(course / "submitted" / "ada" / "02_toy" / "02_toy.ipynb", right_cells())
    for master, seed in ((TOY, 3), (other, 4), (other, 5)): grade_course(course, [master], seed, QUICK)
    table = list(csv.DictReader((course / "grades.csv").open()))
    assert [(row["student"], row["assignment"]) for row in table if row["student"] == "ada"] == [
        ("ada", "01_toy"), ("ada", "02_toy")]
    seeds = {line["assignment"]: line["seed"] for line in json.loads((course / "grading.json").read_text())}
    assert seeds == {"01_toy": 3, "02_toy": 5}
    # what cannot be read is not written over
    (course / "grading.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds earlier grades"): grade_course(course, [TOY], 3, QUICK)
    assert (course / "grading.json").read_text() == "[1]"


def test_written_answers_lie_beside_a_module(tmp_path):
    (tmp_path / "toy.py").write_text("x = 1")
    (tmp_path / "written.md").write_text("# written: why\n\nBecause.\n# and so on\n\n# written: what_else\n")
    assert read_submission(tmp_path / "toy.py").written == {
        "written-why": "Because.\n# and so on", "written-what-else": ""}


def test_a_seed_is_fresh_unless_it_is_given():
    assert prepare(TOY, 1)["double"][0].cases == prepare(TOY, 1)["double"][0].cases
    assert prepare(TOY, 1)["double"][0].cases != prepare(TOY, 2)["double"][0].cases


def test_a_check_that_refuses_the_solution_is_found():
    judge = CASES + "\n\ndef judge(arguments, answer, expected): return 'never'"
    parts = tuple(replace(part, source=judge) if part.kind == "hidden" else part for part in TOY.parts)
    with pytest.raises(ValueError, match="hidden check of double refuses the solution: never"):
        prepare(replace(TOY, parts=parts), 0)


def test_checks_that_differ_from_time_to_time_are_found():
    anew = "import secrets\n\ndef cases(stream): yield (secrets.randbelow(10**9),)"
    parts = tuple(replace(part, source=anew) if part.kind == "hidden" else part for part in TOY.parts)
    wrong = [sentence for sentence in prove(replace(TOY, parts=parts), sample=True) if "time to time" in sentence]
    assert [sentence.split()[4] for sentence in wrong] == ["double", "triple"]


def test_the_solution_and_submissions_have_the_same_randomness(nursery):
    source = "def double(x):\n    import torch\n    return torch.rand(3) * x"
    parts = tuple(replace(part, source=source) if part.name == "double" and part.kind == "exercise" else part
                  for part in TOY.parts)
    master = replace(TOY, parts=parts)
    assert points(grade(master, submission_of(master), prepare(master, 0), nursery)) == RIGHT


def test_a_driver_makes_what_json_cannot_carry():
    drive = "def drive(student, n):\n    return [math.sqrt(student(n) ** 2), type(student).__name__]"
    parts = (*TOY.parts, Part("driver", drive, "double"))
    master = replace(TOY, parts=parts)
    families = prepare(master, 0)
    with contextlib.closing(Nursery(master, QUICK)) as other:
        assert points(grade(master, submission_of(master), families, other)) == RIGHT
    assert families["double"][0].cases[0][1][1] == "function"


def test_the_short_way_gives_the_same_points(nursery):
    submission = submission_of(TOY, {"double": "def double(x): return x"})
    here = grade_session(TOY, Here(TOY, submission), FAMILIES)
    with contextlib.closing(Session(submission, nursery)) as session:
        assert grade_session(TOY, session, FAMILIES) == here


# every assignment of the course

@pytest.mark.parametrize("master", MASTERS, ids=lambda m: m.name)
def test_checks_do_what_they_say(master):
    """The solution has all points, stubs have none, each wrong solution loses what it should."""
    assert len(master.of_kind("wrong")) >= 8
    assert prove(master, seed=11, sample=True) == []
