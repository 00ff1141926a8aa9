"""The command line: the user's mistakes end in one line and exit code 2, and the report is made of records."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from dpmkit import records, reproduce
from dpmkit.__main__ import main
from dpmkit.settings import Settings

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("arguments", "words"), [
    (["--profile", "huge"], "profile 'huge' is not known; choose one of smoke, demo, smollm2, paper"),
    (["--corpus", "ravdess"], "corpus 'ravdess' is not known; choose one of demo, emodb"),
    (["--corpus", "emodb"], "needs a root"),
    (["--corpus", "emodb", "--root", "nowhere"], "is not a folder"),
    (["--corpus", "emodb", "--root", "."], "wav/03a01Fa.wav"),
    (["--set", "memory.rnk=3"], "setting 'memory.rnk' is not known; known settings: "),
    (["--set", "memory.rank=three"], "memory.rank must be a valid integer"),
    (["--set", "memory.rank"], "NAME=VALUE"),
    (["--set", "codes.tokenizer=mp3"], "known tokenizers: kmeans"),
    (["--folds", "9"], "fold 9 does not exist"),
    (["--folds", "first"], "--folds takes numbers"),
    (["--notebooks", "07"], "names none of"),
])
def test_mistakes_end_in_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "tokenizer" in arguments[-1]:
        arguments = [*arguments, "--notebooks", "01"]
    code = main(["reproduce", "--profile", "smoke", "--home", str(tmp_path), *arguments])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and said.startswith("dpmkit: ") and words in said
    assert not list((tmp_path / "results").rglob("*.html")), "nothing half-written"


def test_a_home_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["reproduce", "--profile", "smoke", "--home", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_failing_notebook_is_named_and_its_results_stay_absent(tmp_path, monkeypatch, capsys):
    broken = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}}, cells=[
        nbformat.v4.new_code_cell("profile = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("raise ZeroDivisionError('by design')")])
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(broken, folder / "01_data_prep.ipynb")
    monkeypatch.setattr(reproduce, "SOURCE", folder)
    assert main(["reproduce", "--profile", "smoke", "--home", str(tmp_path), "--notebooks", "01"]) == 1
    said = capsys.readouterr().err
    assert "notebook 01_data_prep failed" in said and "ZeroDivisionError: by design" in said
    assert not list((tmp_path / "results").rglob("*.html"))


def test_pages_and_records_hold_no_path_of_this_machine(tmp_path, monkeypatch):
    home = tmp_path / "Zoë's \"home\" back\\slash"
    source, root = home / "secret" / "llama", home / "secret" / "recordings"
    for folder in (source, root):
        folder.mkdir(parents=True)
    monkeypatch.setattr(reproduce, "SOURCE", tmp_path / "notebooks")
    reproduce.SOURCE.mkdir()
    cells = [nbformat.v4.new_code_cell("home = ''", metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("from pathlib import Path\nPath(home, 'given').write_text(\n"
                                       "    f\"{root} {overrides['backbone.source']}\")")]
    nbformat.write(nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}}, cells=cells),
                   reproduce.SOURCE / "01_data_prep.ipynb")
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
    assert hub.shown("backbone.source", "org/name") == "org/name"


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
        (home / name).write_bytes((CHECKOUT / name).read_bytes())
    (environment / ".complete").touch()
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    shown = subprocess.run(["make", "-n", "report"], cwd=home, env=plain, capture_output=True, text=True,
                           check=True).stdout  # `make test` runs this test: its own words are not wanted here
    assert ("-m venv --clear .venv" in shown) == bool(wanted) == ("pip install" in shown)
    assert shown.splitlines()[-1] == ".venv/bin/python -m dpmkit report"


def test_a_port_in_use_is_one_clear_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as held:
        environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(held.getsockname()[1])}
        line = [sys.executable, "-m", "dpmkit", "train", "--profile", "smoke", "--home", str(tmp_path)]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the processes cannot meet at 127.0.0.1" in done.stderr and "--master-port" in done.stderr
