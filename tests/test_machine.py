"""How threads wait is chosen by what else runs, and never against a user's own setting."""

import os
import subprocess
import sys

import pytest

from dpmkit import machine


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
