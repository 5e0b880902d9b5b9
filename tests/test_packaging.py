"""The skeleton: metadata, notebooks and modules in step, imports upwards, a wheel that works away from the tree."""
import ast
import configparser
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from shlex import split

import pytest
import yaml
from filelock import FileLock
from packaging.requirements import Requirement

import self_improve
from self_improve.actions import LESSON_FILES

# on one worker, so that the wheel is built once; not every version of pytest lets xdist group tests
pytestmark = pytest.mark.xdist_group("wheel")
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
NOTEBOOKS = [p for p in NOTEBOOKS if not any(part[0] in "._" for part in p.relative_to(ROOT).parts)]
MODULES = sorted(p for p in (ROOT / "self_improve").rglob("*.py") if not p.name.startswith("_"))
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda p: p.name)


def code_cells(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def exported_module(notebook):
    """The module that a notebook exports; None if it exports none."""
    for cell in code_cells(notebook):
        found = re.search(r"^#\| *default_exp:? +(\S+)", cell, re.M)
        if found: return found.group(1)
    return None


# the modules in the order of their notebooks; imports go up this table only
TABLE = {exported_module(p): int(p.name[:2]) for p in NOTEBOOKS if exported_module(p)}
ROOMS = list(TABLE)
# the loop and all that it needs
CORE = [room for room, number in TABLE.items() if number <= 60]


def run(*command, cwd=None, **env):
    dropped = ("SELF_IMPROVE_DATA", "PYTHONPATH", "IN_TEST")
    clean = {key: value for key, value in os.environ.items() if key not in dropped}
    done = subprocess.run(command, cwd=cwd, env=clean | env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# metadata

@pytest.fixture
def settings():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_one_version(settings):
    assert settings["version"] == self_improve.__version__


def test_requirements_allow_what_is_installed_here(settings):
    """And each has an upper bound, so that a later version that breaks something is not installed unasked."""
    required = [Requirement(text) for text in split(settings["requirements"])]
    names = {"numpy", "torch", "safetensors", "matplotlib", "typer", "rich", "pandas", "filelock"}
    assert {requirement.name for requirement in required} == names
    for requirement in required:
        assert requirement.specifier.contains(version(requirement.name).partition("+")[0]), str(requirement)
        assert {">=", "<"} == {s.operator for s in requirement.specifier}, str(requirement)


def texts(value):
    """Every text in a nested structure."""
    if isinstance(value, dict): value = list(value.values())
    if not isinstance(value, list): return [str(value)]
    return [text for part in value for text in texts(part)]


def test_site_lists_every_notebook():
    every = texts(yaml.safe_load((ROOT / "_quarto.yml").read_text()))
    pages = {text for text in every if re.fullmatch(r"[^*]+\.(ipynb|md|qmd)", text)}
    assert [page for page in pages if not (ROOT / page).exists()] == []
    assert {p.relative_to(ROOT).as_posix() for p in NOTEBOOKS} <= pages


# notebooks and modules

def test_each_module_has_one_notebook():
    exported = [exported_module(p) for p in NOTEBOOKS if exported_module(p)]
    assert len(exported) == len(set(exported)), "two notebooks with one default_exp overwrite each other"
    assert set(exported) == {".".join(p.relative_to(ROOT / "self_improve").with_suffix("").parts) for p in MODULES}


def imported(node):
    """The modules of ours that an import statement names."""
    if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
    else:
        base = ("self_improve." if node.level else "") + (f"{node.module}." if node.module else "")
        names = [base + alias.name for alias in node.names]
    found = []
    for name in names:
        package, other, *_ = [*name.split("."), ""]
        if package == "self_improve" and other in ROOMS: found.append(other)
    return found


@every_module
def test_imports_go_up_the_table(module):
    room = ROOMS.index(module.stem)
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.Import, ast.ImportFrom)): continue
        for other in imported(node): assert ROOMS.index(other) < room, ast.unparse(node)


def test_no_undefined_names():
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=ROOT)


PROBE = """
import random, sys, numpy, torch
def state():
    return (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_default_dtype(),
            torch.get_num_threads(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled())
before, modules = state(), set(sys.modules)
import self_improve
for room in {rooms}: __import__("self_improve." + room)
print(state() == before)
loaded = {{name.partition(".")[0] for name in set(sys.modules) - modules}}
print(*sorted(loaded - set(sys.stdlib_module_names)))
"""


def probe(rooms):
    """Whether importing these modules leaves all global state alone, and the packages it loads beside torch."""
    untouched, loaded = run(sys.executable, "-c", PROBE.format(rooms=rooms), cwd=ROOT).splitlines()
    return untouched == "True", set(loaded.split())


def test_core_imports_torch_numpy_and_nothing_else():
    untouched, loaded = probe(CORE)
    assert loaded == {"self_improve"} and untouched, "importing changed a global setting or drew random numbers"


def test_the_command_starts_without_what_it_may_never_need():
    _, loaded = probe(["cli"])
    assert {"typer", "rich"} <= loaded
    assert not loaded & {"pandas", "matplotlib", "transformers", "ipywidgets", "IPython", "filelock"}


# the wheel, built from the sdist and used from outside the tree

@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    dist, target = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("target")
    # two builds at once write over each other in the tree; the workers share the folder above their own
    with FileLock(tmp_path_factory.getbasetemp().parent / "build.lock"):
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT))
    wheel, = dist.glob("*.whl")
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(target)]
    run(sys.executable, "-m", "pip", "install", *options, str(wheel))
    return target


@pytest.fixture
def command(installed, tmp_path):
    """`self-improve` as it is installed, run in an empty folder; what it prints."""
    def command(*words):
        return run(sys.executable, "-m", "self_improve", *words, cwd=tmp_path, PYTHONPATH=str(installed),
                   OMP_NUM_THREADS="1")
    return command


NAMES = """
import importlib, pkgutil, self_improve
for m in pkgutil.walk_packages(self_improve.__path__, "self_improve."):
    if m.name.rpartition(".")[2].startswith("_"): continue
    module = importlib.import_module(m.name)
    for name in module.__all__: getattr(module, name)
from self_improve.records import data_folders
print(*data_folders(), sep="\\n")
"""


def files(folder):
    return {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}


def test_wheel_has_every_public_name_and_the_records(installed, tmp_path):
    found = run(sys.executable, "-c", NAMES, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()
    package = installed / "self_improve"
    assert [Path(folder).resolve() for folder in found] == [(package / "data").resolve()]
    assert files(package / "data") == files(ROOT / "data") and Path("runs/index.json") in files(package / "data")


def test_wheel_has_the_lessons(installed, command, tmp_path):
    lessons = set()
    for pattern in LESSON_FILES: lessons |= {path.relative_to(ROOT / "nbs") for path in (ROOT / "nbs").glob(pattern)}
    assert files(installed / "self_improve" / "lessons") == lessons and Path("figures/framework.ipynb") in lessons
    assert "00_start.ipynb" in command("lessons", "mine")
    assert files(tmp_path / "mine") == lessons
    for name in lessons: assert (tmp_path / "mine" / name).read_bytes() == (ROOT / "nbs" / name).read_bytes()


def test_setup_ships_the_lessons_that_the_command_copies():
    tree = ast.parse((ROOT / "setup.py").read_text())
    assigned = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
    assert ast.literal_eval(assigned["LESSON_FILES"]) == LESSON_FILES


def test_wheel_runs(command):
    listed = json.loads(command("list", "--json"))
    assert any(item["experiment"] == "copy" for item in listed)
    assert all({"experiment", "scale", "minutes", "recorded"} <= item.keys() for item in listed)


MY_TASKS = '''
from dataclasses import dataclass
from typing import ClassVar
from self_improve.tasks import EOS, Block, Task, Vocab, concat_columns, random_digits, register

@register
@dataclass(frozen=True)
class MySorting(Task):
    name: ClassVar[str] = "my_sorting"
    vocab: ClassVar[Vocab] = Vocab("0123456789=")

    def shapes(self, level, purpose="self"): return [self.check_level(level)]

    def draw(self, shape, stream, rows):
        digits = random_digits(stream, rows, shape) + self.vocab.ids["0"]
        prompts = concat_columns(len(digits), digits, self.vocab.ids["="])
        return Block(prompts, self.solve(prompts))

    def solve(self, prompts): return concat_columns(len(prompts), prompts[:, :-1].sort(1).values, EOS)
'''


def test_a_task_of_ones_own_through_the_wheel(command, tmp_path):
    (tmp_path / "my_tasks.py").write_text(MY_TASKS)
    mine = ("--tasks", "my_tasks.py")
    assert "my_sorting keeps all rules" in command("check", "my_tasks.py")
    command("run", "my_sorting", *mine, "--scale", "smoke", "--quiet")
    folder, = (tmp_path / "runs").iterdir()
    shown = json.loads(command("show", folder.name, *mine, "--json"))
    assert (shown["experiment"], shown["scale"], shown["rounds"]) == ("my_sorting", "smoke", 2)
    command("show", folder.name, *mine, "--png", "mine.png")
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    problem = json.loads(command("problem", "my_sorting", "--level", "6", *mine, "--json"))
    assert problem["answer"] == "".join(sorted(problem["prompt"][:-1]))
    answered = json.loads(command("answer", folder.name, "312=", *mine, "--json"))
    assert answered["prompt"] == "312=" and len(answered["models"]) == 2 and answered["right"] in (True, False)
