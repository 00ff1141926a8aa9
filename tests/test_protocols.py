"""What a prediction may hear: nothing later, no true label, no neighbour in the batch; and Algorithm 1 by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import answered, changed, make_toy, next_code_loss, written

from dpmkit import metrics, protocols
from dpmkit.finetune import Finetuned
from dpmkit.memory import DynamicParameterMemory
from dpmkit.protocols import METHODS, predict
from dpmkit.settings import UserError

EMOTIONS = ("neu", "hap", "sad", "ang")
P = [f"p_{e}" for e in EMOTIONS]
HISTORIES = ("none", "predicted")
PAIRS = [*((m, "none") for m in METHODS), *((m, "predicted") for m in ("window", "dpm", "dpm-swapped", "dpm-told"))]
BOTH = pytest.mark.parametrize(("method", "history"), PAIRS)


@pytest.fixture
def toy():
    """Conversations of up to 14 turns, longer than the window of 64 tokens."""
    return make_toy(turns=(1, 5, 12, 14), seed=2)


@pytest.fixture
def tuned(sharp, tmp_path):
    return Finetuned(sharp, "sharp", tmp_path, [], 0)


@pytest.fixture
def settings(settings):
    """A memory that learns fast enough to be seen."""
    return settings.replace("memory.lr", 2e-2)


def as_if_retrained(tuned, name):
    """The same weights under another key: codes and labels are part of a key, and predictions are kept by it."""
    return dataclasses.replace(tuned, key=name)


def relabelled(corpus, label):
    """The corpus with every utterance's emotion replaced by label(utterance)."""
    return changed(corpus, lambda turn, u: {"emotion": label(u)})


def close(one, two):
    np.testing.assert_allclose(one[P].to_numpy(), two[P].to_numpy(), atol=1e-5, rtol=0)


def differ(one, two, by=1e-3):
    return np.abs(one[P].to_numpy() - two[P].to_numpy()).max() > by


def donor_of(conversations):
    """Of each conversation's id, for the control with another's memory."""
    by_id = {c.id: c for c in conversations}
    chosen = protocols.donors(protocols.rows(conversations), "conversation")
    return {name: by_id[other] for name, other in chosen.items()}


def updates(memory):
    return int(memory.lora.optimizer.state[memory.lora.memories[0]]["step"])


@BOTH
def test_later_utterances_change_no_earlier_prediction(method, history, settings, toy, tuned):
    settings = settings.replace("memory.history_emotions", history)
    corpus, codes = toy
    table = predict(settings, corpus, codes, tuned, method)
    now = 3
    later = {u.id for c in corpus.conversations for u in c.utterances[now:]}
    # other words
    rng = np.random.default_rng(0)
    said = {i: rng.integers(0, 16, rng.integers(1, 12)) if i in later else c for i, c in codes.codes.items()}
    codes_then = dataclasses.replace(codes, codes=said)
    other = predict(settings, corpus, codes_then, as_if_retrained(tuned, "other"), method)
    close(table[table["turn"] < now], other[other["turn"] < now])
    assert differ(table[table["turn"] >= now], other[other["turn"] >= now])
    if METHODS[method].donor in ("stranger", "speaker"):
        return  # how long a conversation is decides which one is its control's donor
    # not said at all
    cut = dataclasses.replace(corpus, conversations=tuple(
        dataclasses.replace(c, utterances=c.utterances[:now]) for c in corpus.conversations))
    close(table[table["turn"] < now], predict(settings, cut, codes, as_if_retrained(tuned, "cut"), method))


@pytest.mark.parametrize("method", ["window", "at-once", "dpm"])
def test_earlier_utterances_do_change_later_predictions(method, settings, toy, tuned):
    # ... those outside the label set, too: they are heard
    corpus, codes = toy
    outside = {u.id for c in corpus.conversations for u in c.utterances if u.emotion is None}
    said = {i: 15 - c if i in outside else c for i, c in codes.codes.items()}
    one = predict(settings, corpus, codes, tuned, method)
    two = predict(settings, corpus, dataclasses.replace(codes, codes=said), as_if_retrained(tuned, "other"), method)
    assert differ(one[one["emotion"].notna()], two[two["emotion"].notna()])


@pytest.mark.parametrize(("method", "history"), [pair for pair in PAIRS if not METHODS[pair[0]].bound])
def test_no_true_label_changes_a_prediction(method, history, settings, toy, tuned):
    settings = settings.replace("memory.history_emotions", history)
    corpus, codes = toy
    table = predict(settings, corpus, codes, tuned, method)
    turned = relabelled(corpus, lambda u: "neu" if u.emotion is None else (*EMOTIONS, None)[1 + EMOTIONS.index(
        u.emotion)])
    for i, other in enumerate((turned, relabelled(corpus, lambda u: None))):
        got = predict(settings, other, codes, as_if_retrained(tuned, f"labels {i}"), method)
        assert (got["emotion"].fillna("") != table["emotion"].fillna("")).any()
        pd.testing.assert_frame_equal(got.drop(columns="emotion"), table.drop(columns="emotion"), check_exact=True)


@pytest.mark.parametrize("change", [{}, {"read": "before"}, {"prefix_states": "reuse"},
                                    {"stepping": "stride-5"}, {"layers": "top-1"}, {"steps": 2},
                                    {"history_emotions": "predicted"}])
def test_a_label_of_the_bound_reaches_later_predictions_of_its_conversation_alone(change, settings, toy, tuned):
    (corpus, codes), now = toy, 4
    for name, value in change.items():
        settings = settings.replace(f"memory.{name}", value)
    codes = {**codes.codes, "s1c3u4": np.arange(60) % 16}  # in pieces

    def labelled(label):
        other = relabelled(corpus, lambda u: label if u.id == f"s1c3u{now}" else u.emotion)
        test = other.select(corpus.folds[0].test)
        listener = protocols.Listener(settings.replace("evaluation.streams", 3), tuned.sllm, codes, corpus.emotions)
        tables = protocols.listen(listener, test, "dpm-told")
        return pd.concat(list(tables)).sort_values(["conversation", "turn"], ignore_index=True)

    one, two, none = labelled("neu"), labelled("ang"), labelled(None)
    columns = [*P, "loss", "own_loss", "norm", "skipped", "pieces"]
    late = (one["conversation"] == "s1c3") & (one["turn"] > now)
    assert 0 < late.sum() < len(one)
    for other in (two, none):
        pd.testing.assert_frame_equal(one.loc[~late, columns], other.loc[~late, columns], check_exact=True)
        assert (one.loc[late, P] != other.loc[late, P]).any(axis=1).all()


def test_the_step_of_a_label_by_hand(settings, toy, tuned):
    """After each answer AdamW goes on with one step on -log p of the true emotion among the emotions; a turn
    without a label takes none."""
    (corpus, codes), sllm, n_r = toy, tuned.sllm, settings.memory.prefix
    table = predict(settings, corpus, codes, tuned, "dpm-told")
    assert differ(table, predict(settings, corpus, codes, tuned, "dpm"))
    conversation, = corpus.select(("s1c3",))
    memory, past = DynamicParameterMemory(sllm, settings.memory), torch.empty(0, dtype=torch.long)
    for (_, row), u in zip(table[table["conversation"] == "s1c3"].iterrows(), conversation.utterances, strict=True):
        now = sllm.sentence(codes.codes[u.id])
        if row["turn"]:
            written(memory, [past[-n_r:]], [now])
        context = torch.cat([past[-n_r:], now])
        p = answered(memory, [context])[0].numpy()
        np.testing.assert_allclose(row[P].to_numpy(dtype=float), p, atol=1e-4)
        if u.emotion:
            with memory.lora.active([0]) as leaf:
                surprise = -sllm.emotion_logits([context]).log_softmax(-1)[:, EMOTIONS.index(u.emotion)]
            memory.lora.memories[0].grad = torch.autograd.grad(surprise.sum(), leaf)[0][0]
            memory.lora.optimizer.step()
            memory.lora.optimizer.zero_grad()
        past = torch.cat([past, now])
    labels = sum(u.emotion is not None for u in conversation.utterances)
    assert updates(memory) == 13 + labels and 0 < labels < 14


def test_the_loss_of_the_own_sentence_under_the_own_another_and_no_memory(settings, toy, tuned):
    """Before the sentence is written; another's memory has been written as often as the own one by then."""
    (corpus, codes), sllm, n_r = toy, tuned.sllm, settings.memory.prefix
    own, swapped, still = (predict(settings, corpus, codes, tuned, m) for m in ("dpm", "dpm-swapped", "dpm-still"))
    pd.testing.assert_series_equal(own["own_loss"], own["loss"], check_names=False)
    test = corpus.select(corpus.folds[0].test)
    donors, empty = donor_of(test), torch.empty(0, dtype=torch.long)
    for c in test:
        said, others = ([sllm.sentence(codes.codes[u.id]) for u in x.utterances] for x in (c, donors[c.id]))
        memory = DynamicParameterMemory(sllm, settings.memory)
        got, frozen = (t.loc[t["conversation"] == c.id, "own_loss"].to_numpy() for t in (swapped, still))
        assert np.isnan([got[0], frozen[0]]).all()
        for turn in range(1, len(said)):
            before = torch.cat([empty, *said[:turn]])[-n_r:]
            with torch.no_grad(), memory.lora.active([0]):
                assert got[turn] == pytest.approx(float(next_code_loss(sllm, [before], [said[turn]])), abs=1e-4)
            with torch.no_grad():
                assert frozen[turn] == pytest.approx(float(next_code_loss(sllm, [before], [said[turn]])), abs=1e-5)
            if turn < len(others):
                written(memory, [torch.cat([empty, *others[:turn]])[-n_r:]], [others[turn]])
    assert np.nanmax(np.abs(swapped["own_loss"] - still["own_loss"])) > 1e-2


@BOTH
def test_the_order_of_conversations_changes_none(method, history, settings, toy, tuned):
    # Three sessions, so that some are of one length; bit for bit, as the same ones share a batch.
    settings = settings.replace("memory.history_emotions", history)
    corpus, codes = toy
    fold = corpus.folds[0]
    table = predict(settings, corpus, codes, tuned, method, "train")
    assert table["conversation"].unique().tolist() == list(fold.train)
    turned = dataclasses.replace(corpus, conversations=corpus.conversations[::-1],
                                 folds=(dataclasses.replace(fold, train=fold.train[::-1]),))
    other = predict(settings, turned, codes, tuned, method, "train")
    assert other["conversation"].unique().tolist() == list(fold.train[::-1])
    key = ["conversation", "turn"]
    pd.testing.assert_frame_equal(table.sort_values(key, ignore_index=True),
                                  other.sort_values(key, ignore_index=True), check_exact=True)


def test_equal_inputs_are_predicted_once(settings, toy, tuned, monkeypatch):
    """A method is known by what it hears, not by its name; what is as long as the window is all of it."""
    settings = settings.replace("memory.lr", 1e-3)
    known = {m: predict(settings, *toy, tuned, m) for m in ("current", "at-once", "dpm", "dpm-still")}
    monkeypatch.setattr(protocols, "listen", None)
    for method, name, value, same in (("window", "prefix", 0, "current"), ("window", "prefix", 64, "at-once"),
                                      ("window", "prefix", 99, "at-once"), ("at-once", "prefix", 8, "at-once"),
                                      ("current", "lr", 0.1, "current"), ("dpm", "lr", 0.0, "dpm-still"),
                                      ("dpm", "lr", 1e-3, "dpm")):
        got = predict(settings.replace(f"memory.{name}", value), *toy, tuned, method)
        pd.testing.assert_frame_equal(got, known[same], check_exact=True)
    for method, name, value in (("window", "prefix", 63), ("window", "precision", "bfloat16"),
                                ("window", "history_emotions", "predicted"), ("dpm-swapped", "lr", 1e-3),
                                ("dpm-told", "lr", 1e-3), ("dpm", "prefix", 8)):
        with pytest.raises(TypeError):
            predict(settings.replace(f"memory.{name}", value), *toy, tuned, method)


def test_a_memory_is_kept_until_more_streams_are_needed(settings, toy, tuned):
    """On a GPU what it has recorded is kept with it."""
    listener = protocols.Listener(settings.replace("evaluation.streams", 3), tuned.sllm, {}, EMOTIONS)
    one = listener.memory(settings.memory, 1)
    assert one.streams == 1 and listener.memory(settings.memory, 1) is one
    three = listener.memory(settings.memory, 9)
    assert three.streams == 3 and listener.memory(settings.memory, 2) is three


@BOTH
def test_streams_side_by_side_or_one_by_one(method, history, settings, toy, tuned):
    # AdamW divides by a gradient's own size, so that rounding of a tiny one comes out as lr times anything: at
    # the learning rate of 2e-3 it stays below 1e-5 and the memory's effect, at 1e-4 and more, stands clear of it.
    settings = settings.replace("memory.history_emotions", history).replace("memory.lr", 2e-3)
    tables = [predict(settings.replace("evaluation.streams", n), *toy, tuned, method, "train") for n in (1, 4, 12)]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], atol=1e-5, rtol=1e-5)
    if METHODS[method].writes and method != "dpm-still":
        assert differ(tables[0], predict(settings, *toy, tuned, "window", "train"), by=1e-4)


def test_a_memory_that_learns_nothing_is_the_window(settings, toy, tuned):
    window = predict(settings, *toy, tuned, "window")
    still = predict(settings.replace("memory.lr", 0.0), *toy, tuned, "dpm")
    close(still, window)
    assert (still["norm"] == 0).all() and still["loss"].notna().sum() == (still["turn"] > 0).sum()
    learns = predict(settings, *toy, tuned, "dpm")
    assert differ(learns, window)
    assert (learns.loc[learns["turn"] > 0, "norm"] > 0).all()


@pytest.mark.parametrize(("method", "more"), [
    ("current", {}), ("window", {}), ("at-once", {}), ("kv-window", {"stepping": "stride-64", "prefix": 8}),
    ("kv-window", {"rule": "emotion", "target": "filtered", "reset_every": 2, "history_emotions": "predicted"})])
def test_a_baseline_is_moved_by_no_setting_of_what_a_memory_writes(method, more, settings, toy, tuned):
    other = settings
    for name, value in {"lr": 5e-2, "steps": 3, "decay": 0.1, "rank": 2, "layers": "top-1", **more}.items():
        other = other.replace(f"memory.{name}", value)
    one, two = (predict(s, *toy, as_if_retrained(tuned, key), method)
                for s, key in ((settings, "plain"), (other, "moved")))
    close(one, two)
    assert not METHODS[method].writes or (one["norm"] == 0).all()  # a cache, and nothing else


def test_the_first_sentence_gives_no_update(settings, toy, tuned):
    for method in ("dpm", "dpm-swapped"):
        table = predict(settings, *toy, tuned, method)
        first = table[table["turn"] == 0]
        assert first["loss"].isna().all() and (first["norm"] == 0).all() and (first["pieces"] == 0).all()
    table = predict(settings, *toy, tuned, "dpm")
    rest = table[table["turn"] > 0]
    assert rest["loss"].notna().all() and (rest["pieces"] == 1).all()
    close(first, predict(settings, *toy, tuned, "window").query("turn == 0"))
    for method in ("window", "current", "at-once"):
        table = predict(settings, *toy, tuned, method)
        assert table["loss"].isna().all() and (table[["norm", "pieces"]] == 0).all(axis=None)


@pytest.mark.parametrize("history", HISTORIES)
def test_algorithm_1_by_hand(history, settings, toy, tuned):
    # One conversation, one stream: hear every sentence but the first, the target's own included, then read.
    settings = settings.replace("memory.history_emotions", history)
    (corpus, codes), sllm, n_r = toy, tuned.sllm, settings.memory.prefix
    table = predict(settings, corpus, codes, tuned, "dpm")
    conversation, = corpus.select(("s1c3",))
    memory, past = DynamicParameterMemory(sllm, settings.memory), torch.empty(0, dtype=torch.long)
    for (_, row), u in zip(table[table["conversation"] == "s1c3"].iterrows(), conversation.utterances, strict=True):
        now = sllm.sentence(codes.codes[u.id])
        if row["turn"]:
            loss, = written(memory, [past[-n_r:]], [now])
            assert row["loss"] == pytest.approx(float(loss), abs=1e-4)
        p = answered(memory, [torch.cat([past[-n_r:], now])])[0].numpy()
        np.testing.assert_allclose(row[P].to_numpy(dtype=float), p, atol=1e-4)
        assert row["norm"] == pytest.approx(float(memory.lora.norm([0])), abs=1e-4)
        past = torch.cat([past, now if history == "none" else sllm.sentence(codes.codes[u.id], int(p.argmax()))])
    assert updates(memory) == 13  # 14 sentences


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("method", ["window", "current", "at-once"])
def test_what_a_method_without_memory_hears_by_hand(method, history, settings, toy, tuned):
    settings = settings.replace("memory.history_emotions", history)
    (corpus, codes), sllm = toy, tuned.sllm
    table = predict(settings, corpus, codes, tuned, method)
    conversation, = corpus.select(("s1c3",))
    past, cut = torch.empty(0, dtype=torch.long), 0
    for (_, row), u in zip(table[table["conversation"] == "s1c3"].iterrows(), conversation.utterances, strict=True):
        now = sllm.sentence(codes.codes[u.id])
        tokens = torch.cat([past, now])
        heard = {"window": tokens[-settings.memory.prefix - len(now):], "current": now, "at-once": tokens[-64:]}
        cut += len(tokens) > 64
        with torch.no_grad():
            p = sllm.emotion_logits([heard[method]])[0].softmax(-1).numpy()
        np.testing.assert_allclose(row[P].to_numpy(dtype=float), p, atol=1e-5)
        past = torch.cat([past, now if history == "none" else sllm.sentence(codes.codes[u.id], int(p.argmax()))])
    assert cut > 2  # the window was too small for some


@pytest.mark.parametrize(("prefix", "pieces"), [(16, [48, 48, 5]), (0, [64, 37]), (60, [4] * 25 + [1])])
def test_a_long_sentence_is_written_in_pieces_and_counted(prefix, pieces, settings, toy, tuned):
    settings = settings.replace("memory.prefix", prefix).replace("memory.lr", 0.0)
    corpus, codes = toy
    name, sllm = "s1c2u4", tuned.sllm
    codes = dataclasses.replace(codes, codes={**codes.codes, name: np.arange(100) % 16})
    table = predict(settings, corpus, codes, tuned, "dpm").set_index("utterance")
    assert table.loc[name, "pieces"] == len(pieces)
    written = table[table["turn"] > 0]
    assert written["pieces"].tolist() == [-(-(len(codes.codes[i]) + 1) // (64 - prefix)) for i in written.index]
    said = [sllm.sentence(codes.codes[f"s1c2u{turn}"]) for turn in range(5)]
    past, now, losses = torch.cat(said[:4]), said[4], []
    for length in pieces:
        with torch.no_grad():
            losses.append(float(next_code_loss(sllm, [past[max(0, len(past) - prefix):]], [now[:length]])))
        past, now = torch.cat([past, now[:length]]), now[length:]
    assert len(now) == 0
    assert table.loc[name, "loss"] == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize(("prefix", "length", "pieces"), [
    (16, 47, 1),  # 64 - 16 = 48 tokens: 47 codes and <audio_end>
    (16, 48, 2),
    (0, 64, 2)])  # the last piece is <audio_end> alone, after nothing: nothing to predict, and no crash
def test_the_longest_sentence_that_goes_in_one_piece(prefix, length, pieces, settings, toy, tuned):
    corpus, codes = toy
    codes = dataclasses.replace(codes, codes={**codes.codes, "s1c2u4": np.arange(length) % 16})
    table = predict(settings.replace("memory.prefix", prefix), corpus, codes, tuned, "dpm").set_index("utterance")
    assert table.loc["s1c2u4", "pieces"] == pieces and np.isfinite(table[P]).all(axis=None)


# -- the swapped control -----------------------------------------------------------------------------------


def test_the_donor_is_a_conversation_of_strangers_and_no_shorter_where_there_are_any(toy):
    corpus, _ = toy
    of_fold = corpus.select(corpus.folds[0].train)  # three sessions
    speakers = {c.id: {u.speaker for u in c.utterances} for c in of_fold}
    donors = donor_of(of_fold)
    assert set(donors) == set(speakers)
    assert all(not speakers[i] & speakers[d.id] for i, d in donors.items())
    turned = donor_of(of_fold[::-1])
    assert {i: d.id for i, d in donors.items()} == {i: d.id for i, d in turned.items()}
    # as many sentences to write as the target has: there are conversations of its length in every session
    assert all(len(d.utterances) >= len(c.utterances) for c in of_fold for d in [donors[c.id]])
    one_session = corpus.select(corpus.folds[0].test)  # all of the same two speakers
    assert all(d.id != i for i, d in donor_of(one_session).items())
    with pytest.raises(UserError, match="two conversations"):
        donor_of(one_session[:1])


def test_the_swapped_memory_hears_the_donor_and_reads_the_target(settings, toy, tuned):
    corpus, codes = toy
    table = predict(settings, corpus, codes, tuned, "dpm-swapped")
    assert differ(table, predict(settings, corpus, codes, tuned, "dpm"))
    test = corpus.select(corpus.folds[0].test)
    heard, donor = test[3], donor_of(test)[test[3].id]
    assert len(donor.utterances) < len(heard.utterances)  # the memory stays as it is when its donor has ended
    sllm, n_r = tuned.sllm, settings.memory.prefix
    memory = DynamicParameterMemory(sllm, settings.memory)
    own, others = ([sllm.sentence(codes.codes[u.id]) for u in c.utterances] for c in (heard, donor))
    empty = torch.empty(0, dtype=torch.long)
    for turn, (_, row) in enumerate(table[table["conversation"] == heard.id].iterrows()):
        if 0 < turn < len(others):
            written(memory, [torch.cat([empty, *others[:turn]])[-n_r:]], [others[turn]])
        p = answered(memory, [torch.cat([torch.cat([empty, *own[:turn]])[-n_r:], own[turn]])])[0]
        np.testing.assert_allclose(row[P].to_numpy(dtype=float), p.numpy(), atol=1e-4)
        assert np.isnan(row["loss"]) == (not 0 < turn < len(others))


# -- what is kept ------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("method", ["window", "dpm", "dpm-swapped"])
def test_killed_in_the_second_batch_it_goes_on_there(method, settings, toy, tuned, tmp_path, monkeypatch):
    settings = settings.replace("evaluation.streams", 5)
    monkeypatch.setattr(protocols, "GROUP", 1)  # 12 conversations: three batches
    whole = predict(settings.replace("home", str(tmp_path / "whole")), *toy, tuned, method, "train")
    plain, batches = protocols.listen, []

    def listen(listener, batch, *rest):
        batches.append([c.id for c in batch])
        if len(batches) == 2:
            raise Killed
        return plain(listener, batch, *rest)

    monkeypatch.setattr(protocols, "listen", listen)
    with pytest.raises(Killed):
        predict(settings, *toy, tuned, method, "train")
    resumed = predict(settings, *toy, tuned, method, "train")
    assert len(batches) == 4 and batches[1] == batches[2]  # the second again, then the third; the first stays
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    monkeypatch.setattr(protocols, "listen", None)
    pd.testing.assert_frame_equal(predict(settings, *toy, tuned, method, "train"), whole, check_exact=True)


def test_a_gpu_that_cannot_hold_the_streams_is_one_clear_error_and_fewer_go_on(settings, toy, tuned, tmp_path,
                                                                               monkeypatch):
    whole = predict(settings.replace("home", str(tmp_path / "whole")), *toy, tuned, "dpm")
    plain = DynamicParameterMemory.write

    def write(self, parts, streams):
        if len(streams) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, parts, streams)

    monkeypatch.setattr(DynamicParameterMemory, "write", write)
    with pytest.raises(UserError, match=r"GPU's memory cannot hold 4 streams: lower evaluation\.streams"):
        predict(settings, *toy, tuned, "dpm")
    close(predict(settings.replace("evaluation.streams", 2), *toy, tuned, "dpm"), whole)


def test_a_full_disk_and_a_broken_file(settings, toy, tuned, tmp_path, small_disk):
    with small_disk(500), pytest.raises(UserError, match=r"cannot write .*predictions.*free some disk"):
        predict(settings, *toy, tuned, "window")
    assert not [p for p in (tmp_path / "runs").rglob("*") if p.is_file() and p.name != ".lock"]
    table = predict(settings, *toy, tuned, "window")
    part = next((tmp_path / "runs").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"predictions.*cannot be read: delete it"):
        predict(settings, *toy, tuned, "window")
    part.unlink()
    assert predict(settings, *toy, tuned, "window").equals(table)


def test_unknown_method_split_and_a_limit(settings, toy, tuned):
    with pytest.raises(UserError, match=r"'guess' .*is not known.*window, current, at-once, .*dpm, dpm-swapped"):
        predict(settings, *toy, tuned, "guess")
    with pytest.raises(UserError, match=r"'holdout' is not known.* on train, validation, test"):
        predict(settings, *toy, tuned, "dpm", "holdout")
    whole = predict(settings, *toy, tuned, "dpm")
    few = predict(settings, *toy, tuned, "dpm", limit=2)
    assert few["conversation"].unique().tolist() == ["s1c0", "s1c1"]
    close(few, whole[whole["conversation"].isin(["s1c0", "s1c1"])])


def test_every_method_leaves_the_backbone_as_it_was_and_answers_every_turn(settings, toy, tuned):
    corpus, _ = toy
    before = tuned.sllm.fingerprint()
    turns = [(c.id, c.session, u.id, u.speaker, t, u.start, u.end)
             for c in corpus.select(corpus.folds[0].test) for t, u in enumerate(c.utterances)]
    for method in METHODS:
        table = predict(settings, *toy, tuned, method)
        columns = ["conversation", "session", "utterance", "speaker", "turn", "start", "end"]
        assert list(table[columns].itertuples(index=False, name=None)) == turns
        np.testing.assert_allclose(table[P].sum(axis=1), 1, atol=1e-5)
        assert len(metrics.targets(table, "complete")) == 4
    assert tuned.sllm.fingerprint() == before
