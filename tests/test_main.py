"""The command line: the user's mistakes end in one line and exit code 2; and the names that people import."""

import ast
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ended, started

import dpmkit
from dpmkit import findings, reproduce
from dpmkit.__main__ import main

PACKAGE = Path(dpmkit.__file__).parent


@pytest.fixture(scope="module")
def home(spoken, tmp_path_factory):
    """A home that keeps the demo corpus."""
    return spoken(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize(("arguments", "words"), [
    (["--profile", "huge"], "profile 'huge' is not known; choose one of smoke, demo, quick"),
    (["--corpus", "ravdis"], "corpus 'ravdis' is not known; choose one of demo, "),
    (["--corpus", "emodb"], "needs a root"),
    (["--corpus", "emodb", "--root", "nowhere"], "is not a folder"),
    (["--corpus", "emodb", "--root", "."], "wav/03a01Fa.wav"),
    (["--set", "memory.rnk=3"], "setting 'memory.rnk' is not known; known settings: "),
    (["--set", "memory.rank=three"], "memory.rank must be a valid integer"),
    (["--set", "memory.rank"], "NAME=VALUE"),
    (["--set", "codes.tokenizer=mp3", "--notebooks", "01"], "known tokenizers: kmeans"),
    (["--folds", "9"], "fold 9 does not exist"),
    (["--notebooks", "07"], "names none of"),
])
def test_mistakes_end_in_one_line_and_exit_code_2(arguments, words, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(["reproduce", "--profile", "smoke", "--home", str(home), *arguments])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and line.startswith("dpmkit: ") and words in line
    assert not list((home / "results").rglob("*.html")), "nothing half-written"


@pytest.mark.parametrize("option", ["--folds", "--seeds"])
def test_numbers_are_numbers(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["reproduce", option, "first"])
    assert f"argument {option}: invalid numbers value: 'first'" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["reproduce", "--profile", "smoke", "--home", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_values_on_the_command_line_and_sources_of_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    (tmp_path / "labels.csv").touch()
    values = ["memory.lr=.5", "memory.weight_decay=1e-2", "ablation.rank=[2, 3]", "evaluation.own_answers=false",
              "source.allow_partial=True", "memory.layers=top-2", "conversation.sequences=labels.csv"]
    assert main(["settings", "--set", "backbone.source=llama", "--set", "codes.source=kyutai/mimi",
                 *(word for value in values for word in ("--set", value))]) == 0
    shown = json.loads(capsys.readouterr().out)
    expected = {"memory.lr": 0.5, "memory.weight_decay": 0.01, "ablation.rank": [2, 3],
                "evaluation.own_answers": False, "source.allow_partial": True, "memory.layers": "top-2"}
    assert {name: shown[name] for name in expected} == expected
    assert shown["conversation.sequences"] == str(tmp_path / "labels.csv")
    assert shown["backbone.source"] == str(tmp_path / "llama") and shown["codes.source"] == "kyutai/mimi"


def test_a_terminal_that_lacks_a_letter_ends_no_run(home, monkeypatch):
    monkeypatch.setattr(reproduce, "run", lambda *_: None)
    monkeypatch.setattr(findings, "told", lambda *_: "5 × ü")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["reproduce", "--profile", "smoke", "--home", str(home)]) == 0
    terminal.flush()
    assert b"5 \\xd7 \\xfc" in terminal.buffer.getvalue()


def test_failed_cells_are_listed_and_the_exit_says_so(home, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "run_grid", lambda cells, *_: {cells[1].run_name: "no room on this disk"})
    assert main(["reproduce", "--profile", "smoke", "--seeds", "0,1", "--home", str(home), "--ray"]) == 1
    assert "dpmkit: fold1-seed1 failed: no room on this disk" in capsys.readouterr().err


def test_a_port_in_use_is_one_clear_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as held:
        environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(held.getsockname()[1])}
        done = started(tmp_path / "log", main, ["train", "--profile", "smoke", "--home", str(tmp_path)],
                       environment=environment)
        code, said = ended(done, 200), (tmp_path / "log").read_text()
    assert code == 2 and "Traceback" not in said
    assert "the processes cannot meet at 127.0.0.1" in said and "--master-port" in said


@pytest.mark.parametrize(("was", "interpreter", "wanted"), [
    ("here", True, ""), ("moved", True, "--clear"), ("here", False, "--clear")])
def test_a_copied_or_moved_checkout_is_set_up_again(was, interpreter, wanted, tmp_path):
    home = tmp_path / "a cop'y"
    environment = home / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to("/bin/sh" if interpreter else tmp_path / "gone")
    made_at = environment if was == "here" else tmp_path / "first" / ".venv"
    (environment / "pyvenv.cfg").write_text(f"version = 3.11\ncommand = /usr/bin/python3 -m venv {made_at}\n")
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (home / name).write_bytes((PACKAGE.parent / name).read_bytes())
    (environment / ".complete").touch()
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    shown = subprocess.run(["make", "-n", "report"], cwd=home, env=plain, capture_output=True, text=True,
                           check=True).stdout  # `make test` runs this test: its own words are not wanted here
    assert ("-m venv --clear .venv" in shown) == bool(wanted) == ("pip install" in shown)
    assert shown.splitlines()[-1] == ".venv/bin/python -m dpmkit report"


def test_settings_are_printed_and_public_names_are_there_without_torch():
    code = ("import sys, dpmkit.__main__; dpmkit.__main__.main(['settings']); assert 'torch' not in sys.modules; "
            "from dpmkit import *; assert load_corpus and EmotionSLLM and DynamicParameterMemory and Settings.of()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["memory.rank"] == 16, done.stderr[-2000:]
    with pytest.raises(AttributeError, match="no attribute 'EmotionLLM'"):
        _ = dpmkit.EmotionLLM


def bare(node, name):
    """The public functions, classes and methods in a piece of code that have no docstring."""
    if ast.get_docstring(node) is None:
        yield name
    for inner in [] if isinstance(node, ast.FunctionDef) else node.body:
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and not inner.name.startswith("_"):
            yield from bare(inner, f"{name}.{inner.name}")


def test_every_public_function_class_and_method_has_a_docstring():
    modules = {f.relative_to(PACKAGE).as_posix(): ast.parse(f.read_text(encoding="utf-8"))
               for f in PACKAGE.rglob("*.py")}
    assert [name for file, tree in modules.items() for name in bare(tree, file)] == []


@pytest.mark.parametrize(("name", "words"), [
    ("Settings", ("Settings.of", "root")), ("load_corpus", ("settings.root", "Raises UserError")),
    ("EmotionSLLM", ("n_limit", "token")), ("DynamicParameterMemory", ("backbone", "stream"))])
def test_exported_names_say_units_errors_and_source(name, words):
    text = getattr(dpmkit, name).__doc__
    assert all(word in text for word in words), text
