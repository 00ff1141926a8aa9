"""Work on Ray, and conversations shared out to it: the predictions of one process, whatever fails on the way."""

import json
import logging
import os
import time

import pandas as pd
import pytest

from dpmkit import cluster, codes, corpora, protocols, report, scale
from dpmkit.finetune import Finetuned
from dpmkit.sections import GridSettings
from dpmkit.settings import UserError

pytest.importorskip("ray", reason="RAY ABSENT: pip install -e '.[ray]'")
P = [f"p_{e}" for e in ("neu", "hap", "sad", "ang")]


@pytest.fixture
def tuned(sharp, tmp_path):
    return Finetuned(sharp, "sharp", tmp_path, [], 0)


def test_two_workers_predict_what_one_process_does(settings, toy, tuned, tmp_path):
    settings = settings.replace("memory.lr", 2e-2)
    alone = protocols.predict(settings, *toy, tuned, "dpm")
    shared = settings.replace("evaluation.workers", 2).replace("grid.cpus", 1)
    shared = shared.replace("home", str(tmp_path / "two"))
    together = protocols.predict(shared, *toy, tuned, "dpm")
    assert len(list((tmp_path / "two").rglob("*.parquet"))) == 2  # a part a worker
    pd.testing.assert_frame_equal(together[["conversation", "utterance"]], alone[["conversation", "utterance"]])
    assert abs(together[P].to_numpy() - alone[P].to_numpy()).max() < 1e-5
    still = protocols.predict(settings.replace("memory.lr", 0.0), *toy, tuned, "dpm")
    assert abs(still[P].to_numpy() - alone[P].to_numpy()).max() > 1e-3  # far above the tolerance
    before = cluster.results
    try:
        cluster.results = None  # what is there is not heard again, so Ray is not asked
        pd.testing.assert_frame_equal(protocols.predict(shared, *toy, tuned, "dpm"), together)
    finally:
        cluster.results = before


def test_a_share_that_fails_is_one_clear_error_and_the_others_are_kept(settings, toy, tuned):
    corpus, codes = toy
    shared = settings.replace("evaluation.workers", 2).replace("grid.cpus", 1)
    test = corpus.select(corpus.folds[0].test)
    shortest = min(test, key=lambda c: len(c.utterances))
    del codes.codes[shortest.utterances[0].id]
    with pytest.raises(UserError, match="a worker could not hear its conversations"):
        protocols.predict(shared, corpus, codes, tuned, "dpm")
    assert list((settings.home_path / "runs" / "predictions").rglob("*.parquet"))


def test_throughput_against_workers_is_measured_and_shown(settings, toy, monkeypatch):
    corpus, spoken = toy
    monkeypatch.setattr(corpora, "load", lambda _: corpus)
    monkeypatch.setattr(codes, "make", lambda *_: spoken)
    record = json.loads(scale.workers(settings, repeats=1).read_text(encoding="utf-8"))
    results = record["results"]
    assert [r["workers"] for r in results["rates"]] == [n for n in (1, 2, 4, 8, 16) if n <= os.cpu_count()]
    assert all(r["rate"] > 0 for r in results["rates"]) and results["ray_task_seconds"] > 0
    assert "conversations over workers" in report.page([], settings.home_path)


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
