"""The list of methods is that of the answers; what is fitted knows nothing of the test conversations, and what
validation is for comes from validation."""

import dataclasses

import numpy as np
import pytest
from conftest import changed, make_settings, make_sharp, make_toy
from safetensors.numpy import load_file

from dpmkit import adaptation, baselines, findings, finetune, methods, metrics, protocols, speakers, tables
from dpmkit.corpora.dynamics import EMOTIONS
from dpmkit.finetune import Finetuned
from dpmkit.speakers import NotFitted

P = [f"p_{e}" for e in EMOTIONS]


@pytest.fixture
def described(sharp, settings):
    return methods.described(settings, 4, sharp)


def test_every_row_says_what_it_hears_and_stands_once(described):
    assert described["hears"].str.len().min() > 10 and described["method"].is_unique
    assert set(described["group"]) == {"method", "extension", "filter", "control", "bound"}
    assert described.set_index("method")["hears"]["blstm"].count("FUTURE") == 1
    bounds = described[described["group"] == "bound"].set_index("method")["hears"]
    assert {*bounds.index} == {"last-true", "dpm-told", "speaker-told", "speaker-oracle"}
    assert bounds.str.contains("BOUND").all() and bounds.str.contains("true", case=False).all()


def test_what_a_row_keeps_is_counted(described, settings, sharp):
    keeps = described.set_index("method")["keeps"].str.replace(",", "")
    lora = sum(settings.memory.rank * sum(layer.weight.shape) for layer in sharp.linear_layers().values())
    assert keeps["dpm"] == keeps["dpm-swapped"] == str(3 * lora + settings.memory.prefix)  # AdamW's moments, too
    assert keeps["dpm-tuned + filter"] == str(3 * lora + settings.memory.prefix + 4)
    assert keeps["window"] == str(settings.memory.prefix) and keeps["at-once"] == str(sharp.window)
    assert keeps["speaker-head + filter"] == keeps["current + filter"] == "4" and keeps["speaker-head"] == "0"
    assert keeps["speaker-memory"] == keeps["speaker-memory-swapped"] == str(8 * (4 + 1 + 4) + 4 * 4)
    shape = sharp.causal_lm.config
    assert keeps["kv-window"] == str(sharp.window // 2 * 2 * shape.num_hidden_layers * shape.num_key_value_heads
                                     * shape.head_dim)
    top = methods.described(settings.replace("memory.layers", "top-1"), 4, sharp).set_index("method")["keeps"]
    blocks = len(sharp.causal_lm.model.layers)
    assert int(top["dpm"].replace(",", "")) - settings.memory.prefix == 3 * lora // blocks
    assert keeps["emo-tta + filter"] == str(4 * 5 + 4) and keeps["blstm"] == "all of it"


def test_answers_are_the_listed_ones_and_unrun_rows_say_so(described, sharp, settings, tmp_path, monkeypatch):
    settings = settings.replace("speaker.dimensions", 3).replace("recurrent.epochs", 1)
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
    bound = protocols.predict(settings.replace("memory.lr", 0.1), corpus, codes, tuned, "dpm-told")
    assert answers["dpm-told"].equals(bound), "the bound has a rate of its own"
    record = {"corpus": "toy", "settings": settings.flat(), "results": {
        "listed": described.to_dict("records"), "losses": metrics.losses(answers, settings.evaluation),
        "protocols": {"all-lengths": metrics.scored(answers, "all-lengths", corpus.emotions,
                                                         settings)}}}
    assert {r["contrast"] for r in record["results"]["protocols"]["all-lengths"]["contrasts"]} == {
        f"{a} - {b}" for a, b in (*metrics.DECLARED, *metrics.UNTESTED)}
    table = tables.methods(record, "all-lengths").set_index("method")
    assert (table["WA"] == "not run").sum() == 2 and table.loc["own-answers", "WA"] == "not run"
    assert "`speaker-memory`" in str(findings.answer(record)) and len(tables.losses(record)) == 6

    def too_few(*_):
        raise NotFitted("there are too few labels")

    monkeypatch.setattr(speakers, "fitted", too_few)
    fewer, fitted, notes = methods.answers(settings, corpus, codes, tuned, {"dpm": 1e-2, "dpm-told": 0.1})
    assert set(answers) - set(fewer) == {*speakers.HEARS, *adaptation.HEARS} and not fitted
    assert len(notes) == 1 and "speaker-memory" in notes[0] and "there are too few labels" in notes[0]
    record["results"]["protocols"]["all-lengths"] = metrics.scored(fewer, "all-lengths", corpus.emotions,
                                                                        settings)
    table = tables.methods(record, "all-lengths").set_index("method")
    assert (table.loc[[*speakers.HEARS, *adaptation.HEARS], "WA"] == "not run").all()
    assert "`dpm - window`" in (said := str(findings.answer(record))) and "`speaker-memory`" not in said


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


# -- splits ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function (name, split, what changes there) -> (answers, what was fitted), at a home of its own; from here
    on in this file there are fewer methods."""
    with pytest.MonkeyPatch.context() as patch:
        yield _run(make_sharp(), tmp_path_factory.mktemp("run"), patch)


@pytest.fixture(scope="module")
def as_it_is(run):
    return run("as it is")


def _run(sharp, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "FILTERED", ("classifier", "lstm", "window", "dpm-tuned"))
    monkeypatch.setattr(methods, "TUNED", {"dpm": "dpm-tuned"})
    plain, temperatures = baselines.fit_temperature, []

    def fit_temperature(table, *more):
        assert {*table["conversation"]} == {*corpus.folds[0].validation}  # not `ablation.conversations` of them
        temperatures.append(plain(table, *more))
        return temperatures[-1]

    monkeypatch.setattr(baselines, "fit_temperature", fit_temperature)
    fit, seen = finetune.fit, []
    monkeypatch.setattr(finetune, "fit", lambda model, *data_and_more: seen.append(data_and_more[:2]) or fit(
        model, *data_and_more))
    rng = np.random.default_rng(0)
    corpus, codes = make_toy(turns=(6, 7, 9), seed=5)
    codes = dataclasses.replace(codes, features={name: rng.normal(size=76) for name in codes.codes})

    def answers(name, split="test", labels=False, sounds=False):
        ids = getattr(corpus.folds[0], split)
        said = {u.id for c in corpus.select(ids) for u in c.utterances}
        made, spoken = corpus, codes
        if labels:
            made = changed(corpus, lambda turn, u: {
                "emotion": u.emotion and EMOTIONS[EMOTIONS.index(u.emotion) - 1]}, ids)
        if sounds:
            spoken = dataclasses.replace(
                codes, codes={i: 15 - c if i in said else c for i, c in codes.codes.items()},
                features={i: 3 - 2 * x if i in said else x for i, x in codes.features.items()})
        settings = make_settings(tmp_path / split / name).override(
            {"speaker.dimensions": 3, "recurrent.epochs": 3, "ablation.conversations": 1})
        temperatures.clear()
        seen.clear()
        tuned = Finetuned(sharp, "sharp", tmp_path, [], 0)
        tables, fitted, _ = methods.answers(settings, made, spoken, tuned, {"dpm": 1e-2, "dpm-told": 1e-2})
        model = speakers.fitted(settings, made, spoken, tuned)[0]
        weights = {f"{stage} {file.parent.name} {part}": w for stage in ("network",)
                   for file in (tmp_path / split / name / "runs" / stage).glob("*/model.safetensors")
                   for part, w in load_file(file).items()}
        # What the networks train on and what chooses their epoch, whether or not the choice falls otherwise.
        data = {f"data {i} {j}": np.concatenate([np.ravel(x) for x in _leaves(list(part))])
                for i, parts in enumerate(seen) for j, part in enumerate(parts)}
        assert len(weights) > 10 and len(temperatures) == 4 and len(data) == 6
        return tables, weights | data | vars(model) | {"power": fitted["power"], "temperatures": list(temperatures),
                                                "tried": fitted["tried"]["nll"].to_numpy(),
                                                "strengths": [row["nll"] for row in fitted["strengths"]]}

    return answers


def _leaves(value):
    return [x for v in value for x in _leaves(v)] if isinstance(value, (list, tuple)) else [value]


def moved(first, second):
    return {name for name in first if not np.array_equal(first[name], second[name])}


def test_nothing_is_fitted_on_the_test_conversations(run, as_it_is):
    tables, fitted = as_it_is
    other, refitted = run("other labels", labels=True)
    assert not moved(fitted, refitted)
    bounds = {m for m, t in tables.items() if moved(t[P], other[m][P])}
    assert bounds == {"last-true", "dpm-told", "speaker-told", "speaker-oracle"}  # which are made of true labels
    other, refitted = run("other sounds", sounds=True)
    assert not moved(fitted, refitted)
    still = {m for m, t in tables.items() if not moved(t[P], other[m][P])}
    assert still == {"majority", "last-true"}  # which hear nothing


def test_what_validation_is_for_comes_from_validation(run, as_it_is):
    _, fitted = as_it_is
    _, labels = run("other labels", "validation", labels=True)
    _, sounds = run("other sounds", "validation", sounds=True)
    chosen = {"within", "tried", "strengths", "temperatures", "data 0 1", "data 1 1", "data 2 1"}
    assert chosen <= moved(fitted, labels) and chosen <= moved(fitted, sounds)
    from_training = {"centre", "scale", "basis", "means", "between", "transition", "prior", "data 0 0",
                     "data 1 0", "data 2 0"}
    assert not from_training & (moved(fitted, labels) | moved(fitted, sounds))
