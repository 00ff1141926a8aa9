"""Keys move with what an artefact is made by and from, and nothing else; one process makes it, whole or not."""

import ast
import copy
import errno
import json
import os
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import make_settings, make_toy
from processes import ended, started

from dpmkit import adaptation, audio, baselines, codes, finetune, protocols, robustness, runs, speakers
from dpmkit.corpora import demo, files, iemocap, labelled, manifest, meld
from dpmkit.settings import Settings, UserError
from dpmkit.tokenizers import kmeans, neural

# What each stage runs through: a change in one of these modules moves its key, a change in any other does not.
TOKENS = "audio tokenizers.acoustics tokenizers.kmeans"
FILES = "audio corpora.base corpora.files"
CODES = f"{FILES} {TOKENS} codes tokenizers"
SLLM = f"{CODES} backbones finetune sllm"
ANSWERS = f"{SLLM} cheaper corpora.dynamics lora memory metrics protocols"
STAGES = {
    "demo": ((demo.load,), "audio corpora.base corpora.demo corpora.dynamics corpora.espeak"),
    "labelled": ((labelled.load,), f"{FILES} corpora.labelled corpora.composed corpora.dynamics corpora.table"),
    "iemocap": ((iemocap.load,), f"{FILES} corpora.iemocap corpora.dynamics"),
    "meld": ((meld.load,), f"{FILES} corpora.meld corpora.table"),
    "manifest": ((manifest.load,), f"{FILES} corpora.manifest corpora.dynamics corpora.table"),
    "files": ((files._decoded,), FILES),
    "codes (kmeans)": ((codes.make, kmeans.KMeansTokenizer), CODES),
    "codes (hubert)": ((codes.make, neural.HubertKMeans), f"{CODES} tokenizers.neural"),
    "sllm": ((finetune._trained,), SLLM),
    "network": ((baselines.network,), f"{ANSWERS} baselines"),
    "network (speakers)": ((adaptation.lstm,), f"{ANSWERS} adaptation baselines speakers"),
    "predictions": ((protocols.predict,), ANSWERS),
    "states": ((speakers._states,), f"{ANSWERS} baselines speakers"),
    "speakers": ((speakers.fitted,), f"{ANSWERS} baselines speakers"),
    "robustness": ((robustness._answers, speakers.fitted), f"{ANSWERS} baselines robustness speakers"),
}
FOLDER = Path(runs.__file__).parent
NAMES = [".".join(p.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__")
         for p in sorted(FOLDER.rglob("*.py")) if p != FOLDER / "__init__.py"]
PARSED, VERSION = runs.parsed, runs.code_version.__wrapped__


@pytest.mark.parametrize("stage", STAGES)
def test_a_change_of_a_module_moves_the_keys_of_the_stages_that_run_through_it_and_no_other(stage, monkeypatch):
    makers, through = STAGES[stage]
    before, moved = VERSION(*makers), set()
    for name in NAMES:
        text, imported = PARSED(f"dpmkit.{name}")
        changed = {f"dpmkit.{name}": (f"{text} changed", imported)}
        monkeypatch.setattr(runs, "parsed", lambda module, changed=changed: changed.get(module) or PARSED(module))
        moved |= {name} if VERSION(*makers) != before else set()
    assert moved == set(through.split())


def test_every_stage_of_the_package_stands_in_the_table():
    texts = [p.read_text(encoding="utf-8") for p in FOLDER.rglob("*.py")]
    asked = sum(t.count("runs.Artefact(") + t.count("runs.code_version(load)") for t in texts)
    assert asked == len(STAGES) - 1  # codes stand there twice


def test_comments_layout_and_docstrings_do_not_count_and_anything_else_does(tmp_path, monkeypatch):
    text, copy = Path(audio.__file__).read_text(encoding="utf-8"), tmp_path / "audio.py"
    monkeypatch.setattr(audio, "__file__", str(copy))

    def version(text):
        monkeypatch.setattr(runs, "parsed", cache(PARSED.__wrapped__))
        copy.write_text(text, encoding="utf-8")
        return VERSION(audio.find_speech)

    assert version(ast.unparse(ast.parse(text))) == version(text)
    assert version("# why\n\n" + text.replace('"""Waveforms', '"""Other')) == version(text)
    assert version(text.replace("SHORT = ", "SHORT = 1 + ")) != version(text)


def test_a_newer_python_with_more_fields_that_are_empty_makes_nothing_anew():
    """3.12 has `type_params=[]` of every function, 3.13 leaves empty fields out of the text."""
    assert "def " in Path(audio.__file__).read_text(encoding="utf-8") and "=[]" not in PARSED("dpmkit.audio")[0]


# -- what enters by value --------------------------------------------------------------------------

def test_a_step_of_several_processes_is_keyed_as_one_of_a_larger_batch(settings, monkeypatch):
    two = settings.replace("finetune.batch", 2).finetune
    assert finetune.keyed(two).batch == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert finetune.keyed(two) == settings.replace("finetune.batch", 4).finetune


def test_made_json_says_what_an_artefact_is_made_of(settings, toy):
    tuned = finetune.train(settings.replace("finetune.epochs", 1), *toy)
    made = json.loads((tuned.folder.parent / "made.json").read_text())
    assert made["stage"] == "sllm" and made["key"] == tuned.key and made["packages"]["torch"] == version("torch")
    assert made["inputs"]["codes"] == "toy0" and made["inputs"]["finetune"]["epochs"] == 1
    assert runs.key("sllm", made["inputs"]) == tuned.key  # what is written is what is hashed


# -- two processes on one key ----------------------------------------------------------------------

def sllm_of_toy(home):
    """Trains, and goes on when there is a file `go`."""
    plain = finetune.fit

    def waits(*given):
        (home / "begun").touch()
        while not (home / "go").exists():
            time.sleep(0.05)
        print("WORKED")
        return plain(*given)

    finetune.fit = waits
    tuned = finetune.train(make_settings(home).replace("finetune.epochs", 3), *make_toy())
    return tuned.sllm.fingerprint(), len(tuned.history)


def work(home):
    print("MADE", sllm_of_toy(home))


def until(true, process, log):
    for _ in range(2400):
        if true():
            return
        assert process.is_alive(), log.read_text()[-2000:]
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])


def made(log):
    return next(line for line in log.read_text().splitlines() if line.startswith("MADE"))


def test_of_two_processes_on_one_key_the_second_waits_and_uses_what_the_first_made(tmp_path):
    logs = [tmp_path / "first", tmp_path / "second"]
    first = started(logs[0], work, tmp_path)
    until((tmp_path / "begun").exists, first, logs[0])
    second = started(logs[1], work, tmp_path)
    until(lambda: logs[1].exists() and "waiting" in logs[1].read_text(), second, logs[1])
    (tmp_path / "go").touch()
    assert [ended(p) for p in (first, second)] == [0, 0]
    assert made(logs[0]) == made(logs[1])
    assert "WORKED" in logs[0].read_text() and "WORKED" not in logs[1].read_text()
    line, = (line for line in logs[1].read_text().splitlines() if line.startswith("waiting for another"))
    assert "/runs/sllm/" in line


def test_a_dead_holder_leaves_no_lock(tmp_path):
    first = started(tmp_path / "first", work, tmp_path)
    until((tmp_path / "begun").exists, first, tmp_path / "first")
    first.kill()
    ended(first)
    (tmp_path / "go").touch()
    second = started(tmp_path / "second", work, tmp_path)
    assert ended(second) == 0
    assert "waiting" not in (tmp_path / "second").read_text() and "WORKED" in (tmp_path / "second").read_text()


def test_what_is_made_needs_no_lock_and_no_right_to_write(settings, tmp_path):
    made = runs.Artefact(settings, "toy", runs.key, what=1)
    (made.folder / "there").write_text("x")
    with made.making(made.folder / "there") as absent:
        assert not absent
    assert [p.name for p in made.folder.iterdir()] == ["there"]
    with made.making(made.folder / "there", made.folder / "other") as absent:
        assert absent
    assert {p.name for p in made.folder.iterdir()} >= {"made.json", "there"}


# -- files, and keys of values ---------------------------------------------------------------------

def write(path, text):
    with runs.atomic(path) as temporary:
        temporary.write_text(text)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "table.parquet"
    write(path, "old")
    with pytest.raises(KeyError), runs.atomic(path) as temporary:
        assert temporary.suffix == ".parquet" and temporary.parent == path.parent
        temporary.write_text("half")
        raise KeyError
    with pytest.raises(KeyboardInterrupt), runs.atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["table.parquet"]
    write(path, "new")
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["table.parquet"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_full_disk_is_the_user_s_to_mend(moment, tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write(path, "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = {"write": (Path, "write_text"), "fsync": (os, "fsync"), "replace": (os, "replace")}[moment]
    monkeypatch.setattr(*where, full)
    with pytest.raises(UserError, match=r"cannot write .*record\.json: No space left on device; free some disk"):
        runs.write_json(path, {"a": 1})
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_really_full(tmp_path, small_disk):
    write(tmp_path / "text", "old")
    with small_disk(), pytest.raises(UserError, match=r"cannot write .*text: .*free some disk"):
        write(tmp_path / "text", "x" * 100_000)
    assert (tmp_path / "text").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "runs").touch()
    settings = Settings.of("smoke", {"home": str(tmp_path)})
    with pytest.raises(UserError, match=r"cannot write .*runs.*home="):
        runs.folder(settings, "codes", "abc")
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "runs" / "below", "x")


def test_json_is_readable_and_keeps_its_order(tmp_path):
    runs.write_json(tmp_path / "a.json", {"b": 1, "a": ["ü"]})
    assert "".join((tmp_path / "a.json").read_text(encoding="utf-8").split()) == '{"b":1,"a":["ü"]}'
    with pytest.raises(ValueError, match="JSON"):
        runs.write_json(tmp_path / "a.json", {"b": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"b": 1, "a": ["ü"]}


def test_a_key_changes_with_every_setting():
    def moved(value):
        if isinstance(value, tuple):
            return (*value, value[-1])
        return f"{value}x" if isinstance(value, str) else value + 1

    def key_with(name, value):  # allowed or not
        settings = copy.deepcopy(base)
        group, _, leaf = name.rpartition(".")
        object.__setattr__(getattr(settings, group) if group else settings, leaf, value)
        return runs.key(settings)

    base = Settings.of("smoke")
    keys = {name: key_with(name, moved(value)) for name, value in base.flat().items()}
    assert len({*keys.values(), runs.key(base)}) == len(keys) + 1
    assert runs.key(Settings.of("smoke")) == runs.key(base)


def test_a_key_does_not_change_with_a_dict_s_order_but_with_a_list_s():
    assert runs.key({"a": 1, "b": {"c": 2, "d": 3}}) == runs.key({"b": {"d": 3, "c": 2}, "a": 1})
    assert runs.key(["a", "b"]) != runs.key(["b", "a"])
    assert runs.key("a", "b") != runs.key("ab") and runs.key(1) != runs.key("1") != runs.key(None)
    assert runs.key((1, 2)) == runs.key([1, 2])
    with pytest.raises(TypeError, match="dataclass"):
        runs.key({1})  # its order is not the same in every process


def test_a_record_tells_the_packages_of_what_made_its_artefacts(settings, toy, tmp_path):
    from dpmkit import records

    tuned = finetune.train(settings.replace("finetune.epochs", 1), *toy)
    path = tuned.folder.parent / "made.json"
    made = json.loads(path.read_text())

    def origins():
        return json.loads(records.save(settings, "backbone", {}, {"corpus": "toy0", "sllm": tuned.key}, 1.0)
                          .read_text())["origins"]

    assert origins() == {"corpus": {}, "sllm": {}}  # of this machine and commit
    path.write_text(json.dumps(made | {"commit": "0123456789ab", "packages": {"torch": "1.0"}}))
    assert origins()["sllm"] == {"commit": "0123456789ab", "packages": {"torch": "1.0"}}
