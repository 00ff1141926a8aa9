"""A Ray that does not start is tried again, then said."""

import logging
import time

import pytest

from dpmkit import reproduce
from dpmkit.settings import GridSettings, UserError

pytest.importorskip("ray", reason="RAY ABSENT: pip install -e '.[ray]'")

def test_a_ray_that_takes_too_long_to_start_is_tried_twice(monkeypatch):
    import ray

    ray.shutdown()  # of an earlier test
    tried = []

    def init(*given, **named):
        tried.append(given)
        raise Exception("The current node timed out during startup")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"ray stop --force.*timed out during startup"):
        list(reproduce.on_ray(print, [()], reproduce.LOCAL, GridSettings()))
    assert tried == [("local",), ("local",)]
    logging.getLogger("ray").handlers.clear()


def test_a_task_larger_than_every_machine_is_one_line(monkeypatch):
    import ray

    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}, {"Alive": True, "Resources": {"CPU": 16.0}},
             {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    reproduce._fits(ray, GridSettings(cpus=4, gpus=1.0))
    reproduce._fits(ray, GridSettings(cpus=16))
    for cpus, gpus in ((17, 0.0), (5, 1.0), (1, 2.0)):
        with pytest.raises(UserError, match=rf"the {cpus} processors and {gpus:g} GPUs.*lower grid.cpus"):
            reproduce._fits(ray, GridSettings(cpus=cpus, gpus=gpus))


def test_a_folder_too_long_for_sockets_is_named(monkeypatch, tmp_path):
    import ray

    ray.shutdown()

    def init(*given, **named):
        raise OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="set TMPDIR=/tmp"):
        list(reproduce.on_ray(print, [()], reproduce.LOCAL, GridSettings()))
