"""Assignments: the format of a master, what is built from it, and that nothing leaks."""
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import pytest
from lesson_tools import ROOT, repository

from self_improve import cli, course_commands
from self_improve.course import (
    OWN,
    Part,
    build_course,
    course_files,
    find_leaks,
    find_masters,
    make_notebook,
    pytest_files,
    quiz_stub,
    read_mark,
    read_master,
    secrets_of,
    source_source,
    stub,
    student_source,
    without_marks,
)

MASTERS = find_masters()
each = pytest.mark.parametrize("master", MASTERS, ids=lambda m: m.name)
FIRST = MASTERS[0]
SOLUTION = """def double(x):
    "Twice a number."
    ### BEGIN SOLUTION
    # adding is cheaper

    y = x + x
    return y
    ### END SOLUTION"""
CELLS = [
    ("markdown", "# Toy\n\nA [link](../glossary.md), another [link](https://example.org)."),
    ("code", "#| setup\n#| without self_improve.tasks\nimport math"),
    ("markdown", "### Exercise 1: double ●○○○○ 5 minutes, 3 points"),
    ("code", f"#| exercise double 3\n{SOLUTION}"),
    ("code", "#| check double\nassert double(2) == 4, 'not twice'\nprint('✓ double')"),
    ("code", '#| hidden double 1 "small"\ndef cases(stream): yield from [(1,), (2,)]'),
    ("code", '#| hidden double 2 "large"\ndef cases(stream): yield (10**6,)'),
    ("markdown", "### Quiz: facts ●○○○○ 1 minute, 1 point"),
    ("code", '#| quiz facts 1\n# the number\nfacts = {"which one": 2}'),
    ("code", "#| check facts\nassert facts['which one'] in (1, 2)"),
    ("markdown", "### Reflection ●○○○○ 1 minute, 1 point"),
    ("code", "#| written why 1"),
    ("markdown", "A good answer names the reason behind it."),
    ("code", '#| wrong double 3 "it adds one"\ndef double(x): return x + 1'),
]


def write_master(folder, cells, name="01_toy"):
    """A master's file from (type, source) pairs."""
    book = nbformat.v4.new_notebook()
    for i, (kind, source) in enumerate(cells):
        make = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
        book.cells.append(make(source, id=f"c{i:03}"))
    nbformat.write(book, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def toy(tmp_path): return read_master(write_master(tmp_path, CELLS))


# the format

def test_a_master_is_read(toy):
    assert (toy.name, toy.module, toy.title, toy.points) == ("01_toy", "toy", "Toy", 5)
    assert [part.name for part in toy.graded] == ["double", "facts"]
    assert toy.without == ["self_improve.tasks"]
    assert toy.of_kind("written") == [Part("written", "A good answer names the reason behind it.", "why", 1, id="c012")]


@pytest.mark.parametrize("first, complaint", [
    ("#| exercize double 3", "no mark"),
    ("#| exercise double", "should read #| exercise NAME POINTS"),
    ("#| exercise double three", "'three' where points are due"),
    ("#| exercise 2double 3", "cannot be the name"),
    ("#| check double 3", "should read #| check NAME"),
    ('#| wrong double 3 "unfinished', "cannot be read"),
])
def test_marks_that_are_none(first, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)): read_mark(f"{first}\nx = 1", "cell 3")


@pytest.mark.parametrize("change, complaint", [
    (lambda c: c.pop(4), "double needs one public check"),
    (lambda c: c.pop(5), "do not add up"),
    (lambda c: [c.pop(5), c.pop(5)], "no hidden check"),
    (lambda c: c.pop(2), "a card is due"),
    (lambda c: c.pop(12), "a text cell with an answer is due"),
    (lambda c: c.append(c[3]), "two exercises are called double"),
    (lambda c: c.append(("code", '#| wrong triple 1 "x"\n1')), "no such exercise"),
    (lambda c: c.append(("code", '#| wrong double 9 "x"\n1')), "cannot lose 9 of 4"),
    (lambda c: c.__setitem__(3, ("code", "#| exercise double 3\ndef double(x): return x")), "no ### BEGIN SOLUTION"),
    (lambda c: c.__setitem__(3, ("code", "#| exercise double 3\ndef twice(x): return 2 * x")), "of that name"),
    (lambda c: c.__setitem__(8, ("code", "#| quiz facts 1\nfacts = dict(a=1)")), "should end in facts ="),
    (lambda c: c.__setitem__(2, ("markdown", c[2][1].replace("3 points", "2 points"))), "3 points"),
])
def test_masters_that_do_not_fit_together(tmp_path, change, complaint):
    cells = list(CELLS)
    change(cells)
    with pytest.raises(ValueError, match=re.escape(complaint)): read_master(write_master(tmp_path, cells))


@pytest.mark.parametrize("source", [
    '# | hidden double 1 "a mark with a space"', "## Wrong solutions", "x = 1\ndef cases(stream): yield (1,)", SOLUTION,
])
def test_cells_that_lost_their_mark(tmp_path, source):
    """Without it they would be released."""
    with pytest.raises(ValueError, match="a cell without its mark"):
        read_master(write_master(tmp_path, [*CELLS, ("code", source)]))


def test_texts_for_instructors_stay_with_them(tmp_path, text="<!-- instructors -->\n## Wrong solutions, and why"):
    master = read_master(write_master(tmp_path, [*CELLS, ("markdown", text)]))
    assert [part.source for part in master.of_kind("note")] == [text]
    assert not [path for path, data in course_files(master).items() if b"and why" in data]
    assert "## Wrong solutions, and why" in secrets_of(master)


@pytest.mark.parametrize("text", ["", "[]", '{"cells": 3}', "{"])
def test_what_is_no_notebook(tmp_path, text):
    (tmp_path / "01_toy.ipynb").write_text(text)
    with pytest.raises(ValueError, match="is no notebook"): read_master(tmp_path / "01_toy.ipynb")


def test_stubs():
    assert stub(SOLUTION).endswith('"Twice a number."\n    raise NotImplementedError("about 2 lines")')
    assert "SOLUTION" not in without_marks(SOLUTION) and "y = x + x" in without_marks(SOLUTION)
    assert stub(SOLUTION.replace("    y = x + x\n", "")).endswith('("about 1 line")')
    # an indented method, and two solutions in one cell
    two = "class A:\n" + "\n\n".join(f"    {line}" for line in SOLUTION.split("\n")) + "\n" + SOLUTION
    assert stub(two).count("raise NotImplementedError") == 2 and "x + x" not in stub(two)
    assert quiz_stub(Part("quiz", "# the number\nq = {'a': 2}", "q", 1)) == '# the number\nq = {\n    "a": None,\n}'


def test_students_get_whole_links_and_no_badge(toy):
    badge = ("[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
             "(https://colab.research.google.com/github/me/mine/blob/main/nbs/course/01_toy.ipynb)")
    there = "https://github.com/me/mine/blob/main/nbs/course"
    text = student_source(Part("text", f"{badge}\n\nA [link](../glossary.md)."), replace(toy, web=there))
    assert text == "A [link](https://github.com/me/mine/blob/main/nbs/glossary.md)."
    assert FIRST.web.startswith("https://github.com/") and FIRST.web.endswith("/nbs/course")


# what is built

def page(name):
    """A page of the course."""
    return (ROOT / "nbs" / "course" / name).read_text(encoding="utf-8")


def test_a_course_has_the_same_bytes_each_time(tmp_path):
    first, second = build_course(MASTERS, tmp_path / "a"), build_course(MASTERS, tmp_path / "b")
    assert first == second and len(first) > 10 * len(MASTERS)
    for path in first: assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
    # again, over itself; what others put there stays
    (tmp_path / "a" / "submitted").mkdir()
    assert build_course(MASTERS, tmp_path / "a") == first and (tmp_path / "a" / "submitted").exists()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_a_folder_of_somebodys_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for out in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="choose a new folder"): build_course(MASTERS, out)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    # an empty one may be written
    (tmp_path / "empty").mkdir()
    assert OWN in build_course(MASTERS[:1], tmp_path / "empty")


@each
def test_notebooks_are_valid_and_their_cells_stable(master):
    for source_of in (student_source, source_source):
        book = make_notebook(master, source_of)
        nbformat.validate(book)
        assert not [cell for cell in book["cells"] if cell.get("outputs")]
        ids = [cell["id"] for cell in book["cells"]]
        assert len(ids) == len(set(ids))
        for part in master.graded: assert f"{part.kind}-{part.name}".replace("_", "-") in ids
    graded = [cell["metadata"]["nbgrader"] for cell in book["cells"] if "nbgrader" in cell["metadata"]]
    assert sum(about.get("points", 0) for about in graded) == master.points


@each
def test_the_zip_is_all_that_a_student_needs(master):
    archive = zipfile.ZipFile(io.BytesIO(course_files(master)[f"students/{master.name}.zip"]))
    assert archive.testzip() is None
    assert archive.namelist() == [f"{master.name}/{master.name}.ipynb", f"{master.name}/README.md"]
    book = json.loads(archive.read(f"{master.name}/{master.name}.ipynb"))
    assert book == make_notebook(master, student_source)


@each
def test_students_read_how_to_install_from_the_repository(master):
    """The same line in the zip and on the student's page, with the repository of settings.ini."""
    line = f'pip install "self-improve[notebooks] @ git+https://github.com/{repository()}"'
    archive = zipfile.ZipFile(io.BytesIO(course_files(master)[f"students/{master.name}.zip"]))
    for text in (archive.read(f"{master.name}/README.md").decode(), page("student.md")):
        assert line in text and 'its name alone will do: `pip install "self-improve[notebooks]"`' in text


@each
def test_students_read_which_modules_they_may_not_import(master):
    """In the notebook, and in the module of the pytest way."""
    assert master.without
    notebook = make_notebook(master, student_source)
    cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for text in ("\n".join(cells), pytest_files(master)[f"{master.module}.py"]):
        comment = " ".join(re.findall(r"^# (.*)$", text, re.M))
        assert f"graded code may not import {', '.join(master.without)}" in comment
        assert "#| without" not in text


# leaks

def released(master):
    """All text that students get."""
    return {path: data.decode() for path, data in course_files(master).items()
            if path.startswith(("release/", "pytest/"))}


@each
def test_nothing_leaks(master):
    assert len(secrets_of(master)) > 10
    assert find_leaks(master, released(master)) == []
    # and said another way: no released text has a mark of what is not released
    text = "\n".join(released(master).values())
    for word in ("BEGIN SOLUTION", "#| hidden", "#| wrong", "#| driver", "def cases(stream)", "def judge("):
        assert word not in text, word


@each
@pytest.mark.parametrize("kind", ["exercise", "hidden", "wrong", "driver", "quiz", "written"])
def test_a_planted_leak_is_found(master, kind):
    """One cell of what is secret, pasted into the released notebook."""
    path = f"release/{master.name}/{master.name}.ipynb"
    for part in master.of_kind(kind):
        book = json.loads(released(master)[path])
        book["cells"][3]["source"] += f"\n{part.source}"
        assert find_leaks(master, {path: json.dumps(book)}), part.name


def test_a_leak_in_a_text_stops_the_build(tmp_path):
    cells = list(CELLS)
    cells[3] = ("code", cells[3][1].replace("return y", "return y + 0 * math.pi"))
    cells.insert(5, ("markdown", "<summary>Hint</summary>\n\n```python\n    return y + 0 * math.pi\n```"))
    with pytest.raises(ValueError, match="would give away 'return y"):
        build_course([read_master(write_master(tmp_path, cells))], tmp_path / "out")


def test_outputs_of_a_solution_are_found(toy):
    book = make_notebook(toy, student_source)
    code = next(cell for cell in book["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "42"}]
    assert find_leaks(toy, {"a.ipynb": json.dumps(book)}) == [("a.ipynb", "an output")]


def test_outputs_in_the_master_stay_there(tmp_path):
    path = write_master(tmp_path, CELLS)
    book = nbformat.read(path, 4)
    for cell in book.cells:
        if cell.cell_type == "code": cell.outputs = [nbformat.v4.new_output("stream", text="secret 4711")]
    nbformat.write(book, path)
    master = read_master(path)
    assert not [path for path, data in course_files(master).items() if b"4711" in data]


# other graders

def run_pytest(folder, *more):
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *more], cwd=folder,
                          capture_output=True, text=True)
    return done.returncode, done.stdout


def solved(master):
    """The module of the pytest way, with the solutions in it."""
    return "\n\n".join(part.source for part in master.of_kind("setup", "exercise", "quiz"))


@each
@pytest.mark.parametrize("right", [False, True])
def test_tests_of_the_pytest_way(master, right, tmp_path, monkeypatch):
    """With stubs the public checks fail, with the solutions all pass."""
    for name, text in pytest_files(master).items(): (tmp_path / name).write_text(text)
    if right: (tmp_path / f"{master.module}.py").write_text(solved(master))
    monkeypatch.syspath_prepend(tmp_path)
    for name in (master.module, "adapters"): monkeypatch.delitem(sys.modules, name, raising=False)
    names = {}
    # these markers are known to the assignment's own pytest.ini, not to ours
    exec(re.sub(r"^@pytest.mark.*", "", (tmp_path / f"test_{master.module}.py").read_text(), flags=re.M), names)
    for part in master.graded:
        if right: names[f"test_{part.name}"]()
        else:
            with pytest.raises((NotImplementedError, AssertionError)): names[f"test_{part.name}"]()
    for name in (master.module, "adapters"): sys.modules.pop(name)


def test_markers_choose_an_exercise(tmp_path):
    for name, text in pytest_files(FIRST).items(): (tmp_path / name).write_text(text)
    (tmp_path / f"{FIRST.module}.py").write_text(solved(FIRST))
    code, said = run_pytest(tmp_path, "-m", FIRST.graded[0].name, "--strict-markers")
    assert code == 0 and f"1 passed, {len(FIRST.graded) - 1} deselected" in said


@pytest.fixture
def nbgrader(tmp_path):
    """nbgrader, as an instructor calls it in the course's folder: what it says."""
    program = shutil.which("nbgrader")
    if program is None: pytest.skip("nbgrader is not installed: it comes with the extra `dev`")

    def call(*words):
        done = subprocess.run([program, *words], cwd=tmp_path / "course", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return call


@each
def test_nbgrader_makes_the_same_release_from_our_source(master, nbgrader, tmp_path):
    build_course([master], tmp_path / "course")
    released = tmp_path / "course" / "release" / master.name / f"{master.name}.ipynb"
    ours = json.loads(released.read_text())
    nbgrader("generate_assignment", master.name, "--force", "--create")
    theirs = json.loads(released.read_text())

    def graded(book): return [c["id"] for c in book["cells"] if "nbgrader" in c["metadata"]]
    assert graded(theirs) == graded(ours) != []
    assert find_leaks(master, {"theirs.ipynb": json.dumps(theirs)}) == []


def test_nbgrader_grades_the_public_checks(nbgrader, tmp_path):
    """Solved, all points but those that a person gives; as released, none."""
    course = tmp_path / "course"
    build_course([FIRST], course)
    nbgrader("generate_assignment", FIRST.name, "--force", "--create")
    handed_in = {"ann": course / "solutions", "bob": course / "release" / FIRST.name}
    for student, folder in handed_in.items():
        (course / "submitted" / student / FIRST.name).mkdir(parents=True)
        shutil.copy(folder / f"{FIRST.name}.ipynb", course / "submitted" / student / FIRST.name)
    nbgrader("autograde", FIRST.name)
    nbgrader("export")
    with open(course / "grades.csv", newline="") as file: rows = list(csv.DictReader(file))
    written = sum(part.points for part in FIRST.parts if part.kind == "written")
    full = float(rows[0]["max_score"])
    assert {r["student_id"]: float(r["raw_score"]) for r in rows} == {"ann": full - written, "bob": 0.0}
    assert full == FIRST.points and 0 < written < full


# the command

def test_commands_tell_mistakes_in_a_sentence(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    for words, complaint in [
        (["build", "--out", str(tmp_path)], "is not empty"),
        (["build", "--out", str(tmp_path / "new"), "--masters", str(tmp_path)], "has no assignments"),
        (["grade", str(tmp_path / "nowhere")], "is no folder"),
        (["grade", str(tmp_path)], "has no submissions"),
        (["check", "cooking"], "there is no assignment 'cooking'"),
        (["check", "--seed", "many"], "Invalid value"),
        (["build"], "Missing option"),
        ([], "which command? course build, course grade, course check or course board"),
        (["bild"], "No such command 'bild'"),
    ]:
        assert cli.main(["course", *words]) == 2, words
        said = capsys.readouterr()
        assert complaint in said.err and said.err.count("\n") == 1, said.err


def test_build_command(tmp_path, capsys):
    assert cli.main(["course", "build", "--out", str(tmp_path / "c")]) == 0
    assert f"{len(build_course(MASTERS, tmp_path / 'c'))} files" in capsys.readouterr().out


def test_check_command_fails_for_a_broken_master(tmp_path, capsys):
    cells = list(CELLS)
    cells[-1] = ("code", '#| wrong double 3 "no mistake at all"\ndef double(x): return x * 2')
    write_master(tmp_path, cells)
    assert cli.main(["course", "check", "--sample", "--masters", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "✗ 01_toy" in said and "loses 0 points and should lose 3" in said
    assert "passes every wrong solution" in said


def test_every_master_is_on_the_site():
    text = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    for master in MASTERS: assert f"nbs/course/{master.name}.ipynb" in text


@each
def test_the_table_of_assignments_has_each_with_its_points(master):
    start = rf"^\| \[[^\]]+\]\({re.escape(master.name)}\.ipynb\)"
    row = re.search(rf"{start} \| [^|]+ \| (\d+) \|$", page("README.md"), re.M)
    assert row and int(row[1]) == master.points


@pytest.mark.parametrize("name", ["student.md", "syllabus.md"])
def test_students_pages_link_to_no_master(name):
    """A master holds the solutions."""
    assert ".ipynb)" in page(name)
    for master in MASTERS: assert f"{master.name}.ipynb" not in page(name)


@each
def test_what_students_get_links_to_no_master(master):
    text = "\n".join(released(master).values())
    for other in MASTERS: assert f"/{other.name}.ipynb" not in text


@each
def test_the_syllabus_names_the_lessons_that_an_assignment_asks_for(master):
    """Lessons are links in the assignment, and names in the syllabus."""
    needs = re.search(r"You should have read (.+)", "\n".join(part.source for part in master.of_kind("text")))
    if needs is None: pytest.skip("it asks for an assignment, and for no lesson")
    table = page("syllabus.md").split("## Which lesson")[1]
    named = re.search(rf"^\| {int(master.name[:2])} [^|]+\| ([^|]+) \|", table, re.M)[1].split(", ")
    for lesson in re.findall(r"\[(\w+)\]\(\.\./\d", needs[1]): assert lesson in named, lesson


@pytest.mark.parametrize("user, sentence", [(0, "submissions run as root"), (1000, "run as your own user")])
def test_a_missing_fence_is_told_with_its_meaning(monkeypatch, user, sentence):
    monkeypatch.setattr(course_commands.os, "geteuid", lambda: user)
    lines = []
    grades = [("ada", SimpleNamespace(fences=["limits", "memory", "landlock", "seccomp"]))]
    course_commands.say_fences(grades, SimpleNamespace(say=lines.append))
    assert len(lines) == 2 and lines[-1].startswith("   without user:") and sentence in lines[-1]
