"""The list of methods is that of the answers, and a table from a record has a row for each of them."""

import pytest
from conftest import make_toy

from dpmkit import methods, metrics, significance, speakers, summaries
from dpmkit.finetune import Finetuned


@pytest.fixture(scope="module")
def described():
    return methods.described()


def test_every_row_says_what_it_hears_and_stands_once(described):
    assert described["hears"].str.len().min() > 10 and described["method"].is_unique
    assert set(described["group"]) == {"method", "extension", "filter", "control", "bound"}
    assert described.set_index("method")["hears"]["blstm"].count("FUTURE") == 1


def test_answers_are_the_listed_ones_and_unrun_rows_say_so(described, sharp, settings, tmp_path):
    settings = settings.replace("speaker.dimensions", 3).replace("recurrent.epochs", 1)
    settings = settings.replace("evaluation.own_answers", False)
    corpus, codes = make_toy(turns=(6, 7, 9), seed=5)
    tuned = Finetuned(sharp, "sharp", tmp_path, [], 0)
    model, power, _ = speakers.fitted(settings, corpus, codes, tuned)
    tables = methods.answers(settings, corpus, codes, tuned, 1e-2, model, power)
    listed = set(described["method"])
    assert listed - set(tables) == {"own-answers", "own-answers + filter"} and set(tables) <= listed
    scored = metrics.compare({n: metrics.targets(t, "all-lengths") for n, t in tables.items()}, corpus.emotions,
                             "window", 200)
    record = {"corpus": "toy", "results": {
        "listed": described.to_dict("records"),
        "protocols": {"all-lengths": {"methods": significance.adjusted(scored, "window")}}}}
    table = summaries.methods_table(record, "all-lengths").set_index("method")
    assert (table["WA"] == "not run").sum() == 2 and table.loc["own-answers", "WA"] == "not run"
    assert "speakers" in summaries.verdict(record)
