"""The skeleton: metadata, notebooks and modules in step, imports downwards, a wheel that works away from the tree."""
import ast
import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import self_improve

ROOT = Path(__file__).resolve().parent.parent
CORE = "tasks model sampler filter train records loop".split()
ROOMS = CORE + "distributed errors pretrained experiments plots course bench cli".split()  # imports go to the left only
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(ROOT).parts))
MODULES = sorted(p for p in (ROOT / "self_improve").rglob("*.py") if not p.name.startswith("_"))
every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.name)
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda p: p.name)


def load(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [c for c in load(notebook)["cells"] if c["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def tree(module):
    return ast.parse(module.read_text(encoding="utf-8"))


def run(*command, cwd=None, **env):
    clean = {k: v for k, v in os.environ.items() if k not in ("SELF_IMPROVE_DATA", "PYTHONPATH", "IN_TEST")}
    done = subprocess.run(command, cwd=cwd, env=clean | env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# metadata

def test_one_version():
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert settings["DEFAULT"]["version"] == self_improve.__version__


def test_site_lists_every_notebook():
    def texts(x):
        if isinstance(x, dict): x = list(x.values())
        return [t for y in x for t in texts(y)] if isinstance(x, list) else [str(x)]
    pages = {t for t in texts(yaml.safe_load((ROOT / "_quarto.yml").read_text())) if re.fullmatch(r"[^*]+\.(ipynb|md|qmd)", t)}
    assert [p for p in pages if not (ROOT / p).exists()] == []
    assert {p.relative_to(ROOT).as_posix() for p in NOTEBOOKS} <= pages


# notebooks and modules

def test_each_module_has_one_notebook():
    exported = [m for p in NOTEBOOKS for c in code_cells(p) for m in re.findall(r"^#\| *default_exp:? +(\S+)", source(c), re.M)]
    assert len(exported) == len(set(exported)), "two notebooks with one default_exp overwrite each other"
    assert set(exported) == {".".join(p.relative_to(ROOT / "self_improve").with_suffix("").parts) for p in MODULES}


@every_notebook
def test_notebook_reads_well_on_the_web(notebook):
    assert notebook.stat().st_size <= 500_000
    assert "widgets" not in load(notebook)["metadata"]
    cells = code_cells(notebook)
    assert any(c["outputs"] for c in cells), "no saved outputs"
    assert not [mime for c in cells for o in c["outputs"] for mime in o.get("data", {}) if "widget" in mime]
    assert not [source(c) for c in cells if len(source(c).splitlines()) > 40]


@every_notebook
def test_notebook_opens_and_ends_like_the_others(notebook):
    """A badge with its own name, one set-up line that is the same everywhere, and three things to try."""
    cells, settings = load(notebook)["cells"], configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    there = f"https://colab.research.google.com/github/{settings['DEFAULT']['repository']}/blob/main/{notebook.relative_to(ROOT)}"
    assert source(cells[1]).startswith(f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({there})")
    assert source(code_cells(notebook)[0]) == 'import importlib.util as u; u.find_spec("self_improve") or get_ipython().run_line_magic("pip", "install -q self-improve");'
    head, found, rest = source(cells[-1]).partition("## Try this")
    assert found and re.findall(r"^(\d+)\. ", rest, re.M) == ["1", "2", "3"]


@every_module
def test_functions_are_short_and_documented(module):
    """At most 25 lines from `def` to the last line, the docstring not counted."""
    for f in tree(module).body:
        if not isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): continue
        doc = f.body[0] if ast.get_docstring(f) is not None else None
        assert doc or f.name.startswith("_"), f"{f.name} has no docstring"
        lines = f.end_lineno - f.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)
        assert isinstance(f, ast.ClassDef) or lines <= 25, f"{f.name} has {lines} lines"


@every_module
def test_imports_go_down(module):
    room = ROOMS.index(module.relative_to(ROOT / "self_improve").parts[0].removesuffix(".py"))
    for node in ast.walk(tree(module)):
        if not isinstance(node, (ast.Import, ast.ImportFrom)): continue
        base = f"{'self_improve.' if node.level else ''}{node.module + '.' if node.module else ''}" if isinstance(node, ast.ImportFrom) else ""
        for package, other, *_ in ((base + a.name).split(".") + [""] for a in node.names):
            if package == "self_improve" and other in ROOMS: assert ROOMS.index(other) < room, ast.unparse(node)


def test_no_undefined_names():
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=ROOT)


def test_core_imports_torch_numpy_and_nothing_else():
    run(sys.executable, "-c", f"""
import random, sys, numpy, torch
def state(): return (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_default_dtype(),
                     torch.get_num_threads(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled())
before, modules = state(), set(sys.modules)
import self_improve
for room in {CORE}: __import__("self_improve." + room)
assert state() == before, "importing changed a global setting or drew random numbers"
extra = {{m.partition(".")[0] for m in set(sys.modules) - modules}} - set(sys.stdlib_module_names) - {{"self_improve", "torch", "numpy"}}
assert not extra, extra
""", cwd=ROOT)


# the wheel, built from the sdist and used from outside the tree

@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    dist, target = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("target")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT))
    wheel, = dist.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def test_wheel_has_every_public_name_and_the_records(installed, tmp_path):
    found = run(sys.executable, "-c", """
import importlib, pkgutil, self_improve
for m in pkgutil.walk_packages(self_improve.__path__, "self_improve."):
    if m.name.rpartition(".")[2].startswith("_"): continue
    module = importlib.import_module(m.name)
    for name in module.__all__: getattr(module, name)
from self_improve.records import data_folders
print(*data_folders(), sep="\\n")
""", cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert [Path(f).resolve() for f in found] == [(installed / "self_improve" / "data").resolve()]
    shipped = {p.relative_to(installed / "self_improve") for p in (installed / "self_improve" / "data").rglob("*") if p.is_file()}
    assert shipped == {p.relative_to(ROOT) for p in (ROOT / "data").rglob("*") if p.is_file()}
    assert Path("data/runs/index.json") in shipped


def test_wheel_runs(installed, tmp_path):
    listed = json.loads(run(sys.executable, "-m", "self_improve", "list", "--json", cwd=tmp_path, PYTHONPATH=str(installed)))
    assert any(item["experiment"] == "copy" for item in listed)
    assert all({"experiment", "scale", "minutes", "recorded"} <= item.keys() for item in listed)
