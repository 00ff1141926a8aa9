"""A visit in slices: what is done stays done, what is stopped goes on, what fails does not stop the rest."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpmkit import __main__ as command
from dpmkit import visit
from dpmkit.settings import Settings, UserError
from dpmkit.visit import Stage


def stage(name, text):
    return Stage(name, (sys.executable, "-c", text))


def test_slices_go_on_where_the_last_one_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(visit, "GRACE", 2.0)
    log = tmp_path / "log"
    step = f"""
import pathlib, time
log = pathlib.Path({str(log)!r})
while (n := len(log.read_text()) if log.exists() else 0) < 12:
    log.write_text("." * (n + 1))
    time.sleep(0.5)
"""
    first = stage("first", f"open({str(tmp_path / 'once')!r}, 'a').write('.')")
    todo = [first, stage("broken", "raise SystemExit(3)"), stage("long", step)]
    codes = []
    while not codes or (codes[-1] == visit.AGAIN and len(codes) < 9):
        start = time.monotonic()
        codes.append(visit.run(todo, tmp_path, 5 / 60))
        assert time.monotonic() - start < 9
    assert codes[-1] == 1 and len(codes) > 1  # the broken one was tried in each slice, and the rest was done
    assert (tmp_path / "once").read_text() == "." and len(log.read_text()) == 12
    assert set(json.loads((tmp_path / "visit.json").read_text())) == {"first", "long"}


def test_a_stage_that_does_not_stop_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(visit, "GRACE", 0.5)
    child = tmp_path / "child"
    deaf = ("import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
            f"open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(60)")
    assert visit.run([stage("deaf", deaf)], tmp_path, 2.5 / 60) == visit.AGAIN
    until = time.monotonic() + 5
    while _lives(int(child.read_text())) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _lives(int(child.read_text())) and not (tmp_path / "visit.json").exists()


def _lives(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().split()[2] != "Z"


def test_the_stages_are_commands_that_the_command_line_knows(tmp_path, monkeypatch):
    settings = Settings.of("smollm2", home=str(tmp_path))
    made = visit.stages(settings, (0, 1), {"emodb": "somewhere"}, ["memory.lr=1e-3"])
    assert [s.name for s in made] == ["demo seed 0", "emodb seed 0", "demo seed 1", "emodb seed 1", "bench memory"]
    asked = []
    for name in ("_reproduce", "_bench"):
        monkeypatch.setattr(command, name, lambda options: asked.append(command._of(options)[0]) or 0)
    for one in made:
        assert command.main(list(one.command[3:])) == 0
    assert [s.corpus for s in asked] == ["demo", "emodb", "demo", "emodb", "demo"]
    assert all(s.backbone.keep_layers == 0 and s.evaluation.limit == 0 and s.memory.lr == 1e-3 for s in asked)


def test_a_wheel_in_pieces_is_what_pip_finds(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    made = tmp_path / "made"
    (made / "toy").mkdir(parents=True)
    (made / "toy" / "__init__.py").touch()
    (made / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools"]\nbuild-backend = '
                                         '"setuptools.build_meta"\n[project]\nname = "toy"\nversion = "1.0"\n')
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(made)]
    subprocess.run([*build, str(made)], check=True, capture_output=True, timeout=120)
    wheel, = made.glob("*.whl")
    whole, carried = wheel.read_bytes(), tmp_path / "carried"
    carried.mkdir()
    for i, suffix in enumerate(("aa", "ab", "ac")):
        (carried / f"{wheel.name}.{suffix}").write_bytes(whole[i * 400:(i + 1) * 400 if i < 2 else None])
    visit.wheels(str(carried), tmp_path / "home")
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path / "got"), "toy==1.0"]
    subprocess.run(fetch, check=True, capture_output=True, timeout=120, env=os.environ)
    assert (tmp_path / "got" / wheel.name).read_bytes() == whole
    with pytest.raises(UserError, match="holds no wheel"):
        visit.wheels(str(tmp_path / "got" / ".."), tmp_path / "home")
    with pytest.raises(UserError, match="not a folder"):
        visit.wheels(str(tmp_path / "nowhere"), tmp_path / "home")
