"""Headless notebooks: beside what else is on a machine, as pages that load nothing, and on Ray, with the records of
a sequential run whatever dies on the way."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import in_process
import matplotlib.pyplot as plt
import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import without_times
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dpmkit import __main__ as command
from dpmkit import plots, records, reproduce
from dpmkit.__main__ import main
from dpmkit.settings import GridSettings, Settings, UserError

PYTHON = {"language_info": {"name": "python"}}

# -- kernels -----------------------------------------------------------------------------------------------


@pytest.fixture
def in_place_of_01(tmp_path, monkeypatch):
    """`in_place_of_01(code)`: notebook 01 is this."""
    def write(code):
        cells = [new_code_cell("home = ''", metadata={"tags": ["parameters"]}), new_code_cell(code)]
        monkeypatch.setattr(reproduce, "SOURCE", tmp_path / "notebooks")
        reproduce.SOURCE.mkdir()
        nbformat.write(new_notebook(metadata=PYTHON, cells=cells), reproduce.SOURCE / "01_data_prep.ipynb")

    return write


@pytest.fixture
def run_notebook(in_place_of_01, spoken, tmp_path):
    """`run_notebook(code)`: the exit code of a run with this in the place of notebook 01."""
    def run(code, home=tmp_path):
        in_place_of_01(code)
        spoken(Path(home))
        return main(["reproduce", "--profile", "smoke", "--notebooks", "01", "--home", str(home)])

    return run


def test_the_kernel_is_this_interpreter_with_this_package_whatever_is_installed_as_python3(run_notebook, tmp_path,
                                                                                            monkeypatch):
    site = tmp_path / "site" / "kernels" / "python3"
    site.mkdir(parents=True)
    (site / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "site"))
    assert run_notebook("import sys, pathlib, dpmkit\n"
                        "pathlib.Path(home, 'ran').write_text('\\n'.join((sys.executable, dpmkit.__file__)))") == 0
    ran = (tmp_path / "ran").read_text().splitlines()
    assert ran == [sys.executable, str(Path(command.__file__).resolve().parent / "__init__.py")]


def test_a_relative_home_is_one_folder_for_the_command_and_its_kernels(run_notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    assert run_notebook("import pathlib\n(pathlib.Path(home) / 'kernel').touch()", home="out") == 0
    assert (tmp_path / "out" / "kernel").exists() and not (reproduce.SOURCE / "out").exists()


def test_a_killed_kernel_names_notebook_file_and_cause(run_notebook, capsys):
    assert run_notebook("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)") == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "notebook 01_data_prep failed: its kernel died" in line and "memory" in line
    named = next(word for word in line.split() if word.endswith("01_data_prep.ipynb"))
    assert Path(named).is_file()


def test_a_failing_notebook_is_named_and_its_results_stay_absent(run_notebook, tmp_path, capsys):
    assert run_notebook("raise ZeroDivisionError('by design')") == 1
    printed = capsys.readouterr().err
    assert "notebook 01_data_prep failed: cell 3: ZeroDivisionError: by design" in printed
    assert not list((tmp_path / "results").rglob("*.html"))


def test_without_the_notebooks_a_clone_is_asked_for(spoken, tmp_path, monkeypatch, capsys):
    spoken(tmp_path)
    monkeypatch.setattr(reproduce, "SOURCE", tmp_path)  # as where the package alone is installed
    assert main(["reproduce", "--profile", "smoke", "--notebooks", "01", "--home", str(tmp_path)]) == 2
    assert f"'01_data_prep' is not in {tmp_path}: run it from a clone" in capsys.readouterr().err


def test_pages_and_records_hold_no_path_of_this_machine(in_place_of_01, tmp_path):
    home = tmp_path / "Zoë's \"home\" back\\slash"
    source, root = home / "secret" / "llama", home / "secret" / "recordings"
    for folder in (source, root):
        folder.mkdir(parents=True)
    in_place_of_01("from pathlib import Path\n"
                   "Path(home, 'given').write_text(f\"{root} {overrides['backbone.source']}\")")
    changes = {"backbone.source": str(source), "memory.lr": 1e-3}
    settings = Settings.of("smoke", changes, home=str(home), root=str(root), corpus="manifest")
    reproduce.run(settings, ["01_data_prep"], changes)
    assert (home / "given").read_text() == f"{root} {source}", "the kernel has the real ones"
    records.save(settings, "data", {}, {}, 1.0)
    published = [p for p in settings.results_path.rglob("*") if p.is_file()]
    assert len(published) == 3
    for path in published:
        text = path.read_text(encoding="utf-8")
        assert not [w for w in ("Zoë", "Zo\\u00eb", "Zo\\xeb", "slash", "secret", tmp_path.name) if w in text], path
        assert "llama" in text and "recordings" in text
    hub = Settings.of("smoke", {"backbone.source": "org/name"}, home=str(home))
    assert records.shown(hub, "backbone.source", "org/name") == "org/name"


def test_figures_do_not_depend_on_a_users_matplotlibrc():
    try:
        plt.rcParams.update({"text.usetex": True, "axes.facecolor": "k"})
        importlib.reload(plots)
        assert not plt.rcParams["text.usetex"] and plt.rcParams["axes.facecolor"] == "white"
        assert not plt.rcParams["axes.spines.top"]
    finally:
        plt.rcParams.update({"text.usetex": False, "axes.facecolor": "white"})


# -- pages -------------------------------------------------------------------------------------------------

WAV = '<audio controls="controls"><source src="data:audio/wav;base64,UklGRg==" type="audio/wav"></audio>'
PNG = "iVBORw0KGgo="


@pytest.fixture
def soup():
    def shown(**data):
        return new_output("display_data", data=data)

    return BeautifulSoup(reproduce.page_of(new_notebook(metadata=PYTHON, cells=[
        new_markdown_cell("# 01 · Données & `codes` <i>x</i>\n\n$L_t < 1$ and\n\n$$\\frac{1}{m} \\sum_{j=1}^m x_j$$"
                          "\n\n[a link](https://arxiv.org/abs/1)."),
        new_markdown_cell("## Load\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\n# no heading\nx = 1\n```"),
        new_code_cell("answer = 42  # <b>", execution_count=7, outputs=[new_output("stream", text="<printed>\n")]),
        new_code_cell("silent = 1"),
        new_markdown_cell("### Listen\n\n# Again"),
        new_code_cell("show()", outputs=[
            shown(**{"text/html": WAV}), shown(**{"image/png": PNG, "text/plain": "<Figure>"}),
            shown(**{"text/html": "<h2>of an output</h2><table class='dataframe'></table>", "text/plain": "a"})]),
    ])), "html.parser")


def test_nothing_is_loaded(soup):
    for tag in soup.select("script, link, img, source, audio, iframe, object, embed"):
        for where in (tag.get("src"), tag.get("href"), tag.get("data")):
            assert where is None or where.startswith("data:"), tag
    assert not soup.select("script, link, base")
    style = "".join(s.get_text() for s in soup.select("style"))
    assert "url(" not in style and "@import" not in style
    assert len(style) < 12_000


def test_the_contents_are_the_headings(soup):
    headings = [(h.name, h["id"]) for h in soup.select("main h1[id], main h2[id], main h3[id]")]
    entries = soup.select("nav a")
    assert [(a["class"][0], a["href"].removeprefix("#")) for a in entries] == headings
    assert [a.get_text() for a in entries] == ["01 · Données & codes x", "Load", "Listen", "Again"]
    assert soup.title.get_text() == "01 · Données & codes x"
    assert len({i for _, i in headings}) == len(headings)


def test_code_is_there_but_closed(soup):
    folded = soup.select("details.code")
    assert ["answer = 42  # <b>", "silent = 1", "show()"] == [
        d.select_one(".highlight").get_text().strip() for d in folded]
    assert not any(d.has_attr("open") for d in folded) and all(d.summary.get_text() == "code" for d in folded)
    assert "42" not in "".join(s for s in soup.main.find_all(string=True) if not s.find_parent("details"))
    assert "In\xa0[" not in soup.get_text() and "[7]" not in soup.get_text()


def test_outputs_are_kept(soup):
    assert "<printed>" in soup.main.get_text() and not soup.select("details.code audio, details.code img")
    assert soup.select_one("main audio source")["src"] == "data:audio/wav;base64,UklGRg=="
    assert soup.select_one("main img")["src"].split(",")[1].strip() == PNG
    assert len(soup.select("main table")) == 2 and "<Figure>" not in soup.get_text()


def test_it_fits_a_phone_and_paper(soup):
    assert "width=device-width" in soup.find("meta", attrs={"name": "viewport"})["content"]
    assert "@media print" in soup.style.get_text()


def test_formulas_are_mathml_which_needs_no_script(soup):
    inline, block = soup.select("main math")
    assert inline["display"] == "inline" and inline.get_text() == "Lt<1" and inline.select_one("msub")
    assert block["display"] == "block" and block.select_one("mfrac") and block.select_one("munderover")
    assert "$" not in soup.main.get_text()


def test_a_notebook_without_a_heading():
    assert "<nav" in reproduce.page_of(new_notebook(cells=[new_code_cell("1")]))


# -- Ray ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", reason="RAY ABSENT: pip install -e '.[ray]'")


def cells(home, seeds=2):
    settings = Settings.of("smoke", {"grid.cpus": 1}, home=str(home))
    return [settings.replace("seed", seed) for seed in range(seeds)]


def untimed(home):
    """Every record below a home, without what may differ from run to run."""
    return {path.name: without_times(json.loads(path.read_text()))
            for path in sorted(Path(home).glob("results/*/records/*.json"))}


def command_line(home, *more):
    return {"args": [sys.executable, "-m", "dpmkit", "reproduce", "--profile", "smoke", "--notebooks", "01,02",
                     "--seeds", "0,1", "--home", str(home), *more], "env": {**os.environ, "OMP_NUM_THREADS": "1"}}


def test_the_driver_killed_and_started_again_leaves_the_records_of_a_sequential_run(ray, spoken, tmp_path,
                                                                                     monkeypatch):
    for home in (tmp_path, tmp_path / "in turn"):
        spoken(home)
    with monkeypatch.context() as patch:
        patch.setattr(reproduce.papermill, "execute_notebook", in_process.execute_notebook)
        assert main(command_line(tmp_path / "in turn")["args"][3:]) == 0
    sequential = untimed(tmp_path / "in turn")
    assert sorted(sequential) == [f"{kind}-fold1-seed{s}.json" for kind in ("backbone", "data") for s in (0, 1)]
    asked, until = command_line(tmp_path, "--ray", "--set", "grid.cpus=1"), time.monotonic() + 300
    first = subprocess.Popen(**asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("results/*/records/data-*.json")) and time.monotonic() < until:
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = subprocess.run(**asked, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    got = untimed(tmp_path)
    assert {name: r["results"] for name, r in got.items()} == {name: r["results"] for name, r in sequential.items()}


def test_a_dead_worker_is_tried_again_and_a_failing_cell_leaves_the_others(ray, tmp_path):
    def work(settings, notebooks, overrides):
        from dpmkit.settings import UserError

        tried = Path(settings.home) / f"tried{settings.seed}"
        tried.write_text(tried.read_text() + "." if tried.exists() else ".")
        if settings.seed == 0 and tried.read_text() == ".":
            os.kill(os.getpid(), signal.SIGKILL)
        if settings.seed == 1:
            raise UserError("no room on this disk")
        if settings.seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(settings.home) / f"done{settings.seed}").touch()

    failed = reproduce.run_grid(cells(tmp_path, 4), ("01",), {}, work=work)
    assert failed.keys() == {"fold1-seed1", "fold1-seed2"}
    assert failed["fold1-seed1"] == "no room on this disk" and "worker died 3 times" in failed["fold1-seed2"]
    assert [(tmp_path / f"tried{i}").read_text() for i in range(4)] == ["..", ".", "...", "."]
    assert (tmp_path / "done0").exists() and (tmp_path / "done3").exists()


@pytest.mark.parametrize(("address", "words"), [
    ("127.0.0.1:9", "refused"), ("here", "invalid literal"), ("local", "The current node timed out")])
def test_a_ray_that_does_not_answer_or_start_is_one_clear_line(ray, address, words, tmp_path, monkeypatch):
    def init(*_, **__):
        raise Exception(f"{words}\nand more")

    ray.shutdown()  # of an earlier test
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=rf"^no Ray at '{address}' \(.*{words}.*host:port.*ray stop --force") as got:
        reproduce.run_grid(cells(tmp_path), ("01",), {}, address=address)
    assert "\n" not in str(got.value)


def test_a_ray_of_this_machine_that_takes_too_long_is_asked_once_more(ray, monkeypatch):
    asked = []

    def init(*_, **__):
        asked.append(1)
        if len(asked) == 1:
            raise Exception("The current node timed out")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: len(asked) > 1)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    assert reproduce._ray("local", GridSettings(cpus=2)) is ray and len(asked) == 2


def test_a_task_larger_than_every_machine_is_one_line(ray, monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}, {"Alive": True, "Resources": {"CPU": 16.0}},
             {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    assert reproduce._ray("local", GridSettings(cpus=4, gpus=1.0)) is ray
    assert reproduce._ray("local", GridSettings(cpus=16)) is ray
    for cpus, gpus in ((17, 0.0), (5, 1.0), (1, 2.0)):
        with pytest.raises(UserError, match=rf"the {cpus} processors and {gpus:g} GPUs.*lower grid.cpus"):
            reproduce._ray("local", GridSettings(cpus=cpus, gpus=gpus))
