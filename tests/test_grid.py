"""The grid on Ray: the records of a sequential run, whatever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import without_times

from dpmkit import __main__ as command
from dpmkit import reproduce
from dpmkit.settings import Settings, UserError

pytest.importorskip("ray", reason="RAY ABSENT: pip install -e '.[ray]'")

ASKED = ["reproduce", "--profile", "smoke", "--notebooks", "01,02", "--seeds", "0,1"]


def cells(home, seeds=2):
    settings = Settings.of("smoke", {"grid.cpus": 1, "grid.retries": 1}, home=str(home))
    return [settings.replace("seed", seed) for seed in range(seeds)]


def untimed(home):
    """Every record below a home, without what may differ from run to run."""
    return {path.name: without_times(json.loads(path.read_text()))
            for path in sorted(Path(home).glob("results/*/records/*.json"))}


def command_line(home, *more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "dpmkit", *ASKED, "--home", str(home), *more], environment


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    home = tmp_path_factory.mktemp("sequential")
    line, environment = command_line(home)
    subprocess.run(line, env=environment, check=True, capture_output=True, timeout=600)
    made = untimed(home)
    assert sorted(made) == [f"{kind}-fold1-seed{s}.json" for kind in ("backbone", "data") for s in (0, 1)]
    return made


def test_the_driver_killed_and_started_again_leaves_the_records_of_a_sequential_run(sequential, tmp_path):
    line, environment = command_line(tmp_path, "--ray", "--set", "grid.cpus=1")
    first = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not list(tmp_path.glob("results/*/records/data-*.json")) and time.monotonic() < until:
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    got = untimed(tmp_path)
    assert got.keys() == sequential.keys()
    for name, record in sequential.items():
        assert got[name]["results"] == record["results"], name


def test_a_dead_worker_is_tried_again_and_a_failing_cell_leaves_the_others(tmp_path):
    def work(notebooks, overrides, settings):
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
    assert failed["fold1-seed1"] == "no room on this disk" and "worker died 2 times" in failed["fold1-seed2"]
    assert [(tmp_path / f"tried{i}").read_text() for i in range(4)] == ["..", ".", "..", "."]
    assert (tmp_path / "done0").exists() and (tmp_path / "done3").exists()


def test_failed_cells_are_listed_and_the_exit_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "run", lambda cells, *_: {cells[1].run_name: "no room on this disk"})
    assert command.main([*ASKED, "--home", str(tmp_path), "--ray"]) == 1
    assert "dpmkit: fold1-seed1 failed: no room on this disk" in capsys.readouterr().err


@pytest.mark.parametrize(("address", "said"), [("127.0.0.1:9", "nothing answers at"), ("here", "host:port")])
def test_a_cluster_that_does_not_answer_is_one_clear_line(address, said, tmp_path):
    start = time.monotonic()
    with pytest.raises(UserError, match=said):
        reproduce.run_grid(cells(tmp_path), ("01",), {}, address=address)
    assert time.monotonic() - start < 10
