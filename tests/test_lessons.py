"""Every notebook is a lesson: short, plain, and with exercises."""
import ast
import io
import json
import re
import tokenize

import pytest
from lesson_tools import LESSONS, NOTEBOOKS, ROOT, cells, exercises, repository, source

from self_improve.course import make_notebook, read_master, student_source

# words and lines of code that a student reads in a minute
WORDS_A_MINUTE, LINES_A_MINUTE = 150, 15
SETUP = ('import importlib.util as u; '
         'u.find_spec("self_improve") or get_ipython().run_line_magic("pip", "install self-improve");')
each = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
lesson = pytest.mark.parametrize("notebook", LESSONS, ids=lambda p: p.stem)


def text(notebook):
    return "\n".join(source(c) for c in cells(notebook, "markdown"))


def as_read(notebook):
    """The cells that a reader has before them: of an assignment's master those that students get."""
    if notebook.parent.name != "course": return cells(notebook)
    return make_notebook(read_master(notebook), student_source)["cells"]


def reading_minutes(notebook):
    """Words and lines of code, each at its own speed."""
    words, lines = 0, 0
    for cell in as_read(notebook):
        if cell["cell_type"] == "code": lines += sum(bool(line.strip()) for line in source(cell).splitlines())
        else: words += len(source(cell).split())
    return words / WORDS_A_MINUTE + lines / LINES_A_MINUTE


def is_reference(notebook):
    """Whether its first cells tell a student that it may be skipped."""
    opening = "".join(source(c) for c in cells(notebook)[:3])
    return re.search(r"\*\*Reference\b|^> .*\(reference\)|Reference:", opening, re.M) is not None


@each
def test_reads_in_half_an_hour(notebook):
    assert reading_minutes(notebook) <= 30 or is_reference(notebook), f"{reading_minutes(notebook):.0f} minutes"


@each
def test_opening_tells_about_its_minutes(notebook):
    """The reading minutes that the opening promises are those that the text takes, to a fifth."""
    opening = "".join(source(c) for c in cells(notebook)[:3])
    told = re.search(r"(\d+) minutes? (?:to read|of reading)", opening)
    assert told, "the opening says how many minutes the text takes: 'N minutes to read' or 'N minutes of reading'"
    said, takes = int(told.group(1)), reading_minutes(notebook)
    assert abs(said - takes) <= max(2, 0.2 * takes), f"it says {said}, it takes {takes:.0f}"


@each
def test_lines_and_cells_are_short(notebook):
    """A line has at most 120 characters, a cell 40 lines; a cell that is one class may have 80."""
    for cell in cells(notebook, "code"):
        lines = source(cell).splitlines()
        assert max(map(len, lines), default=0) <= 120, source(cell)
        assert len(lines) <= (80 if re.search(r"^class ", source(cell), re.M) else 40), source(cell)


def trailing_comments(code):
    """Comments behind code, but for those that document the parameters of a function or the fields of a class."""
    heads = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            heads |= set(range(node.lineno, node.body[0].lineno))
        if isinstance(node, ast.ClassDef):
            heads |= {field.lineno for field in node.body if isinstance(field, ast.AnnAssign)}
    found = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        behind_code = token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
        if behind_code and token.start[0] not in heads: found.append(token.line.strip())
    return found


@each
def test_comments_stand_on_lines_of_their_own(notebook):
    for cell in cells(notebook, "code"):
        if source(cell) != SETUP: assert trailing_comments(source(cell)) == []


@each
def test_the_title_stands_alone(notebook):
    """What follows title and description in their cell is lost on the website."""
    title, *more = source(cells(notebook, "markdown")[0]).splitlines()
    assert title.startswith("# ") and len([line for line in more if line.strip()]) <= 1


@each
def test_reads_well_on_the_web(notebook):
    """Outputs are saved, pictures are small, and no widget state or error is left in them."""
    assert notebook.stat().st_size <= 500_000
    assert "widgets" not in json.loads(notebook.read_text(encoding="utf-8"))["metadata"]
    outputs = [o for c in cells(notebook, "code") for o in c["outputs"]]
    assert outputs, "no saved outputs"
    assert not [mime for o in outputs for mime in o.get("data", {}) if "widget" in mime]
    assert not [o for o in outputs if o["output_type"] == "error"]


@each
def test_opens_like_the_others(notebook):
    """A badge with its own name, one set-up line that is the same everywhere, and a way out where pip finds nothing."""
    there = f"https://colab.research.google.com/github/{repository()}/blob/main/{notebook.relative_to(ROOT)}"
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({there})"
    opening = "".join(source(c) for c in cells(notebook)[:4])
    assert badge in opening and 'pip install -e ".[notebooks]"' in opening
    assert SETUP in [source(c) for c in cells(notebook, "code")][:2]


@lesson
def test_lessons_are_linked(notebook):
    """The last cell leads to the lesson before and the one behind; all links lead somewhere."""
    last, here = source(cells(notebook)[-1]), LESSONS.index(notebook)
    for neighbour in LESSONS[max(0, here - 1): here] + LESSONS[here + 1: here + 2]:
        assert f"({neighbour.name})" in last, f"no link to {neighbour.name}"
    assert "glossary.md" in text(notebook)
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text(notebook)):
        assert target.startswith("http") or (notebook.parent / target).exists(), target


def test_glossary_terms_are_taught():
    """Each term has a sentence and a lesson; links into the glossary find their term."""
    glossary = (ROOT / "nbs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^### (.+)\n+(.+)$", glossary, re.M)
    assert len(terms) >= 20
    for term, sentence in terms:
        lessons = re.findall(r"\]\(([^)]+\.ipynb)\)", sentence)
        assert lessons and all((ROOT / "nbs" / name).exists() for name in lessons), term
    anchors = {re.sub(r"[^a-z0-9 -]", "", term.lower()).replace(" ", "-") for term, _ in terms}
    for notebook in NOTEBOOKS:
        for anchor in re.findall(r"glossary\.md#([^)]+)\)", text(notebook)):
            assert anchor in anchors, f"{notebook.name} links to glossary.md#{anchor}"


# exercises

@lesson
def test_lessons_end_with_exercises(notebook):
    assert len(exercises(notebook)) >= 2 or is_reference(notebook)


@lesson
def test_checks_wait_for_an_answer(notebook):
    """On the empty stub a check says `not yet`, as the saved output shows."""
    all_cells = cells(notebook)
    for number, _, check, _ in exercises(notebook):
        said = "".join("".join(o.get("text", "")) for o in all_cells[check]["outputs"])
        assert said.startswith("not yet"), f"check {number}"


# code

MODULES = sorted(p for p in (ROOT / "self_improve").rglob("*.py") if not p.name.startswith("_"))
module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)


@module
def test_functions_are_short_and_documented(path):
    """At most 40 lines from `def` to the last line, the docstring not counted; a class at most 80."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
        doc = node.body[0] if ast.get_docstring(node) is not None else None
        lines = node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)
        assert lines <= (80 if isinstance(node, ast.ClassDef) else 40), f"{node.name} has {lines} lines"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@module
def test_comments_in_modules_too(path):
    assert trailing_comments(path.read_text(encoding="utf-8")) == []


@module
def test_no_nested_comprehensions(path):
    """A comprehension within another has to be read twice."""
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, kinds): continue
        inner = [n for n in ast.walk(node) if isinstance(n, kinds) and n is not node]
        assert not inner and len(node.generators) == 1, f"line {node.lineno}: {ast.unparse(node)}"


@module
def test_private_names_stay_at_home(path):
    """Nobody imports another module's private name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert not [a.name for a in node.names if a.name.startswith("_")], ast.unparse(node)
