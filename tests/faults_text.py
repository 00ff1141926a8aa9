"""Faults of tables, annotations, names and roots: rows of (reader, group, name, what is done to the root, Want)."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

WAVS = "Session1/sentences/wav"
DIALOGUE, TURN = "Ses01F_impro01", "Ses01F_impro01_F000"
SOUND = f"{WAVS}/{DIALOGUE}/{TURN}.wav"
TEXT = f"Session1/dialog/EmoEvaluation/{DIALOGUE}.txt"
TABLE, MELD = "manifest.csv", "dev_sent_emo.csv"


@dataclass(frozen=True)
class Want:
    """`kind`: heard, skip or error; `words`: one of each listed item, or all of an error; `lost`: utterances."""

    kind: str
    words: tuple[str, ...] = ()
    lost: tuple = ()


def heard(*listed):
    """Nothing is lost; what is not read may be listed."""
    return Want("heard", listed)


def skip(*words, lost=()):
    return Want("skip", words, tuple(lost))


def error(*words):
    return Want("error", words)


def edit(path, change):
    """A file's bytes through `change`; the file is made anew, as it is a link to the pristine tree's."""
    def act(root):
        data = (root / path).read_bytes()
        new = change(data)
        assert new != data, "the fault changes nothing"
        (root / path).unlink()
        (root / path).write_bytes(new)
    return act


def sub(path, old, new):
    return edit(path, lambda data: data.replace(old, new, 1))


def add(path, data):
    return edit(path, lambda before: before + data)


def drop(path):
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


def make(path, data=b"", of=None):
    def act(root):
        name = Path(os.fsdecode(os.fsencode(root) + b"/" + (path if isinstance(path,
            bytes) else os.fsencode(path))))
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes((root / of).read_bytes() + b"\0" if of else data)  # a tail: no copy of another recording
    return act


def move(old, new):
    def act(root):
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)
    return act


def empty(root):
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def both(*acts):
    return lambda root: [act(root) for act in acts]


def timed(start, end):
    """Columns start and end, of which the row of c0u1 has these."""
    def change(data):
        lines = data.decode().split()
        cells = {f"c0u{i}": ",0,0.1" for i in range(4)} | {"c0u1": f",{start},{end}"}
        rows = [line + (cells.get(line.split(",")[1], ",,")) for line in lines[1:]]
        return "\n".join([lines[0] + ",start,end", *rows, ""]).encode()
    return edit(TABLE, change)


def cell(column, value):
    """The row of c0u1 with another cell."""
    at = ("conversation", "utterance", "speaker", "emotion", "split", "path").index(column)

    def change(data):
        lines = data.split(b"\n")
        cells = lines[2].split(b",")
        cells[at] = value if isinstance(value, bytes) else value.encode()
        return b"\n".join([*lines[:2], b",".join(cells), *lines[3:]])
    return edit(TABLE, change)


def utf16(data):
    return data.decode().encode("utf-16")


MANIFEST = {
    "byte order mark": (edit(TABLE, lambda d: b"\xef\xbb\xbf" + d), heard()),
    "utf-16": (edit(TABLE, utf16), error(TABLE, "row 1", "not text in UTF-8")),
    "CRLF": (edit(TABLE, lambda d: d.replace(b"\n", b"\r\n")), heard()),
    "CR": (edit(TABLE, lambda d: d.replace(b"\n", b"\r")), heard()),
    "semicolons": (edit(TABLE, lambda d: d.replace(b",", b";")), heard()),
    "tabs": (edit(TABLE, lambda d: d.replace(b",", b"\t")), heard()),
    "bars": (edit(TABLE, lambda d: d.replace(b",", b"|")), error(TABLE, "no column conversation")),
    "utf-16 without a mark": (edit(TABLE, lambda d: d.decode().encode("utf-16-le")), error(TABLE, "UTF-8")),
    "utf-32": (edit(TABLE, lambda d: d.decode().encode("utf-32")), error(TABLE, "row 1")),
    "blank lines": (edit(TABLE, lambda d: d.replace(b"\n", b"\n\n") + b",,,,\n"), heard()),
    "blanks around cells": (edit(TABLE, lambda d: d.replace(b",", b" , ")), heard()),
    "capital headers": (edit(TABLE, lambda d: d.replace(b"conversation,utterance", b"Conversation,UTTERANCE")),
        heard()),
    "extra column": (edit(TABLE, lambda d: d.replace(b"path\n", b"path,mood\n").replace(b".wav\n", b".wav,3\n")),
                     heard()),
    "no file": (drop(TABLE), error("cannot read", TABLE)),
    "a folder": (both(drop(TABLE), lambda r: (r / TABLE).mkdir()), error("cannot read", TABLE)),
    "empty": (edit(TABLE, lambda d: b""), error(TABLE, "columns are none")),
    "blanks alone": (edit(TABLE, lambda d: b" \r\n\t\n"), error(TABLE, "columns are none")),
    "header alone": (edit(TABLE, lambda d: d.split(b"\n")[0] + b"\n"), error("no row below its header")),
    "no header": (edit(TABLE, lambda d: d.split(b"\n", 1)[1]), error(TABLE, "no column conversation", "c0, c0u0")),
    **{f"column {c} is missing": (sub(TABLE, c, b"x9"), error(TABLE, f"no column {c.decode()}", "x9"))
       for c in (b"conversation", b"utterance", b"speaker", b"emotion", b"split", b"path")},
    "column twice": (edit(TABLE, lambda d: d.replace(b"path\n", b"path,path\n").replace(b".wav\n", b".wav,a\n")),
                     error(TABLE, "no column path, or several")),
    "start without end": (edit(TABLE, lambda d: d.replace(b"path\n", b"path,start\n").replace(b".wav\n",
        b".wav,0\n")),
                          heard()),
    "open quotation": (cell("speaker", '"s0'), error(TABLE, "row 3", "quotation mark")),
    "quotation inside": (cell("speaker", 's"0'), heard()), "quotation and more": (
        cell("speaker", '"s"0'), error(TABLE, "row 3")),
    "quoted comma": (cell("speaker", '"s, 0"'), heard()), "cell over two lines": (
        cell("speaker", '"s\n0"'), heard()),
    "NUL": (cell("speaker", b"s\0"), error(TABLE, "row 3", "UTF-8")), "latin-1": (
        cell("speaker", "Zoë".encode("latin-1")), error(TABLE, "row 3", "not text in UTF-8")),
    "mojibake": (cell("speaker", "ZoÃ«"), heard()), "lost characters": (
        cell("speaker", "Zo\ufffd"), error(TABLE, "row 3", "not text in UTF-8")),
    "a million characters in a cell": (cell("speaker", "x" * 10**6), error(TABLE, "row 3")),
    "5000 characters in a cell": (cell("path", "x" * 5000), skip("too long", lost=["c0u1"])),
    "a line of a million": (add(TABLE, b"x" * 10**6), error(TABLE, "row 18")),
    "a million commas": (add(TABLE, b"," * 10**6), heard()),
    "row too short": (add(TABLE, b"c3,c3u9,s6\n"), error(TABLE, "row 18", "3 cells")),
    "row too long": (add(TABLE, b"c3,c3u9,s6,neu,test,a.wav,7\n"), error(TABLE, "row 18", "7 cells")),
    "row twice": (edit(TABLE, lambda d: d + d.split(b"\n")[2] + b"\n"), error(TABLE, "row 18", "row 3")),
    "utterance twice": (cell("utterance", "c0u0"), error(TABLE, "row 3", "'c0_c0u0'")),
    "no conversation": (cell("conversation", ""), error(TABLE, "row 3, conversation: '': string should")),
    "no utterance": (cell("utterance", ""), error(TABLE, "row 3, utterance: '': string should")),
    "no path": (cell("path", ""), error(TABLE, "row 3, path: '': string should")),
    "no speaker": (cell("speaker", ""), heard()), "no emotion": (cell("emotion", ""), heard()),
    "emotion in capitals": (cell("emotion", " NEU "), heard()), "an emotion of its own": (cell("emotion", "woe"),
        heard()),
    "formula": (cell("speaker", "=1+1"), heard()), "formula as utterance": (
        cell("emotion", "=HYPERLINK(1)"), heard()),
    "one emotion alone": (edit(TABLE, lambda d: d.replace(b"hap", b"neu")), error("1 emotion(s) (neu)")),
    "no emotion at all": (edit(TABLE, lambda d: d.replace(b"hap", b"").replace(b"neu", b"")),
                          error("the train conversations of fold 1", "0 emotion(s)")),
    "one conversation": (edit(TABLE, lambda d: b"\n".join(d.split(b"\n")[:5])),
                         error("the validation conversations of fold 1", "0 emotion(s)")),
    "path above the root": (cell("path", "../x.wav"), skip("c0u1: x.wav: does not exist", lost=["c0u1"])),
    "absolute path": (cell("path", "/nowhere/x.wav"), skip("x.wav: does not exist", lost=["c0u1"])),
    "address": (cell("path", "http://example.org/x.wav"), skip("x.wav: does not exist", lost=["c0u1"])),
    "home path": (cell("path", "~/x.wav"), skip("x.wav: does not exist", lost=["c0u1"])),
    "Windows path": (cell("path", "clips\\c0u1.wav"), skip("does not exist", lost=["c0u1"])),
    "path of the root": (cell("path", "."), skip("is a folder", lost=["c0u1"])),
    "path of the table": (cell("path", TABLE), skip("is not audio", lost=["c0u1"])),
    "path beyond 255 bytes": (cell("path", "é" * 200 + ".wav"), skip("cannot be read", lost=["c0u1"])),
    "path below a file": (cell("path", "clips/c0u0.wav/x.wav"), skip("", lost=["c0u1"])),
    "most paths wrong": (edit(TABLE, lambda d: d.replace(b"clips/", b"clip/")), error(TABLE, "16 of 16 rows",
        "16 item(s) are skipped, e.g. c0u0: c0u0.wav: does not exist")),
    "times": (timed("0", "0.1"), heard()), "times in one row less": (timed("", ""), heard()),
    "decimal comma": (timed('"0,05"', '"0,1"'), heard()),
    **{f"time {kind}": (timed(start, end), error(TABLE, "row 3, start"))
       for kind, (start, end) in {
           "not a number": ("soon", "1"), "nan": ("nan", "1"), "inf": ("0", "inf"), "negative": ("-1", "1"),
           "of a clock": ("0:01", "0:02"), "back": ("0.1", "0.05"), "of no length": ("0.05", "0.05"),
           "at its end": ("0.1", ""), "beyond the file": ("0", "9"), "a formula": ("=1+1", "3")}.items()},
    "an html page": (edit(TABLE, lambda d: b"<!DOCTYPE html><html>\n" * 9), error(TABLE,
        "no column conversation", "html")),
    "a spreadsheet": (edit(TABLE, lambda d: b"PK\x03\x04\x14\0" * 9), error(TABLE, "not text in UTF-8")),
    "no split": (cell("split", ""), error(TABLE, "row 3, split: '': input should be")),
    "an unknown split": (cell("split", "all"), error(TABLE, "row 3, split: 'all': input should be")),
    "a conversation in two splits": (cell("split", "TEST"), error(TABLE, "row 3, split: 'test' is not 'train'")),
    "all in train": (edit(TABLE, lambda d: d.replace(b"dev", b"train").replace(b"test", b"train")),
                     error("the validation conversations of fold 1", "0 emotion(s)")),
}
LINE = ",What,Ross,joy,positive,0,99,1,2,"
GOOD = "9" + LINE + '"00:00:01,000","00:00:02,000"\r\n'


def line(*changes):
    """A row added to dev, of dialogue 0 and utterance 99, in which this is replaced."""
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return add(MELD, text.encode())


NO_CLIP = "dev_dia0_utt99: has a row"
MELD_CSV = {
    "one row more": (line(), skip(NO_CLIP)), "byte order mark": (edit(MELD, lambda d: b"\xef\xbb\xbf" + d),
        heard()),
    "LF": (edit(MELD, lambda d: d.replace(b"\r\n", b"\n")), heard()), "CR": (
        edit(MELD, lambda d: d.replace(b"\r\n", b"\r")), heard()),
    "extra column": (edit(MELD, lambda d: d.replace(b"\r\n", b",x\r\n")), heard()),
    "columns that are not read are missing": (edit(MELD, lambda d: d.replace(b"Season", b"S").replace(
        b"Sentiment", b"T")), heard()),
    "blank lines": (edit(MELD, lambda d: d.replace(b"\r\n", b"\r\n\r\n")), heard()),
    "utterance over two lines": (line(("What", '"Wh\r\nat"')), skip(NO_CLIP)),
    "mojibake": (line(("What", "Whatâ€™s")), skip(NO_CLIP)), "utterance is a formula": (
        line(("What", "=1+1")), skip(NO_CLIP)), "emotion in capitals": (line(("joy", "JOY")), skip(NO_CLIP)),
    "NUL in the utterance": (line(("What", "Wh\0at")), error(MELD, "not text in UTF-8")),
    "utf-16": (edit(MELD, utf16), error(MELD, "not text in UTF-8")),
    "latin-1": (add(MELD, GOOD.replace("Ross", "Zoë").encode("latin-1")), error(MELD, "not text in UTF-8")),
    "empty": (edit(MELD, lambda d: b""), error(MELD, "columns are none")),
    "header alone": (edit(MELD, lambda d: d.split(b"\r\n")[0]), error(MELD, "no row")),
    "no header": (edit(MELD, lambda d: d.split(b"\r\n", 1)[1]), error(MELD, "no column Speaker")),
    **{f"column {c} is missing": (sub(MELD, c.encode(), b"x"), error(MELD, f"no column {c}")) for c in (
        "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")},
    "column misspelt": (sub(MELD, b"Emotion", b"Emotoin"), error(MELD, "no column Emotion")),
    "column in another case": (sub(MELD, b"Emotion", b"emotion"), heard()),
    "semicolons": (edit(MELD, lambda d: d.replace(b",", b";")), heard()),
    "tabs": (edit(MELD, lambda d: d.replace(b",", b"\t")), heard()),
    "open quotation": (line(("What", '"What')), error(MELD, "")), "quotation and more": (
        line(("What", '"Wh"at')), error(MELD, "no row of a table")),
    "a million characters in a cell": (line(("What", "x" * 10**6)), error(MELD, "field larger")),
    "row too short": (add(MELD, b"9,Hi,Ross\r\n"), error(MELD, "3 cells")), "row too long": (
        line(("99,1,2,", "99,1,2,3,")), error(MELD, "12 cells")),
    "unknown emotion": (line(("joy", "bliss")), error(MELD, "Emotion: 'bliss': input should be 'neu")),
    "no emotion": (line(("joy", "")), error(MELD, "Emotion: ''")), "no speaker": (
        line(("Ross", " ")), error(MELD, "Speaker: ''")),
    "number as 0.0": (line((",0,99,", ",0.0,99,")), skip(NO_CLIP)),
    "number is a word": (line((",0,99,", ",0,last,")), error(MELD, "Utterance_ID: 'last'")),
    "number negative": (line((",0,99,", ",0,-1,")), error(MELD, "Utterance_ID: '-1'")),
    "number nan": (line((",0,99,", ",nan,99,")), error(MELD, "Dialogue_ID: 'nan'")),
    "number endless": (line((",0,99,", f",0,{'9' * 5000},")), error(MELD, "Utterance_ID")),
    "number in other digits": (line((",0,99,", ",0,٩٩,")), error(MELD, "Utterance_ID")),
    "row twice": (edit(MELD, lambda d: d + d.splitlines(True)[-1]), error(MELD, "stands there twice")),
    "no file": (drop(MELD), error("is not MELD", "dev has not")),
    "a folder": (both(drop(MELD), lambda r: (r / MELD).mkdir()), error("is not MELD", "dev has not")),
    "a page": (edit(MELD, lambda d: b"<html>\n" * 50), error(MELD, "no column")),
    "two tables": (make(f"old/{MELD}", b"x"), error("is not MELD", "dev has not, or has several")),
    "a link to nowhere": (both(drop(MELD), lambda r: (r / MELD).symlink_to("x")), error("cannot read", MELD)),
    "no clip of dev": (drop("dev"), error("dev has not")), "clip without a row": (
        make("dev/x/dia9_utt0.wav", b"x"), skip("dev/x/dia9_utt0.wav: has no row")),
    "clip of no split": (make("x/dia9_utt0.wav", b"x"), skip("x/dia9_utt0.wav: is not named like")),
    "clip of two splits": (make("train/test/dia0_utt1.wav", b"x"), skip("in a folder of train")),
    "second cut": (make("test/final_videos_testdia0_utt1.wav", b"x"), skip("final_videos_test")),
    "clip twice": (make("train/x/dia0_utt1.mp4", b"x"), skip("another of the same clip")),
    "clip missing": (drop("train/train_splits/dia0_utt1.wav"), skip(
        "train_dia0_utt1: has a row", lost=["train_dia0_utt1"])),
}
BAD_LINE = skip("Ses01F_impro01.txt, line 3: is not [start", f"{TURN}.wav: belongs to no", lost=[TURN])
FIRST = b"[0.0000 - 0.1000]\tSes01F_impro01_F000\tneu"
IEMOCAP = {
    "CRLF": (edit(TEXT, lambda d: d.replace(b"\n", b"\r\n")), heard()), "CR": (
        edit(TEXT, lambda d: d.replace(b"\n", b"\r")), heard()),
    "byte order mark": (edit(TEXT, lambda d: b"\xef\xbb\xbf" + d), heard()),
    "latin-1 comment": (add(TEXT, b"C-E9: caf\xe9\n"), heard()), "NUL in a comment": (add(TEXT, b"C-\0\n"),
        heard()),
    "spaces for tabs": (edit(TEXT, lambda d: d.replace(b"\t", b"  ")), heard()),
    "label in capitals": (sub(TEXT, b"F000\tneu", b"F000\tNEU"), heard()),
    "unknown label": (sub(TEXT, b"F000\tneu", b"F000\tjoy"), heard()),
    "no label": (sub(TEXT, b"F000\tneu", b"F000"), BAD_LINE),
    "no bracket": (sub(TEXT, b"0.1000]", b"0.1000"), BAD_LINE),
    "no dash": (sub(TEXT, b"0.0000 -", b"0.0000"), BAD_LINE),
    "decimal comma": (sub(TEXT, b"0.0000", b"0,0000"), BAD_LINE),
    "time nan": (sub(TEXT, b"0.0000", b"nan"), BAD_LINE),
    "time negative": (sub(TEXT, b"0.0000", b"-0.05"), BAD_LINE),
    "time endless": (sub(TEXT, b"0.1000", b"9" * 400), BAD_LINE),
    "end before start": (sub(TEXT, b"[0.0000 - 0.1000]", b"[0.1000 - 0.0100]"), BAD_LINE),
    "end is start": (sub(TEXT, b"0.1000", b"0.0000"), BAD_LINE),
    "turn twice": (edit(TEXT, lambda d: d + d[d.index(FIRST):].split(b"\n")[0] + b"\n"),
        heard("a turn's second line")),
    "turn of another dialogue": (sub(TEXT, b"impro01_F000", b"impro02_F000"), BAD_LINE),
    "gender X": (sub(TEXT, b"_F000", b"_X000"), BAD_LINE),
    "gender in small": (sub(TEXT, b"_F000", b"_f000"), BAD_LINE),
    "other dialogue's gender letter": (sub(TEXT, b"F_impro01_F000", b"M_impro01_F000"), BAD_LINE),
    "a line of a million": (add(TEXT, b"[" + b"x" * 10**6 + b"\n"), heard("is not [start - end]")),
    "line of another turn": (add(TEXT, b"[9.0 - 9.5]\tSes01F_impro01_M099\tneu\t[1, 2, 3]\n"), heard(
        "Ses01F_impro01_M099: its wav is missing")),
    "wav missing": (drop(SOUND), skip(f"{TURN}: its wav is missing", lost=[TURN])),
    "wav without a line": (make(f"{WAVS}/{DIALOGUE}/{DIALOGUE}_F099.wav", of=SOUND),
        heard("belongs to no annotated")),
    "wav named in small": (move(SOUND, SOUND.replace("F000.wav", "f000.wav")), skip(
        "its wav is missing", "no annotated turn", lost=[TURN])),
    "wav with .WAV": (move(SOUND, SOUND.replace(".wav", ".WAV")), heard()),
    "wav a folder too high": (move(SOUND, f"{WAVS}/{TURN}.wav"), skip(
        "its wav is missing", "of its folder's dialogue", lost=[TURN])),
    "resource forks": (both(make(f"{WAVS}/{DIALOGUE}/._{TURN}.wav", b"\0\5\26\7"), make(
        "Session1/dialog/EmoEvaluation/._a.txt", b"\0\5\26\7"), make("Session1/.DS_Store")), heard()),
    "another text": (make("Session1/dialog/EmoEvaluation/notes.txt", b"hi"), heard()),
    "a copy": (make(f"Session1/dialog/EmoEvaluation/{DIALOGUE} (1).txt", of=TEXT),
        heard()),
    "wrong root, a session": (lambda r: move("Session1", "x/Session1")(r) or move("Session2", "y/Session2")(r),
                              error("is not IEMOCAP", "found x/, y/")),
    "one session": (drop("Session2"), error("1 session(s)")),
    "no Session folders": (both(move("Session1", "a"), move("Session2", "b")), error("is not IEMOCAP")),
    "inside a session": (both(*(lambda r, n=n: [p.rename(r / f"{n}{p.name}") for p in (r / n).iterdir()] and
                                (r / n).rmdir() for n in ("Session1", "Session2"))), error("is not IEMOCAP")),
    "deep below the root": (both(*(move(f"Session{n}", f"a/b/Session{n}") for n in (1, 2))), heard()),
    "deeper below the root": (both(*(move(f"Session{n}", f"a/b/c/Session{n}") for n in (1, 2))), heard()),
}
TURNS = [f"{DIALOGUE}_{g}{n:03d}" for n in (0, 1) for g in "FM"]
SES1 = [f"Ses01{d}_{g}{n:03d}" for d in ("F_impro01", "F_script01_1", "M_impro02", "M_script02_1b")
        for n in (0, 1) for g in "FM"]
IEMOCAP |= {
    **{n: (edit(TEXT, f), skip(*[f"{turn}.wav: belongs to no" for turn in TURNS], lost=TURNS)) for n, f in {
        "empty dialogue": lambda d: b"", "header alone": lambda d: d.split(b"\n")[0], "utf-16": utf16,
        "a page": lambda d: b"<html>\n" * 9}.items()},
    "dialogue's text missing": (drop(TEXT), skip(*[f"{turn}.wav: belongs to no" for turn in TURNS], lost=TURNS)),
    "dialogue's wavs missing": (drop(f"{WAVS}/{DIALOGUE}"), skip(*[f"{turn}: its wav is missing" for turn in TURNS],
                                                                 lost=TURNS)),
    "no EmoEvaluation": (drop("Session1/dialog"), error("1 session(s)")),
    "no sentences": (drop("Session1/sentences"), error("1 session(s)")),
}
ODD = {  # names of a file that is fine
    "blanks": " a  b .wav", "composed": "caf\u00e9.wav", "decomposed": "cafe\u0301.wav", "newline": "a\nb.wav",
    "emoji": "\U0001f622.wav", "255 bytes": "é" * 125 + "x.wav", "not UTF-8": b"caf\xe9.wav", "dash": "-rf.wav",
    "quotes": "'a\"b'.wav", "semicolons": "a;b.wav", "comma": "a,b.wav", "percent": "%s%03d.wav",
        "glob": "[*?].wav",
    "dollar": "$(x)`y`.wav", "backslash": "a\\b.wav", "right to left": "\u202ea.wav", "tab": "a\tb.wav",
    "escape": "\x1b[31m.wav", "colon": "http:a.wav", "bar": "concat:a|b.wav", "two suffixes": "a.wav.wav"}


def named(name):
    """The row of c0u1 with a file of this name, in quotes."""
    return both(make(f"clips/{name}", of="clips/c0u1.wav"), cell("path", '"clips/' + name.replace('"', '""') + '"'))


NAMES = []
for _kind, _name in ODD.items():
    NAMES.append(("emodb", _kind, make(os.fsencode("wav/") + os.fsencode(_name), of="wav/03a01Na.wav"),
                  heard("not named like")))
    NAMES.append(("meld", _kind, make(os.fsencode("train/") + os.fsencode(_name), b"x"), heard("not named like")))
    NAMES.append(("iemocap", _kind, make(os.fsencode(f"{WAVS}/{DIALOGUE}/") + os.fsencode(_name), of=SOUND),
                  heard("belongs to no annotated turn")))
    spoken = make(os.fsencode("neu/") + (b"" if len(os.fsencode(_name)) > 250 else b"spk1_") + os.fsencode(_name),
                  of="neu/spk1_1.wav")
    NAMES.append(("folders", _kind, spoken, heard(
        "does not find its groups") if _kind == "255 bytes" else heard()))
    if _kind == "not UTF-8":
        NAMES.append(("manifest", _kind, cell("path", b"clips/" + _name), error(TABLE, "row 3", "not text")))
    else:
        NAMES.append(("manifest", _kind, named(_name), heard()))
FOLDERS = {
    "no audio": (lambda r: [p.rename(p.with_suffix(".txt")) for p in r.glob("*/*.wav")], error("0 emotion(s)")),
    "one emotion": (both(drop("hap"), drop("sad"), drop("ang")), error("1 emotion(s)")),
    "an emotion without audio": (make("fear/read.me"), heard()),
    "an empty folder": (lambda r: (r / "fear").mkdir(), heard()),
    "audio in the root": (make("spk1_1.wav", of="neu/spk1_1.wav"), heard("lies in the root")),
    "nested": (move("neu/spk1_1.wav", "neu/a/b/c/spk1_1.wav"), heard()),
    "a name without a speaker": (move("neu/spk1_1.wav", "neu/x.wav"), skip("does not find its groups", lost=[1])),
    "no name has a speaker": (lambda r: [p.rename(p.with_name(f"{i}.wav")) for i, p in enumerate(r.glob("*/*"))],
                              error("source.pattern", "does not find its groups in its name")),
    "five speakers": (lambda r: [p.unlink() for p in r.glob("*/spk6*")], error("5 speaker(s)", "6 speakers")),
    "the same twice": (lambda r: shutil.copy(r / "neu/spk1_1.wav", r / "neu/spk1_2.wav"),
        heard("same recording as")),
    "the same of two emotions": (lambda r: shutil.copy(r / "neu/spk1_1.wav", r / "hap/spk1_2.wav"), skip(
        "same recording as", lost=[1])),
    "one level too high": (lambda r: [(r / "x").mkdir()] + [p.rename(r / "x" / p.name) for p in r.iterdir()
                                                            if p.name != "x"], error("1 emotion(s)")),
    "resource forks": (make("neu/._spk1_1.wav", b"\0\5\26\7"), heard()),
    "capital suffix": (move("neu/spk1_1.wav", "neu/spk1_1.WAV"), heard()),
    "a video that is none": (make("neu/spk1_2.mp4", b"x"), heard("spk1_2.mp4: is not audio")),
}
EMODB = {
    "another emotion's letter": (move("wav/03a01Na.wav", "wav/03a01Xa.wav"), skip("not named like", lost=[1])),
    "an emotion outside the set": (move("wav/03a01Na.wav", "wav/03a01La.wav"), skip(
        "1 file(s) of boredom", lost=[1])),
    "capital suffix": (move("wav/03a01Na.wav", "wav/03a01Na.WAV"), heard()),
    "another format": (move("wav/03a01Na.wav", "wav/03a01Na.flac"), heard()),
    "a folder deeper": (move("wav/03a01Na.wav", "wav/x/03a01Na.wav"), heard()),
    "the same twice": (make("mp3/03a01Na.mp3", of="wav/03a01Na.wav"), heard("another of the same clip")),
    "five speakers": (lambda r: [p.unlink() for p in r.glob("wav/03*")], error("5 speaker(s)")),
    "resource forks": (make("wav/._03a01Na.wav", b"\0\5\26\7"), heard()),
    "labels beside it": (make("lablaut/03a01Na.lablaut"), heard()),
}
ROOTS = {"empty root": empty, "a page in the root": lambda r: (empty(r), (r / "index.html").write_text("<html>")),
         "archive in the root": lambda r: (empty(r), (r / "corpus.tar.gz").write_bytes(b"\x1f\x8b"))}
TEXTS = [("manifest", "table", n, *c) for n, c in MANIFEST.items()] + [
    ("meld", "table", n, *c) for n, c in MELD_CSV.items()] + [
    ("iemocap", "annotation", n, *c) for n, c in IEMOCAP.items()] + [
    ("folders", "tree", n, *c) for n, c in FOLDERS.items()] + [("emodb", "tree", n, *c) for n,
        c in EMODB.items()] + [
    (reader, "name", n, act, want) for reader, n, act, want in NAMES] + [
    (reader, "root", n, act, error(words)) for n, act in ROOTS.items() for reader, words in (
        ("emodb", "is not EmoDB"), ("iemocap", "is not IEMOCAP"), ("meld", "is not MELD"),
        ("manifest", "cannot read"), ("folders", "0 emotion(s)"))]
