"""The list of methods is that of the answers, and a table from a record has a row for each of them."""

import pytest
from conftest import make_toy

from dpmkit import methods, metrics, protocols, speakers, tables
from dpmkit.finetune import Finetuned
from dpmkit.speakers import NotFitted


@pytest.fixture(scope="module")
def described():
    return methods.described()


def test_every_row_says_what_it_hears_and_stands_once(described):
    assert described["hears"].str.len().min() > 10 and described["method"].is_unique
    assert set(described["group"]) == {"method", "extension", "filter", "control", "bound"}
    assert described.set_index("method")["hears"]["blstm"].count("FUTURE") == 1
    bounds = described[described["group"] == "bound"].set_index("method")["hears"]
    assert {*bounds.index} == {"last-true", "dpm-told", "speaker-told", "speaker-oracle"}
    assert bounds.str.contains("BOUND").all() and bounds.str.contains("true", case=False).all()


def test_answers_are_the_listed_ones_and_unrun_rows_say_so(described, sharp, settings, tmp_path, monkeypatch):
    settings = settings.replace("speaker.dimensions", 3).replace("recurrent.epochs", 1)
    settings = settings.replace("evaluation.own_answers", False)
    corpus, codes = make_toy(turns=(6, 7, 9), seed=5)
    tuned = Finetuned(sharp, "sharp", tmp_path, [], 0)
    answers, fitted, notes = methods.answers(settings, corpus, codes, tuned, {"dpm": 1e-2, "dpm-told": 0.1})
    assert fitted["power"] in settings.speaker.powers and not notes
    asked = [u for c in corpus.select(corpus.folds[0].test) for u in c.utterances]
    for name, table in answers.items():  # every utterance of every method, labelled or not
        assert table["utterance"].tolist() == [u.id for u in asked], name
        assert table["emotion"].fillna("").tolist() == [u.emotion or "" for u in asked], name
    listed = set(described["method"])
    assert listed - set(answers) == {"own-answers", "own-answers + filter"} and set(answers) <= listed
    told = protocols.predict(settings.replace("memory.lr", 0.1), corpus, codes, tuned, "dpm-told")
    assert answers["dpm-told"].equals(told), "the bound has a rate of its own"
    record = {"corpus": "toy", "settings": settings.flat(), "results": {
        "listed": described.to_dict("records"), "losses": metrics.losses(answers, settings.evaluation),
        "protocols": {"all-lengths": metrics.scored(answers, "all-lengths", corpus.emotions,
                                                         settings)}}}
    assert {r["contrast"] for r in record["results"]["protocols"]["all-lengths"]["contrasts"]} == {
        f"{a} - {b}" for a, b in (*metrics.DECLARED, *metrics.UNTESTED)}
    table = tables.methods(record, "all-lengths").set_index("method")
    assert (table["WA"] == "not run").sum() == 2 and table.loc["own-answers", "WA"] == "not run"
    assert "speakers" in tables.verdict(record) and len(tables.losses(record)) == 6

    def too_few(*_):
        raise NotFitted("there are too few labels")

    monkeypatch.setattr(speakers, "fitted", too_few)
    fewer, fitted, notes = methods.answers(settings, corpus, codes, tuned, {"dpm": 1e-2, "dpm-told": 0.1})
    assert set(answers) - set(fewer) == set(speakers.HEARS) and not fitted
    assert len(notes) == 1 and "speaker-memory" in notes[0] and "there are too few labels" in notes[0]
    record["results"]["protocols"]["all-lengths"] = metrics.scored(fewer, "all-lengths", corpus.emotions,
                                                                        settings)
    table = tables.methods(record, "all-lengths").set_index("method")
    assert (table.loc[list(speakers.HEARS), "WA"] == "not run").all() and "window" in tables.verdict(record)


def test_rates_are_rated_on_validation_by_absolute_wa(sharp, settings, tmp_path):
    settings = settings.replace("ablation.lr", (0.0, 1e-2)).replace("ablation.conversations", 1)
    corpus, codes = make_toy(turns=(6, 7, 9), seed=5)
    tuned = Finetuned(sharp, "sharp", tmp_path, [], 0)
    got = methods.rated(settings, corpus, codes, tuned, "dpm")
    for lr, (method, rate) in {0.0: ("window", 0.5), 1e-2: ("dpm", 1e-2)}.items():
        at = settings.replace("memory.lr", rate)
        heard = protocols.predict(at, corpus, codes, tuned, method, "validation", 1)
        assert got.pop(lr) == metrics.wa(heard, corpus.emotions)
    assert not got
