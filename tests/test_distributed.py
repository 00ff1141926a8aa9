"""Training on several processes: the losses of one with the larger batch, and no loss of work to a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_settings, make_toy

from dpmkit import finetune

# What each process runs: a small corpus that any process can make, the settings given, and the history.
WORKER = """
import json, os, signal, sys
from conftest import make_settings, make_toy
from dpmkit import finetune

home, changes, kill_at = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
settings = make_settings(home)
for name, value in changes.items():
    settings = settings.replace(name, value)
if kill_at and os.environ.get("RANK") == "1":
    plain, steps = finetune._Trainer.training_step, []

    def step(self, *given):
        steps.append(1)
        if len(steps) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *given)

    finetune._Trainer.training_step = step
tuned = finetune.train(settings, *make_toy())
if os.environ.get("RANK", "0") == "0":
    print("HISTORY", json.dumps(tuned.history))
"""
TUNE = {"finetune.epochs": 4, "finetune.lr": 5e-3, "finetune.patience": 9, "backbone.dropout": 0.0}


def trained(home, processes, batch, kill_at=0, **more):
    """The history, or None where the run failed."""
    worker = Path(home) / "worker.py"
    worker.parent.mkdir(parents=True, exist_ok=True)
    worker.write_text(WORKER)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}", "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    changes = {**TUNE, "finetune.batch": batch, **more}
    done = subprocess.run([*start, str(worker), str(home), json.dumps(changes), str(kill_at)], env=environment,
                          capture_output=True, text=True, timeout=300, check=False)
    if kill_at:
        assert done.returncode, "it was not killed"
        return None
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("HISTORY"))[8:])


def close(one, two, tolerance):
    assert [r["epoch"] for r in one] == [r["epoch"] for r in two]
    for a, b in zip(one, two, strict=True):
        for name in ("train_loss", "eval_loss", "eval_l_a", "eval_l_e", "eval_wa"):
            assert a[name] == pytest.approx(b[name], abs=tolerance), (a["epoch"], name)


def trained_here(home, batch, **more):
    """The history of this process alone."""
    settings = make_settings(home).override({**TUNE, "finetune.batch": batch, **more})
    return finetune.train(settings, *make_toy()).history


SMALL = {"finetune.forward_tokens": 20}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained_here(tmp_path_factory.mktemp("alone"), 4)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two processes, each with many small forwards to a step."""
    return trained(tmp_path_factory.mktemp("both"), 2, 2, **SMALL)


def test_two_processes_give_the_losses_of_one_with_the_doubled_batch(alone, tmp_path):
    close(trained(tmp_path, 2, 2), alone, 1e-4)
    assert alone[-1]["train_loss"] < alone[0]["train_loss"] - 0.05  # a tolerance far below what is learnt


def test_many_small_forwards_make_the_same_step(alone, both, tmp_path):
    close(trained_here(tmp_path, 4, **SMALL), alone, 1e-4)
    close(both, alone, 1e-4)


def test_one_of_two_processes_killed_and_started_again(both, tmp_path):
    trained(tmp_path, 2, 2, kill_at=8, **SMALL)  # in the third epoch of three steps each
    close(trained(tmp_path, 2, 2, **SMALL), both, 1e-6)
