"""A Ray that does not start is tried again, then said."""

import logging
import time

import pytest

from dpmkit import cluster
from dpmkit.sections import GridSettings
from dpmkit.settings import UserError

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
        list(cluster.results(print, [()], cluster.LOCAL, GridSettings()))
    assert tried == [("local",), ("local",)]
    logging.getLogger("ray").handlers.clear()
