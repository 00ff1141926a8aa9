"""Training on several processes: the losses of one with the larger batch, and no loss of work to a kill."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_settings, make_toy
from processes import ended, started

from dpmkit import finetune

TUNE = {"finetune.epochs": 4, "finetune.lr": 5e-3, "finetune.patience": 9, "backbone.dropout": 0.0}
SMALL = {"finetune.forward_tokens": 20}
HERE = Path(__file__).parent


def histories(home, runs, kill_at=0):
    """What each process does: trains with these changes, one after the other, and writes the histories; rank 1 is
    killed in its step `kill_at`."""
    if kill_at and os.environ.get("RANK") == "1":
        plain, steps = finetune._Trainer.training_step, []

        def step(self, *given):
            steps.append(1)
            if len(steps) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, *given)

        finetune._Trainer.training_step = step
    got = [finetune.train(make_settings(home).override({**TUNE, **changes}), *make_toy()).history
           for changes in runs]
    if os.environ.get("RANK", "0") == "0":
        (Path(home) / "histories.json").write_text(json.dumps(got))
    return got


def by_torchrun(home, *runs):
    """The histories of two processes that torchrun starts."""
    work = f"import test_distributed\ntest_distributed.histories({str(home)!r}, {list(runs)!r})\n"
    (home / "worker.py").write_text(work)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "worker.py"],
        cwd=home, env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / "histories.json").read_text())


def rank(*given):
    histories(*given)


def by_hand(home, changes, kill_at=0):
    """The history of two processes; None where one was killed, and the other after it, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free.getsockname()[1])}
    logs = [home / f"log{number}" for number in (0, 1)]
    both = [started(log, rank, str(home), [changes], kill_at,
                    environment={**meet, "RANK": str(number), "LOCAL_RANK": str(number)})
            for number, log in enumerate(logs)]
    if kill_at:
        assert ended(both[1]) == -signal.SIGKILL, logs[1].read_text()[-2000:]
        both[0].kill()
        assert ended(both[0]) and not (home / "histories.json").exists(), "it was not killed"
        return None
    assert [ended(process) for process in both] == [0, 0], [log.read_text()[-2000:] for log in logs]
    history, = json.loads((home / "histories.json").read_text())
    return history


def close(one, two, tolerance):
    assert [r["epoch"] for r in one] == [r["epoch"] for r in two]
    for a, b in zip(one, two, strict=True):
        for name in ("train_loss", "eval_loss", "eval_l_a", "eval_l_e", "eval_wa"):
            assert a[name] == pytest.approx(b[name], abs=tolerance), (a["epoch"], name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, with the doubled batch: whole, and with many small forwards to a step."""
    doubled = {"finetune.batch": 4}
    return histories(tmp_path_factory.mktemp("alone"), [doubled, doubled | SMALL])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same of two processes."""
    half = {"finetune.batch": 2}
    return by_torchrun(tmp_path_factory.mktemp("both"), half, half | SMALL)


def test_two_processes_give_the_losses_of_one_with_the_doubled_batch(alone, both):
    close(both[0], alone[0], 1e-4)
    assert alone[0][-1]["train_loss"] < alone[0][0]["train_loss"] - 0.05  # a tolerance far below what is learnt


def test_many_small_forwards_make_the_same_step(alone, both):
    close(alone[1], alone[0], 1e-4)
    close(both[1], alone[0], 1e-4)


def test_one_of_two_processes_killed_and_started_again(both, tmp_path):
    asked = {"finetune.batch": 2, **SMALL}
    by_hand(tmp_path, asked, kill_at=8)  # in the third epoch of three steps each
    assert list(tmp_path.glob("runs/sllm/*/checkpoints/checkpoint-6/trainer_state.json"))
    close(by_hand(tmp_path, asked), both[1], 1e-6)
