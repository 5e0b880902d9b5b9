"""Notebooks in a real browser: the figures' sliders are moved, and a student solves the first assignment.

Runs where chromium, its driver and selenium are installed (Debian: chromium, chromium-driver), and says so elsewhere.
"""
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

from self_improve.course import build_course, find_masters
from self_improve.grading import Nursery, grade, prepare, read_submission
from self_improve.marking import submission_of

ROOT = Path(__file__).resolve().parent.parent
MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
with contextlib.suppress(ImportError):
    from selenium import webdriver
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
if "webdriver" not in globals(): MISSING.append("selenium")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]

HOMEWORK = "01_problems_as_data"
# seconds that a notebook may take to run all its cells beside other tests
PATIENCE = 180
# the open notebook's panel, and whether its kernel answers
PANEL = "const panel = [...window.jupyterapp.shell.widgets('main')].find(w => w.sessionContext);"
READY = PANEL + """
const kernel = panel && panel.sessionContext.isReady && panel.sessionContext.session.kernel;
return !!kernel && kernel.connectionStatus === 'connected';
"""
RUN_ALL = PANEL + """
const done = arguments[arguments.length - 1];
window.jupyterapp.shell.activateById(panel.id);
window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => done(true));
"""


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, seconds=PATIENCE, every=0.2):
    """What a function finds, as soon as it is something; raises AssertionError when the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            found = what()
            if found: return found
        time.sleep(every)
    raise AssertionError(f"nothing within {seconds} s")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with copies of the figures, since JupyterLab saves what it opens, and with a student's first zip."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "nbs" / "figures", home / "figures")
    build_course(find_masters(HOMEWORK), home / "course")
    zipfile.ZipFile(home / "course" / "students" / f"{HOMEWORK}.zip").extractall(home)
    return home


@pytest.fixture(scope="module")
def lab(home):
    """JupyterLab on this machine alone."""
    # no question about news on the page
    settings = home / "config" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}')
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
             "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={home}",
             "--LabApp.expose_app_in_browser=True"]
    more = {"OMP_NUM_THREADS": "1", "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data")}
    server = subprocess.Popen(words, env=os.environ | more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: urllib.request.urlopen(f"{address}/api").status == 200, 60)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window."""
    options = webdriver.ChromeOptions()
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", "disable-dev-shm-usage",
                 "window-size=1300,2400", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.binary_location = shutil.which("chromium")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(PATIENCE)
    # without a window nothing would have the focus, and keys would be lost
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    yield driver
    driver.quit()


def open_notebook(browser, lab, folder, name):
    """Open a notebook and wait for its kernel."""
    browser.get(f"{lab}/lab/workspaces/{name}/tree/{folder}/{name}.ipynb?reset")
    wait_for(lambda: browser.execute_script(READY))


def open_and_run(browser, lab, name):
    """Open a figure's notebook and run all its cells; how long it took."""
    open_notebook(browser, lab, "figures", name)
    start = time.monotonic()
    browser.execute_async_script(RUN_ALL)
    return time.monotonic() - start


def boxes(browser):
    """Each set of controls with its picture, as they are on the page."""
    return browser.execute_script("""return [...document.querySelectorAll('.jp-OutputArea-output .widget-vbox')]
        .filter(b => b.querySelector(':scope > img'));""")


def picture(box): return box.find_element(By.CSS_SELECTOR, "img").get_attribute("src")


def press_slider(browser, box, number):
    """Press an arrow key on a slider; seconds until the picture is another one."""
    handle = box.find_elements(By.CSS_SELECTOR, ".noUi-handle")[number]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    lowest, now = [float(handle.get_attribute(f"aria-{name}")) for name in ("valuemin", "valuenow")]
    before, start = picture(box), time.monotonic()
    handle.send_keys(Keys.ARROW_RIGHT if now == lowest else Keys.ARROW_LEFT)
    wait_for(lambda: picture(box) != before, 30, 0.02)
    return time.monotonic() - start


@pytest.mark.parametrize("name", ["reverse_addition", "multiplication", "maze_hops"])
def test_every_slider_changes_its_picture(browser, lab, name):
    seconds = open_and_run(browser, lab, name)
    found = boxes(browser)
    assert found, "no controls on the page"
    assert not browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output[data-mime-type*='stderr'] .ansi-red-fg")
    times = []
    for box in found:
        for number, _ in enumerate(box.find_elements(By.CSS_SELECTOR, ".noUi-handle")):
            times.append(press_slider(browser, box, number))
    print(f"{name}: all cells in {seconds:.1f} s, a slider redraws in {min(times):.2f} to {max(times):.2f} s")


def test_a_typed_sum_is_answered(browser, lab):
    open_and_run(browser, lab, "reverse_addition")
    box = next(b for b in boxes(browser) if len(b.find_elements(By.CSS_SELECTOR, "input[type=text]")) >= 2)
    field = box.find_elements(By.CSS_SELECTOR, "input[type=text]")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
    before = picture(box)
    field.clear()
    field.send_keys("123", Keys.ENTER)
    wait_for(lambda: picture(box) != before, 30)
    # what is no number is told, and the picture stays
    before = picture(box)
    field.clear()
    field.send_keys("12x", Keys.ENTER)
    wait_for(lambda: "is no number" in box.text, 30)
    assert picture(box) == before


def test_a_live_climb_starts_and_stops(browser, lab):
    open_and_run(browser, lab, "copy_and_reverse")
    start = browser.find_element(By.XPATH, "//button[contains(., 'start')]")
    stop = browser.find_element(By.XPATH, "//button[contains(., 'stop')]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", start)
    box = browser.execute_script("return arguments[0].closest('.widget-vbox')", start)
    before = picture(box)
    start.click()
    # the base is loaded, and its round drawn
    wait_for(lambda: picture(box) != before)
    stop.click()
    wait_for(lambda: "start goes on" in box.text)
    assert start.is_enabled()


# a student

# the cells that can be run, by their names
CODE_CELLS = PANEL + "return panel.content.widgets.filter(w => w.model.type === 'code').map(w => w.model.id);"
# shows a cell and puts the cursor into it
ENTER = PANEL + """
const [name, done] = arguments;
const cells = panel.content;
const index = cells.widgets.findIndex(w => w.model.id === name);
window.jupyterapp.shell.activateById(panel.id);
cells.activeCellIndex = index;
cells.scrollToItem(index).catch(() => {});
cells.activeCell.ready.then(() => {
    cells.mode = 'edit';
    cells.activeCell.editor.focus();
    setTimeout(() => done(cells.activeCell.editor.hasFocus()), 50);
});
"""
# what a cell wrote, as text; null while it runs
OUTPUT = PANEL + """
const cell = panel.content.widgets.find(w => w.model.id === arguments[0]);
if (cell.model.executionCount === null || cell.model.executionState === 'running') return null;
return JSON.stringify(cell.model.outputs.toJSON());
"""
SAVE = PANEL + "const done = arguments[arguments.length - 1]; panel.context.save().then(() => done(true));"


def write_cell(browser, name, source):
    """Replace what stands in a cell, through the keyboard."""
    assert wait_for(lambda: browser.execute_async_script(ENTER, name))
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
    browser.execute_cdp_cmd("Input.insertText", {"text": source})


def run_cell(browser, name):
    """Press Shift and Enter in a cell; its outputs."""
    assert wait_for(lambda: browser.execute_async_script(ENTER, name))
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    return json.loads(wait_for(lambda: browser.execute_script(OUTPUT, name)))


def test_a_student_solves_the_first_assignment(browser, lab, home):
    [master] = find_masters(HOMEWORK)
    answers = dict(submission_of(master).cells)
    start = time.monotonic()
    open_notebook(browser, lab, HOMEWORK, HOMEWORK)
    printed = []
    for name in browser.execute_script(CODE_CELLS):
        if name in answers: write_cell(browser, name, answers[name])
        for output in run_cell(browser, name):
            assert output["output_type"] != "error", (name, output)
            printed.append("".join(output.get("text", "")))
    # every check that stands in the notebook has passed
    text = "".join(printed)
    assert all(f"✓ {part.name}" in text for part in master.of_kind("check")), text
    browser.execute_async_script(SAVE)
    print(f"{HOMEWORK}: from opening it to the last check in {time.monotonic() - start:.0f} s")
    # and what JupyterLab saved is worth all points
    submission = read_submission(home / HOMEWORK / f"{HOMEWORK}.ipynb")
    with contextlib.closing(Nursery(master)) as nursery: result = grade(master, submission, prepare(master, 1), nursery)
    assert result.points == result.most
