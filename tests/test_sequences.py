"""Label sequences: conversations that follow a table of who spoke in which emotion."""

import csv
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from test_composed import WANTED, recordings
from test_labelled import PARTIAL, emodb, load

from dpmkit import corpora
from dpmkit.corpora import composed, dynamics
from dpmkit.settings import Settings, UserError

EMOTIONS = dynamics.EMOTIONS
IEMOCAP = Path(__file__).parents[2] / "shared" / "data" / "iemocap" / "utterances.csv"


def asked(path, **overrides):
    return Settings.of("demo", {"corpus": "emodb", "conversation.sequences": str(path), "conversation.min_turns": 4,
                                "conversation.max_turns": 9, "home": str(Path(path).parent), **overrides})


def written(folder, *rows):
    path = folder / "labels.csv"
    path.write_text("\n".join(["conversation,speaker,emotion", *rows]))
    return path


DIALOGUE = ("one,Ann,NEU", "one,Bob,hap", "one,Ann,neu", "one,Cy,sad", "one,Bob,exc", "one,Bob,ang")


def test_turns_stay_in_order_and_what_is_left_out_is_counted(tmp_path):
    path = written(tmp_path, *DIALOGUE, *("two,Ann,neu",) * 5, *("three,Ann,neu", "three,Bob,hap"),
                   "four,Ann,neu", "four,Bob,exc", "four,Ann,neu", "four,Bob,hap")
    dialogues, note = composed.sequences(asked(path), EMOTIONS)
    assert dialogues == [[(1, "neu"), (0, "hap"), (1, "neu"), (0, "ang")]]
    assert note == ("Emotions follow 1 of 4 conversations of labels.csv, 4 of 17 turns: those of two speakers in "
                    "the emotions of the recordings.",)
    assert composed.sequences(asked("", home=str(tmp_path)), EMOTIONS) == ([], ())


def test_conversations_follow_a_dialogue_by_two_voices_of_a_session():
    dialogue = [(0, "neu"), (0, "hap"), (1, "sad"), (0, "hap"), (1, "ang")]

    def compose(voices, each=8):
        return composed.compose(recordings(voices, each), dict.fromkeys(voices, "s"), WANTED, EMOTIONS,
                                dynamics.IEMOCAP_INERTIA, [dialogue])

    made = compose("abc")
    assert len(made) == 30
    for conversation in made:
        turns = conversation.utterances
        assert [u.emotion for u in turns] == [emotion for _, emotion in dialogue][:len(turns)]
        voices = [u.speaker for u in turns]
        assert len(set(voices)) == 2 and voices == [(voices[0], voices[2])[who] for who, _ in dialogue]
        assert len({u.audio for u in turns}) == 5
    assert {len(c.utterances) for c in compose("ab", 1)} == {3}, "it ends where there is no second happy recording"
    assert compose("abc") == made


@pytest.mark.parametrize(("rows", "words"), [
    ((), "no row below its header"), (("one,Ann",), "2 cells, where the header has 3"), (("one,,neu",), "speaker"),
    (("one,Ann,joy", "one,Bob,joy") * 3, r"no conversation of two speakers and 4 turns .* its emotions are joy"),
    (("one,Ann,neu",) * 9, "no conversation of two speakers and 4 turns"),
    (("one,Ann,neu", "one,Bob,neu"), "no conversation of two speakers and 4 turns")])
def test_a_table_of_no_use_is_named(tmp_path, rows, words):
    with pytest.raises(UserError, match=words) as error:
        composed.sequences(asked(written(tmp_path, *rows)), EMOTIONS)
    assert "labels.csv" in str(error.value)


def test_a_table_that_is_not_there_and_a_corpus_that_composes_nothing(tmp_path):
    with pytest.raises(UserError, match=r"conversation\.sequences: .*nowhere\.csv is no file; give a CSV with"):
        composed.sequences(asked(tmp_path / "nowhere.csv"), EMOTIONS)
    with pytest.raises(UserError, match=r"conversation\.sequences is for corpora .* not for 'demo'"):
        corpora.load(asked(tmp_path / "labels.csv", corpus="demo"))


@pytest.mark.skipif(not IEMOCAP.is_file(), reason=f"REAL DYNAMICS WERE NOT TESTED: {IEMOCAP} is absent")
def test_iemocaps_labels_are_followed(tmp_path):
    """Its inertia comes out, as a speaker's next emotion, closer than the chain that was made for other corpora."""
    with IEMOCAP.open() as file:
        rows = [(r["utterance"].rpartition("_"), r["emotion"]) for r in csv.DictReader(file)]
    path = written(tmp_path, *(f"{name},{turn[0]},{'hap' if e == 'exc' else e}" for (name, _, turn), e in rows))
    long = {"conversation.min_turns": 20, "conversation.max_turns": 60}
    dialogues, _ = composed.sequences(asked(path, **long), EMOTIONS)
    same = Counter()
    for dialogue in dialogues:
        for who in (0, 1):
            own = [emotion for speaker, emotion in dialogue if speaker == who]
            same.update(a == b for a, b in pairwise(own))
    assert 100 < len(dialogues) <= 151 and same[True] / same.total() == pytest.approx(0.85, abs=0.02)


def test_a_corpus_of_recordings_follows_it_and_its_key_is_what_it_says(tmp_path):
    """Turns are cut at max_turns; another table is another corpus, the same one elsewhere is the same."""
    root = emodb(tmp_path / "root", texts=("a01", "a02", "b01", "b02"))
    same, other, elsewhere = (tmp_path / name for name in ("same", "other", "elsewhere"))
    for folder in (same, other, elsewhere):
        folder.mkdir()
    sad = ["one,Ann,neu", "one,Bob,sad"] * 3
    plain = load(root, "emodb", **PARTIAL)
    one, two, three = (load(root, "emodb", **PARTIAL, **{"conversation.sequences": str(written(folder, *rows))})
                       for folder, rows in ((same, sad), (other, [*sad[:-1], "one,Bob,ang"]), (elsewhere, sad)))
    assert one.key == three.key and len({plain.key, one.key, two.key}) == 3
    for conversation in one.conversations:
        emotions = [u.emotion for u in conversation.utterances]
        assert 4 <= len(emotions) <= 6 and emotions == (["neu", "sad"] * 3)[:len(emotions)]
    assert any("Emotions follow 1 of 1 conversations of labels.csv, 6 of 6 turns" in note for note in one.notes)
    assert not any("Emotions follow" in note for note in plain.notes)
    cut = load(root, "emodb", **PARTIAL, **{"conversation.sequences": str(same / "labels.csv"),
                                            "conversation.max_turns": 4})
    assert {len(c.utterances) for c in cut.conversations} == {4}
