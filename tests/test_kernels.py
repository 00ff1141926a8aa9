"""Headless notebooks beside what else is on a machine: other kernels, killed ones, terminals, folders."""

import importlib
import io
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from dpmkit import __main__ as command
from dpmkit import plots, report, reproduce
from dpmkit.__main__ import main

ASKED = ["reproduce", "--profile", "smoke", "--notebooks", "01"]


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """`notebook(code)`: stands in for notebook 01."""
    def write(code):
        cells = [nbformat.v4.new_code_cell("home = ''", metadata={"tags": ["parameters"]}),
                 nbformat.v4.new_code_cell(code)]
        monkeypatch.setattr(reproduce, "SOURCE", tmp_path / "notebooks")
        reproduce.SOURCE.mkdir()
        nbformat.write(nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}}, cells=cells),
                       reproduce.SOURCE / "01_data_prep.ipynb")

    return write


def test_the_kernel_is_this_interpreter_with_this_package_whatever_is_installed_as_python3(notebook, tmp_path,
                                                                                            monkeypatch):
    site = tmp_path / "site" / "kernels" / "python3"
    site.mkdir(parents=True)
    (site / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "site"))
    notebook("import sys, pathlib, dpmkit\n"
             "pathlib.Path(home, 'ran').write_text('\\n'.join((sys.executable, dpmkit.__file__)))")
    assert main([*ASKED, "--home", str(tmp_path)]) == 0
    ran = (tmp_path / "ran").read_text().splitlines()
    assert ran == [sys.executable, str(Path(command.__file__).resolve().parent / "__init__.py")]


def test_a_relative_home_is_one_folder_for_the_command_and_its_kernels(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook("import pathlib\n(pathlib.Path(home) / 'kernel').touch()")
    (tmp_path / "out").mkdir()
    assert main([*ASKED, "--home", "out"]) == 0
    assert (tmp_path / "out" / "kernel").exists() and not (reproduce.SOURCE / "out").exists()


def test_sources_on_the_command_line_are_of_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    line = ["settings", "--set", "backbone.source=llama", "--set", "codes.source=kyutai/mimi"]
    assert main(line) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["backbone.source"] == str(tmp_path / "llama") and shown["codes.source"] == "kyutai/mimi"


def test_a_killed_kernel_names_notebook_cell_file_and_cause(notebook, tmp_path, capsys):
    notebook("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert main([*ASKED, "--home", str(tmp_path)]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "notebook 01_data_prep died in cell 3" in line and "memory" in line
    named = next(word for word in line.split() if word.endswith("01_data_prep.ipynb"))
    assert Path(named).is_file()


def test_a_terminal_that_lacks_a_letter_ends_no_run(notebook, tmp_path, monkeypatch):
    notebook("pass")
    monkeypatch.setattr(report, "summary", lambda *_: "5 × ü")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main([*ASKED, "--home", str(tmp_path)]) == 0
    terminal.flush()
    assert b"5 \\xd7 \\xfc" in terminal.buffer.getvalue()


def test_figures_do_not_depend_on_a_users_matplotlibrc():
    try:
        plt.rcParams.update({"text.usetex": True, "axes.facecolor": "k"})
        importlib.reload(plots)
        assert not plt.rcParams["text.usetex"] and plt.rcParams["axes.facecolor"] == "white"
        assert not plt.rcParams["axes.spines.top"]
    finally:
        plt.rcParams.update({"text.usetex": False, "axes.facecolor": "white"})
