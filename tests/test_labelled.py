"""Labelled recordings: every file is used or listed, published counts are held, and no fold shares a speaker."""

import os
import random
import shutil
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st
from tree_meld import write_clip

from dpmkit import audio, corpora
from dpmkit.corpora import Count, Skipped, composed, dynamics, labelled
from dpmkit.settings import Settings, UserError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HOME = tempfile.TemporaryDirectory()
SMALL = {"conversation.conversations": 4, "conversation.min_turns": 4, "conversation.max_turns": 8}
PARTIAL = {"source.allow_partial": True}
KNOWN = {"source.pattern": "^(?P<speaker>[^_]+)_"}
FOUR = ("neu", "Hap", "sad", "ang")


def real(name, folder):
    return pytest.mark.skipif(not (SHARED / name / folder).is_dir(), reason=f"REAL DATA ABSENT: {SHARED / name}")


def load(root, corpus="folders", **overrides):
    return corpora.load(Settings.of("smoke", {**SMALL, **overrides}, corpus=corpus, root=str(root), home=HOME.name))


def refused(root, match, corpus="folders", **overrides):
    with pytest.raises(UserError, match=match) as caught:
        load(root, corpus, **overrides)
    assert "\n" not in str(caught.value)


def noise(paths):
    """0.1 s of noise of its own a file."""
    rng = np.random.default_rng(0)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, 800), 8000)


def tree(root, emotions=FOUR, speakers="abcdef", each=2, suffix="wav"):
    """`<root>/<emotion>/<speaker>_<number>.wav`"""
    root.mkdir(exist_ok=True)
    noise(root / e / f"{s}_{i}.{suffix}" for e in emotions for s in speakers for i in range(each))
    return root


def emodb(root, speakers=10, texts=("a01", "a02", "b01"), emotions="WLEAFTN"):
    noise(root / "wav" / f"{s + 3:02d}{t}{e}a.wav" for s in range(speakers) for t in texts for e in emotions)
    return root


def recordings(corpus):
    return {u.audio.path for c in corpus.conversations for u in c.utterances}


def sides(corpus, of):
    """For each fold the sets of `of(utterance)` in training, validation and test."""
    return [[{of(u) for c in corpus.select(ids) for u in c.utterances} for ids in (f.train, f.validation, f.test)]
            for f in corpus.folds]


def apart(corpus, of):
    assert all(sum(map(len, three)) == len(set().union(*three)) and all(three) for three in sides(corpus, of))


@pytest.fixture(scope="module")
def berlin(tmp_path_factory):
    return emodb(tmp_path_factory.mktemp("emodb") / "root")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("folders") / "root")


@pytest.fixture
def copy(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "root")


# ---- published corpora ----

def test_files_become_utterances_of_their_speaker_and_emotion(berlin):
    corpus = load(berlin, "emodb", **PARTIAL)
    assert corpus.emotions == dynamics.EMOTIONS and corpus.speaker_independent and corpus.name == "emodb"
    letters = {"N": "neu", "F": "hap", "T": "sad", "W": "ang"}
    for u in (u for c in corpus.conversations for u in c.utterances):
        assert (u.speaker, u.emotion) == (u.audio.path.name[:2], letters[u.audio.path.name[5]])
        assert u.seconds == pytest.approx(0.1)
    assert corpus.counts == tuple(Count("all", e, n, 30) for e, n in zip(dynamics.EMOTIONS, (79, 71, 62, 127),
                                                                         strict=True))
    assert [s.item for s in corpus.skipped] == [f"30 file(s) of {e}" for e in ("boredom", "dis", "fea")]
    six = load(berlin, "emodb", **PARTIAL, **{"source.classes": 6})
    assert six.emotions == ("neu", "hap", "sad", "ang", "dis", "fea") and six.key != corpus.key
    assert [s.item for s in six.skipped] == ["30 file(s) of boredom"]
    assert "a chain that nobody measured" in six.notes[-2] and "clips last 0.100 s" in six.notes[-1]
    assert "fewer than four speakers a session" in six.notes[1]


def test_root_may_be_the_clips_folder_itself(berlin):
    assert load(berlin / "wav", "emodb", **PARTIAL) == load(berlin, "emodb", **PARTIAL)


def test_counts_that_are_not_the_published_ones_are_refused_unless_allowed(berlin, tmp_path):
    refused(berlin, r"is not the published EmoDB: of 339 recordings with a label 120 are here \(neu 30 of 79, hap "
                    r"30 of 71, sad 30 of 62, ang 30 of 127\); 3 item.* source\.allow_partial=true", "emodb")
    assert load(berlin, "emodb", **PARTIAL).notes[2].startswith("This is not the published EmoDB: of 339 rec")
    root = shutil.copytree(berlin, tmp_path / "root")
    (root / "wav" / "03a01Na.wav").rename(root / "wav" / "03a01N.wav")
    refused(root, r"neu 29 of 79.*e\.g\. wav/03a01N\.wav: is not named like wav/03a01Fa\.wav; fetch",
            "emodb")
    for path in (root / "wav").iterdir():
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    refused(root, r"neu 0 of 79.*; 123 item.*wav/03a01Fa\.wav: is not audio.*git lfs pull", "emodb")


LAYOUTS = {  # a name that is one -> speaker, emotion; names that are none
    "emodb": ({"wav/16b10Wb.wav": ("16", "ang"), "x/03a01Ac.flac": ("03", "fea"), "03a01La.WAV": ("03", "boredom")},
              ("3a01Fa.wav", "03a01Xa.wav", "03a01Fa (1).wav", "03c01Fa.wav")),
    "cremad": ({"AudioWAV/1001_DFA_ANG_XX.wav": ("1001", "ang"), "AudioOGG/1091_IEO_FEA_HI.ogg": ("1091", "fea"),
                "1040_ITH_SAD_X.wav": ("1040", "sad"), "1002_IEO_DIS_LO.mp3": ("1002", "dis")},
               ("1001_DFA_ANG.wav", "1001_DFA_JOY_XX.wav", "1001_DFA_ANG_XXX.wav", "DFA_1001_ANG_XX.wav")),
    "ravdess": ({"Actor_12/03-01-06-01-02-01-12.wav": ("12", "fea"), "03-01-01-01-01-02-24.wav": ("24", "neu"),
                 "03-01-08-02-01-01-01.wav": ("01", "surprise")},
                ("03-02-06-01-02-01-12.wav", "01-01-06-01-02-01-12.mp4", "03-01-09-01-02-01-12.wav")),
    "nemo": ({"samples/EB0_anger_1.wav": ("EB0", "ang"), "WR0_surprised_90.wav": ("WR0", "surprise")},
             ("EB0_boredom_1.wav", "EB0_anger.wav")),
}


@pytest.mark.parametrize("corpus", LAYOUTS)
def test_names_are_the_owners(corpus, tmp_path):
    names, others = LAYOUTS[corpus]
    for path in (tmp_path / name for name in (*names, *others)):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    layout = labelled.LAYOUTS[corpus]
    assert [e for e, _ in layout.emotions.values()][:4] == list(dynamics.EMOTIONS)
    found = dict(labelled.files.walk(tmp_path))
    labels, skipped = labelled._published(layout, tmp_path, found)
    assert {found[path]: label for path, label in labels.items()} == names
    assert {s.item for s in skipped} == set(others) and all("not named like" in s.reason for s in skipped)


def test_published_counts_add_up():
    totals = {c: sum(n for _, n in layout.emotions.values()) for c, layout in labelled.LAYOUTS.items()}
    assert totals == {"emodb": 535, "cremad": 7442, "ravdess": 1440, "nemo": 4481}


def test_of_one_clip_in_several_formats_a_wav_counts(berlin, tmp_path):
    root = shutil.copytree(berlin, tmp_path / "root")
    noise(root / "mp3" / f"{p.stem}.mp3" for p in (root / "wav").glob("03*"))
    corpus, plain = load(root, "emodb", **PARTIAL), load(berlin, "emodb", **PARTIAL)
    assert {p.suffix for p in recordings(corpus)} == {".wav"} and corpus.counts == plain.counts
    assert Skipped("21 file(s)", "another of the same clip is heard: wav/03a01Aa.wav rather than "
                                 "mp3/03a01Aa.mp3") in corpus.skipped


@pytest.mark.parametrize(("speakers", "sizes"), [
    (6, (2, 2, 2)), (8, (3, 3, 2)), (9, (3, 3, 3)), (10, (4, 3, 3)), (12, (3, 3, 3, 3)), (15, (3,) * 5),
    (24, (5, 5, 5, 5, 4)), (91, (19, 18, 18, 18, 18))])
def test_sessions_hold_many_speakers_drawn_by_the_seed(speakers, sizes):
    names = [f"p{i}" for i in range(speakers)]
    drawn = composed.sessions(names, 1)
    assert sorted(Counter(drawn.values()).values(), reverse=True) == list(sizes) and set(drawn) == set(names)
    assert composed.sessions(reversed(names * 2), 1) == drawn != composed.sessions(names, 2)


def test_no_fold_shares_a_speaker_and_a_test_has_strangers(tmp_path):
    corpus = load(emodb(tmp_path / "root", 20, texts=("a01",)), "emodb", **PARTIAL, **{
        "conversation.conversations": 20})
    assert sorted({c.session for c in corpus.conversations}) == ["s1", "s2", "s3", "s4", "s5"]
    apart(corpus, lambda u: u.speaker)
    assert [len(test) for _, _, test in sides(corpus, lambda u: u.speaker)] == [4] * 5
    assert "20 speakers were drawn into 5 sessions of 4 to 4 (conversation.seed 2507)" in corpus.notes[0]
    for fold in corpus.folds:
        voices = [{u.speaker for u in c.utterances} for c in corpus.select(fold.test)]
        assert all(any(not own & other for other in voices) for own in voices)
    assert not any("fewer than four speakers a session" in note for note in corpus.notes)


def test_few_speakers_are_refused(tmp_path, pristine):
    refused(emodb(tmp_path / "root", 5, texts=("a01",)), r"of 5 speaker\(s\) and .*; 6 speakers", "emodb",
            **PARTIAL)
    refused(emodb(tmp_path / "others", emotions="LEA"), r"of 0 speaker\(s\)", "emodb", **PARTIAL)
    refused(pristine, r"of 2 speaker\(s\)", **{"source.pattern": "^(?P<speaker>[ab])"})


@pytest.mark.parametrize("corpus", labelled.LAYOUTS)
def test_a_root_of_another_shape_is_refused(tmp_path, corpus):
    title = labelled.LAYOUTS[corpus].title
    refused(tmp_path, rf"is not {title}: expected .*, found nothing;", corpus)
    for name in ("Session1", "readme.txt", ".hidden"):
        (tmp_path / name).touch()
    refused(tmp_path, rf"is not {title}: expected .*, found Session1, readme\.txt;", corpus)
    refused(tmp_path / "absent", "is not a folder", corpus)
    refused("", "needs a root", corpus)


def test_files_that_cannot_be_used_are_listed_and_never_composed(berlin, tmp_path):
    root = shutil.copytree(berlin, tmp_path / "root")
    wav = root / "wav"
    spoiled = {"03a01Fa.wav": b"", "03a01Na.wav": b"no audio", "03a01Xa.wav": b"x",
               "03a01Ta.wav": (wav / "03a01Ta.wav").read_bytes()[:99]}
    for name, data in spoiled.items():
        (wav / name).write_bytes(data)
    soundfile.write(wav / "03a02Fa.wav", np.full(800, np.nan), 8000, subtype="FLOAT")
    soundfile.write(wav / "03a02Na.wav", np.zeros(1), 8000)  # a silent frame is heard
    (wav / "03b09Fa.wav").mkdir()
    (wav / "._03a01Fa.wav").write_bytes(b"x")  # the file system's own, not listed
    corpus = load(root, "emodb", **PARTIAL)
    reasons = {s.item: s.reason for s in corpus.skipped if "outside" not in s.reason}
    for name, reason in {"wav/03a01Fa.wav": "is empty (0 bytes)", "wav/03a01Na.wav": "is not audio",
                         "wav/03a01Ta.wav": "is cut off", "wav/03a02Fa.wav": "holds samples up to nan",
                         "wav/03b09Fa.wav": "is a folder", "wav/03a01Xa.wav": "is not named like"}.items():
        assert reasons.pop(name).startswith(reason)
    assert not reasons and sum(c.found for c in corpus.counts) == 120 - 4


@real("emodb", "wav")
def test_the_real_emodb_counts_as_published():
    corpus = corpora.load(Settings.of("full", corpus="emodb", root=str(SHARED / "emodb"), home=HOME.name))
    assert all(c.found == c.published for c in corpus.counts)
    assert {s.item for s in corpus.skipped} == {"81 file(s) of boredom", "69 file(s) of fea", "46 file(s) of dis"}
    assert len({u.speaker for c in corpus.conversations for u in c.utterances}) == 10
    assert len(corpus.conversations) == 180 and {len(f.test) for f in corpus.folds} == {60}
    apart(corpus, lambda u: u.speaker)
    measured = dynamics.transition_matrix(corpus.conversations, corpus.emotions)
    # Contagion takes up to 0.05 off the diagonal; the rest is sampling error of rows of some 800 draws.
    assert np.abs(measured - dynamics.IEMOCAP_INERTIA).max() < 0.08
    first = corpus.conversations[0].utterances[0]
    assert audio.read(first.audio.path).shape == (round(first.seconds * audio.RATE),)
    assert not any("no more and no less" in note for note in corpus.notes)


@real("cremad", "AudioOGG")
def test_the_real_cremad_counts_as_published(monkeypatch):
    monkeypatch.setattr(labelled.files, "survey", lambda settings, root, paths: {
        p: labelled.files.File(2.5, p.name, None) for p in paths})  # 4,900 files take a minute to decode
    for root in (SHARED / "cremad", SHARED / "cremad" / "AudioOGG"):
        corpus = load(root, "cremad")
        assert corpus.counts == tuple(Count("all", e, n, n) for e, n in zip(
            dynamics.EMOTIONS, (1087, 1271, 1271, 1271), strict=True))
        assert len(corpus.folds) == 5 and "91 speakers were drawn into 5 sessions of 18 to 19" in corpus.notes[0]
        apart(corpus, lambda u: u.speaker)
    refused(SHARED / "cremad", r"\(dis 0 of 1,271, fea 0 of 1,271\); fetch", "cremad", **{"source.classes": 6})
    found = dict(labelled.files.walk(root))
    first = next(iter(found))
    for instead, words in (("1001_ANG_XX.ogg", "e\\.g\\. 1001_ANG_XX.ogg: is not named like AudioWAV/1001_DFA_ANG"),
                           ("notes.csv", "")):
        changed = {**found, first: instead}
        monkeypatch.setattr(labelled.files, "walk", lambda root, changed=changed: (
            (root / name, name) for name in changed.values()))
        refused(root, r"CREMA-D: of 4,900 .* 4,899 are here \(ang 1,270 of 1,271\).*" + words, "cremad")


# ---- folders of one's own ----

def test_known_speakers_stand_on_one_side(pristine):
    corpus = load(pristine, **KNOWN)
    assert corpus.emotions == dynamics.EMOTIONS and corpus.speaker_independent and not corpus.skipped
    assert len(corpus.folds) == 3
    for u in (u for c in corpus.conversations for u in c.utterances):
        assert u.speaker == u.audio.path.name[0] and u.seconds == pytest.approx(0.1)
        assert u.audio.path.parent.name.lower() == u.emotion
    apart(corpus, lambda u: u.speaker)
    assert corpus.counts == tuple(Count("all", e, None, 12) for e in dynamics.EMOTIONS)


def test_names_alone_may_tell_speaker_and_emotion(pristine, tmp_path):
    (tmp_path / "root" / "deep").mkdir(parents=True)
    for path in pristine.glob("*/*"):
        shutil.copy(path, tmp_path / "root" / ("deep" if "_0" in path.name else "") /
                    f"take1-{path.parent.name.upper()}-{path.name}")
    pattern = {"source.pattern": "-(?P<emotion>[A-Z]+)-(?P<speaker>[a-z])_"}
    corpus, plain = load(tmp_path / "root", **pattern), load(pristine, **KNOWN)
    assert corpus.emotions == plain.emotions and corpus.counts == plain.counts and not corpus.skipped
    for u in (u for c in corpus.conversations for u in c.utterances):
        _, emotion, rest = u.audio.path.name.split("-")
        assert (u.speaker, u.emotion) == (rest[0], emotion.lower())


@pytest.mark.parametrize(("names", "emotions"), [
    (("NEU", "hap", "sad", "ang"), dynamics.EMOTIONS), (("ang", "hap", "sad"), ("ang", "hap", "sad")),
    (("Calm", "angry", "happy", "neutral", "sad"), ("angry", "calm", "happy", "neutral", "sad")),
    (("boredom", " Fear "), ("boredom", "fear")),
])
def test_folders_name_the_emotions(tmp_path, names, emotions):
    corpus = load(tree(tmp_path, names), **KNOWN)
    assert corpus.emotions == emotions
    assert {c.emotion: c.found for c in corpus.counts} == dict.fromkeys(emotions, 12)
    assert any("a chain that nobody measured" in n for n in corpus.notes) == (emotions != dynamics.EMOTIONS)


def test_other_emotions_keep_iemocaps_mean_inertia(tmp_path):
    corpus = load(tree(tmp_path, ("calm", "fear", "joy"), each=8), **KNOWN, **{"conversation.conversations": 200})
    measured = dynamics.transition_matrix(corpus.conversations, corpus.emotions)
    want = dynamics.chain(corpus.emotions)  # less its contagion; some 500 draws a row: two standard errors are 0.03
    assert np.abs(measured - (0.95 * want + 0.05 / 3)).max() < 0.05 and measured.diagonal().min() > 0.75


def test_what_is_not_used_is_listed(copy):
    (copy / "loose.wav").write_bytes(b"x")
    (copy / "a_loose.wav").write_bytes(b"x")
    (copy / "README.txt").write_bytes(b"x")  # no sound: not listed
    (copy / "ang" / "a_0.wav").write_bytes(b"")
    (copy / "ang" / "nobody.wav").write_bytes((copy / "ang" / "a_1.wav").read_bytes()[::-1])
    shutil.copy(copy / "ang" / "b_0.wav", copy / "ang" / "b_9.wav")
    shutil.copy(copy / "ang" / "c_0.wav", copy / "sad" / "c_9.wav")
    (copy / "ang" / "link").symlink_to(copy / "sad")  # leads back: its files stand there, too
    (copy / "ang" / "._a_0.wav").write_bytes(b"x")  # the file system's own, not listed
    (copy / ".git").mkdir()
    corpus = load(copy, **KNOWN)
    listed = {s.item: s.reason for s in corpus.skipped}
    assert len(listed) == len(corpus.skipped)
    assert {i: r.split(":")[0][:30] for i, r in listed.items()} == {
        "loose.wav": "source.pattern '^(?P<speaker>[", "a_loose.wav": "lies in the root, not in a fol",
        "ang/a_0.wav": "is empty (0 bytes)",
        "ang/nobody.wav": "source.pattern '^(?P<speaker>[", "ang/b_9.wav": "is the same recording as ang/b",
        "sad/c_9.wav": "is the same recording as ang/c"}
    assert not {p.relative_to(copy).as_posix() for p in recordings(corpus)} & set(listed)
    assert sum(c.found for c in corpus.counts) == 48 - 1  # a_0


def test_names_are_read_in_one_form(copy):
    """As an unpacker of a Mac leaves them (NFD): speakers, emotions and ids are those of any other copy."""
    keys = set()
    for kind in ("NFC", "NFD"):
        folder = next(p for p in copy.iterdir() if p.name.endswith(("ang", "rger")))
        for path in folder.iterdir():
            path.rename(path.with_name(unicodedata.normalize(kind, path.name.replace("a_", "André_"))))
        folder.rename(copy / unicodedata.normalize(kind, "Ärger"))
        corpus = load(copy, **{"source.pattern": unicodedata.normalize(kind, "^(?P<speaker>Andr[é]|[^_])_")})
        assert not corpus.skipped and "ärger" in corpus.emotions
        assert "André" in {u.speaker for c in corpus.conversations for u in c.utterances}
        keys.add(corpus.key)
    assert len(keys) == 1


def test_files_of_all_kinds_of_sound_are_heard(copy):
    for number, suffix in enumerate((".m4a", ".opus", ".MTS")):
        path = copy / "ang" / f"{'abc'[number]}_0.wav"
        codec = {".m4a": "aac", ".opus": "libopus", ".MTS": "ac3"}[suffix]
        write_clip(path.with_suffix(suffix), audio.read(path), 48_000, codec=codec,
                   kind="flt" if suffix == ".opus" else "fltp")
        path.unlink()
    for name, kind in (("d_0", "flac"), ("e_0", "OGG"), ("f_0", "mp3")):
        noise([copy / "ang" / "deep" / f"{name}.{kind}"])
        (copy / "ang" / f"{name}.wav").unlink()
    corpus = load(copy, **KNOWN)
    assert not corpus.skipped and sum(c.found for c in corpus.counts) == 48


def test_a_folder_may_be_a_link(copy, tmp_path):
    expected = load(copy, **KNOWN)
    (copy / "ang").rename(tmp_path / "elsewhere")
    (copy / "ang").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "ring").symlink_to(tmp_path / "elsewhere")
    (copy / "ang" / "up").symlink_to(tmp_path)
    assert load(copy, **KNOWN) == expected


@pytest.mark.parametrize(("pattern", "match"), [
    ("(", r"source\.pattern '\(' must be a regular expression"), ("a{99999999999}", "must be a regular"),
    ("", "with the named group speaker and"), ("^([a-f])", "with the named group speaker and"),
    ("(?P<speaker>.)_(?P<take>.)", "with the named group speaker"), ("(?P<emotion>.)", "the named group speaker"),
    ("^(?P<speaker>z)", r"0 emotion\(s\); .*source\.pattern '\^\(\?P<speaker>z\)' does not find its groups"),
    ("^(?P<speaker>z)?", r"0 emotion\(s\)"), ("(?P<emotion>[0-9])(?P<speaker>z)?", r"0 emotion\(s\)"),
])
def test_a_pattern_that_finds_nothing_is_refused(pristine, pattern, match):
    refused(pristine, match, **{"source.pattern": pattern})


@pytest.mark.parametrize(("emotions", "match"), [
    ((), r"of 0 speaker\(s\) and 0 emotion\(s\); .* two emotions are needed: .*<root>/<emotion>/<speaker>_"),
    (("sad",), r"and 1 emotion\(s\)"), (("sad", " SAD"), r"and 1 emotion\(s\)"),
])
def test_a_root_without_two_emotions_is_refused(tmp_path, emotions, match):
    refused(tree(tmp_path, emotions), match, **KNOWN)
    (tmp_path / "a_1.wav").write_bytes(b"x")
    refused(tmp_path, match + ".*skipped, e.g. a_1.wav: lies in the root", **KNOWN)


def test_the_order_of_the_directory_changes_nothing(pristine, berlin, monkeypatch):
    first, walk = (load(pristine, **KNOWN), load(berlin, "emodb", **PARTIAL)), os.walk

    def shuffled(root, **options):
        for folder, folders, names in walk(root, **options):
            random.shuffle(folders)
            yield folder, folders, random.sample(names, len(names))

    monkeypatch.setattr(os, "walk", shuffled)
    assert (load(pristine, **KNOWN), load(berlin, "emodb", **PARTIAL)) == first


def test_the_key_follows_content_names_and_settings(copy):
    keys = [load(copy, **KNOWN).key]
    assert load(copy, **KNOWN, **{"memory.lr": 0.1, "seed": 9, "source.classes": 6}).key == keys[0]
    os.utime(copy / "ang" / "a_0.wav", (0, 0))
    assert load(copy, **KNOWN).key == keys[0]
    keys.append(load(copy, **KNOWN, **{"conversation.seed": 1}).key)
    soundfile.write(copy / "ang" / "a_0.wav", np.zeros(800), 8000)  # another content, the same size
    keys.append(load(copy, **KNOWN).key)
    (copy / "ang" / "a_0.wav").rename(copy / "ang" / "a_7.wav")
    keys.append(load(copy, **KNOWN).key)
    (copy / "ang" / "a_7.wav").unlink()
    keys.append(load(copy, **KNOWN).key)
    assert len(set(keys)) == 5


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@budget(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=st.text(alphabet="ab_()[]^$.*+?{}\\|1", max_size=6))
def test_any_pattern_loads_or_is_refused(pristine, pattern):
    try:
        corpus = labelled.load(Settings.of("smoke", {**SMALL, "source.pattern": f"(?P<speaker>{pattern})"},
                                           corpus="folders", root=str(pristine), home=HOME.name))
    except UserError:
        return
    assert sum(c.found for c in corpus.counts) + len(corpus.skipped) == 48
