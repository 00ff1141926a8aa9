"""What a reader tries in notebooks 01 and 03: widgets, and below them outputs that are drawn anew in place.

The first state is an ordinary output, which papermill keeps and every page shows. (What stands in an Output widget
is in no file.) Of other corpora than `demo` a page holds no sound, as they are not ours to pass on; whoever picks
something here hears it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import soundfile
from IPython.display import HTML, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from . import audio, cheaper, plots, protocols, tables
from .codes import CorpusCodes
from .corpora import Conversation, Corpus, Utterance
from .finetune import Finetuned
from .settings import Settings, UserError

RATES = (0.0, 5e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
ERRORS = 8  # how many are listed
SHOWN = {"turn": "turn", "speaker": "speaker", "emotion": "true label", "answer": "answer", "p": "its probability",
         "window": "window answers", "loss": "L_t, nats"}
SILENT = "No sound is embedded, as the corpus is not ours to pass on: run the notebook, and pick something to hear."


class Place:
    """Outputs of a cell that are drawn anew in place; what cannot be is told in `words` above the last ones."""

    def __init__(self, *controls: widgets.Widget):
        self.words, self.drawn = widgets.HTML(), []
        for control in controls:
            control.style.description_width = "7em"
        display(widgets.VBox([*controls, self.words]))

    def show(self, make: Callable[[], Sequence[Any]]) -> None:
        """Show what `make` gives, one output each, in the place of the last ones; a UserError in words."""
        try:
            made = make()
        except UserError as error:
            if not self.drawn:
                raise
            self.words.value = escape(str(error))
            return
        self.words.value = ""
        for place, one in zip(self.drawn, made, strict=False):
            place.update(one)
        self.drawn += [display(one, display_id=True) for one in made[len(self.drawn):]]


def player(one: Utterance) -> str:
    """A player of an utterance, as HTML that holds its sound (mp3, some 5 kB per second)."""
    sound = BytesIO()
    waveform = audio.read(one.audio.path, one.audio.start, one.audio.end)
    soundfile.write(sound, np.clip(waveform, -1, 1), audio.RATE, format="MP3")
    return f'<audio controls src="data:audio/mpeg;base64,{base64.b64encode(sound.getvalue()).decode()}"></audio>'


def players(corpus: Corpus, utterances: Sequence[Utterance], told: pd.DataFrame | None = None,
            picked: bool = False) -> HTML:
    """A table of utterances with a player each, where the corpus may be passed on or somebody has `picked` them;
    `told`: what to say of them, a row each."""
    if told is None:
        told = pd.DataFrame({"emotion": [u.emotion for u in utterances], "speaker": [u.speaker for u in utterances],
                             "length, s": [f"{u.seconds:.1f}" for u in utterances],
                             "utterance": [u.id for u in utterances]})
    told, sound = told.map(lambda of: "–" if pd.isna(of) else escape(str(of))), picked or corpus.name == "demo"
    if sound:
        told["play"] = list(map(player, utterances))
    return HTML(tables.shown(told, escape=False).data + ("" if sound else f"<p>{SILENT}</p>"))


def utterances(settings: Settings, corpus: Corpus, codes: CorpusCodes) -> dict[str, widgets.Widget]:
    """Pick a conversation and a turn of it: its spectrogram and codes, and a player. Returns the widgets."""
    by_id = {c.id: c for c in corpus.conversations}
    which = widgets.Dropdown(options=list(by_id), description="conversation")
    turn = widgets.IntSlider(max=len(by_id[which.value].utterances) - 1, description="turn",
                             continuous_update=False)
    place = Place(which, turn)

    def made() -> list[Any]:
        one = by_id[which.value].utterances[turn.value]
        waveform = audio.read(one.audio.path, one.audio.start, one.audio.end)
        figure = plots.utterance(waveform, codes.codes[one.id], codes.facts["frame_rate"],
                                 codes.facts["codebook_size"])
        of = f"{one.id}, speaker {one.speaker}, {one.emotion or 'no label'}, {one.seconds:.1f} s"
        return [*_drawn(figure, settings, "codes", of, place), players(corpus, [one], picked=bool(place.drawn))]

    def picked(_: Any) -> None:
        turn.max = len(by_id[which.value].utterances) - 1
        place.show(made)

    place.show(made)
    for widget in (which, turn):
        widget.observe(picked, "value")
    return {"conversation": which, "turn": turn, "words": place.words}


def errors(corpus: Corpus, answers: Mapping[str, pd.DataFrame], method: str = "dpm-tuned") -> widgets.Dropdown:
    """The wrong answers that a method is surest of, with players. Returns the widget that picks the method."""
    by_id, columns = _utterances(corpus.conversations), [f"p_{e}" for e in corpus.emotions]
    which = widgets.Dropdown(options=list(answers), value=method, description="method")
    place = Place(which)

    def made() -> list[Any]:
        table = answers[which.value].dropna(subset="emotion")
        table = table.assign(p=table[columns].max(axis=1), answer=_answers(table, corpus.emotions))
        wrong = table[table["answer"] != table["emotion"]].nlargest(ERRORS, "p")
        told = wrong.assign(p=wrong["p"].map("{:.2f}".format))[["conversation", *list(SHOWN)[:5]]]
        return [players(corpus, [by_id[i] for i in wrong["utterance"]], told.rename(columns=SHOWN),
                        picked=bool(place.drawn))]

    place.show(made)
    which.observe(lambda _: place.show(made), "value")
    return which


def conversations(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
                  answers: Mapping[str, pd.DataFrame]) -> dict[str, widgets.Widget]:
    """Pick a test conversation: what `dpm` at `settings.memory` answers, turn by turn, with players. Move a slider,
    and that conversation is heard again with other settings, bounded by what the window holds. Returns the widgets.
    `answers`: of `window`, and of `dpm-tuned`, whose settings these are."""
    own, columns = settings.memory, [f"p_{e}" for e in corpus.emotions]
    known = answers["dpm-tuned"].groupby("conversation", sort=False)
    by_id = {c.id: c for c in corpus.conversations if c.id in known.groups}
    longest = sorted(by_id, key=lambda i: -len(by_id[i].utterances))
    room = tuned.sllm.window - own.sinks - 1 - max(len(codes.codes[u]) for u in _utterances(by_id.values()))
    lengths = sorted({own.prefix, *(n for n in (0, *(2 ** k for k in range(4, 16))) if n <= room)})
    which = widgets.Dropdown(options=longest, description="conversation")
    given = {
        "lr": widgets.SelectionSlider(options=[(f"{lr:g}", lr) for lr in sorted({*RATES, own.lr})], value=own.lr,
                                      description="lr", continuous_update=False),
        "steps": widgets.IntSlider(own.steps, min=min(1, own.steps), max=max(4, own.steps), description="steps",
                                   continuous_update=False),
        "prefix": widgets.SelectionSlider(options=lengths, value=own.prefix, description="n_r, tokens",
                                          continuous_update=False)}
    progress = widgets.IntProgress(description="turns")
    place = Place(which, *given.values(), progress)

    def made() -> list[Any]:
        asked = own.but(**{name: slider.value for name, slider in given.items()})
        one = by_id[which.value]
        table = known.get_group(one.id)
        if asked != own:
            table = heard(settings.but(memory=asked), corpus, codes, tuned, one, progress)
        window = answers["window"][answers["window"]["conversation"] == one.id]
        told = table.assign(
            loss=table["loss"].map("{:.3f}".format, na_action="ignore"),
            answer=_answers(table, corpus.emotions).to_numpy(), p=table[columns].max(axis=1).map("{:.2f}".format),
            window=_answers(window, corpus.emotions).to_numpy())[[*SHOWN]]
        right = [f"{(told[name] == told['emotion']).sum()} of {told['emotion'].notna().sum()}"
                 for name in ("answer", "window")]
        of = (f"{one.id}, {len(table)} turns; dpm at lr {asked.lr:g}, steps {asked.steps}, n_r {asked.prefix} "
              f"answers {right[0]} rightly, window {right[1]}")
        return [*_drawn(plots.trace(table, corpus.emotions), settings, "trace", of, place),
                players(corpus, one.utterances, told.rename(columns=SHOWN), picked=bool(place.drawn))]

    place.show(made)
    for widget in (which, *given.values()):
        widget.observe(lambda _: place.show(made), "value")
    return {"conversation": which, **given, "progress": progress, "words": place.words}


def heard(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, one: Conversation,
          progress: widgets.IntProgress) -> pd.DataFrame:
    """One conversation by `dpm` at `settings.memory`: the rows of `protocols.predict`; `progress` goes with it."""
    turns, fold = [], corpus.folds[settings.fold - 1]
    progress.max, progress.value = len(one.utterances), 0
    chain = protocols.inertia_of(corpus, fold) if settings.memory.target == "filtered" else None
    memory = cheaper.memory(tuned.sllm, settings.memory, 1, settings.seed, chain)
    spoken, speakers = zip(*((codes.codes[u.id], u.speaker) for u in one.utterances), strict=True)
    for turn in memory.listen(spoken, speakers=speakers):
        turns.append(turn)
        progress.value += 1
    done = pd.DataFrame(map(vars, turns))
    p = np.stack(done.pop("probabilities"))
    return protocols.answered(protocols.rows([one]), corpus.emotions, p).join(done)


def _drawn(figure: Figure, settings: Settings, name: str, of: str, place: Place) -> list[Any]:
    """A figure and its caption; the first state is kept as the notebook's figure of this name."""
    if not place.drawn:
        path, caption = plots.saved(figure, settings, name, of)
        return plots.captioned(path.read_bytes(), caption)
    png = BytesIO()
    figure.savefig(png, format="png")
    plt.close(figure)
    return plots.captioned(png.getvalue(), of)


def _answers(table: pd.DataFrame, emotions: Sequence[str]) -> pd.Series:
    return table[[f"p_{e}" for e in emotions]].idxmax(axis=1).str.removeprefix("p_")


def _utterances(some: Any) -> dict[str, Utterance]:
    return {u.id: u for c in some for u in c.utterances}
