"""How threads wait is chosen by what else runs, and never against a user's own setting."""

import json
import os
import subprocess
import sys

import pytest

from dpmkit import bench, machine, report
from dpmkit.settings import Settings


@pytest.fixture
def before_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.parametrize(("percent", "chosen"), [(3.0, machine.QUIET), (22.0, machine.QUIET), (28.0, machine.BUSY)])
@pytest.mark.parametrize("parent", [{}, {**machine.QUIET, machine.MARK: "1"}, {**machine.BUSY, machine.MARK: "1"}])
def test_others_that_keep_a_processor_busy_decide_anew_in_every_process(percent, chosen, parent, before_torch,
                                                                        monkeypatch):
    monkeypatch.setattr(machine.psutil, "cpu_percent", lambda _: percent)
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda: 2)
    environment = dict(parent)
    machine.choose(environment)
    assert environment == {**chosen, machine.MARK: "1"}


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {"OMP_NUM_THREADS": "1"}])
def test_a_users_own_setting_stays(own, before_torch):
    environment = dict(own)
    machine.choose(environment)
    assert environment == own


def test_the_choice_reaches_openmp_in_every_process_that_imports_the_kit_first():
    plain = {k: v for k, v in os.environ.items()
             if k not in (*machine.NAMES, machine.MARK, "OMP_NUM_THREADS")} | {"OMP_DISPLAY_ENV": "VERBOSE"}
    asked = {"OMP_WAIT_POLICY": "PASSIVE"}  # libgomp prints what it has read when torch loads it
    for environment, words in ((plain, ("GOMP_SPINCOUNT = '10000'", "GOMP_SPINCOUNT = '0'")),
                               ({**plain, **asked}, ("GOMP_SPINCOUNT = '0'",))):
        done = subprocess.run([sys.executable, "-c", "import dpmkit.settings, torch"], env=environment,
                              capture_output=True, text=True, check=True)
        assert any(w in done.stderr for w in words), done.stderr[-2000:]


def test_rates_are_measured_quiet_and_beside_a_busy_process(tmp_path, monkeypatch):
    started = []

    real = subprocess.run

    def run(line, env=None, **named):
        if env is None:  # the record asks git
            return real(line, **named)
        started.append((line[-1], {n: env[n] for n in machine.NAMES if n in env}))
        return subprocess.CompletedProcess(line, 0, json.dumps(
            {"sentences_per_second": float(len(started)), "steps_per_second": 1.0, "chose": "x"}))

    monkeypatch.setattr(bench.subprocess, "run", run)
    path = bench.threads(Settings.of("smoke", home=str(tmp_path)), repeats=2)
    rows = json.loads(path.read_text())["results"]["rows"]
    assert [(r["machine"], r["waiting"]) for r in rows] == [
        (m, a) for m in ("quiet", "beside a busy process")
        for a in ("default", "quiet's choice", "busy's choice", "chosen")]
    assert all(r["n"] == len(r["sentences_per_second"]) == 2 for r in rows)
    page = report.page([], path.parent.parent)
    assert "How threads wait" in page and "| quiet | default | 2 | x | 5 [1, 9] | 1 [1, 1] |" in page
    assert [e for _, e in started[:4]] == [{}, machine.QUIET, machine.BUSY, {}]
    assert ["import torch" in code for code, _ in started[:4]] == [True, False, False, False]


def test_a_child_prints_its_rates(capsys):
    bench.print_rates("smoke", seconds=0.01)
    made = json.loads(capsys.readouterr().out)
    assert made["sentences_per_second"] > 0 and made["steps_per_second"] > 0
