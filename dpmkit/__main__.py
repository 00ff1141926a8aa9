"""`python -m dpmkit`: reproduce, publish, segment, bench and more. Exit 2 and one line for the user's mistakes."""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .settings import PROFILES, Settings, UserError


def main(arguments: list[str] | None = None) -> int:
    """Parse and run; returns the exit code: 2 for the user's mistakes, 1 for other failures, 130 for a stop."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows no × or ü must not end a run
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("dpmkit: stopped; finished stages are kept, run again to go on", file=sys.stderr)
        return 130
    except (UserError, RuntimeError) as error:
        print(f"dpmkit: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


def _parser() -> argparse.ArgumentParser:
    home, values, corpus, cells = (argparse.ArgumentParser(add_help=False) for _ in range(4))
    home.add_argument("--home", default="", help="folder of runs/ and results/ (default: the checkout)")
    values.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="override a setting, e.g. memory.lr=1e-3 (may be repeated)")
    values.set_defaults(profile="demo", corpus="", root="")
    corpus.add_argument("--profile", default="demo", help=f"one of {', '.join(PROFILES)}")
    corpus.add_argument("--corpus", default="", help="default: the profile's")
    corpus.add_argument("--root", default="", help="the corpus' folder; relative to the working directory")
    cells.add_argument("--folds", type=numbers, default=[1], help="e.g. 1, or 1,3, or all (default 1)")
    cells.add_argument("--seeds", type=numbers, default=[0], help="e.g. 0 or 0,1,2 (default 0)")
    parser = argparse.ArgumentParser(prog="dpmkit", description="Dynamic Parameter Memory, reproduced")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(does: Callable, *options: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = commands.add_parser(does.__name__[1:], parents=[home, *options], help=does.__doc__)
        added.set_defaults(run=does)
        return added

    reproduce = command(_reproduce, values, corpus, cells)
    reproduce.add_argument("--notebooks", default="", help="e.g. 01,03 (default: all five)")
    reproduce.add_argument("--ray", nargs="?", const="local", default="", metavar="ADDRESS",
                           help="run folds and seeds side by side on Ray: on this machine, or at this address")
    command(_train, values, corpus)
    command(_settings, values, corpus)
    command(_report)
    command(_publish)
    segment = command(_segment, values)
    segment.add_argument("recordings", nargs="+", metavar="RECORDING", help="an audio or video file")
    segment.add_argument("--out", required=True, metavar="FOLDER", help="where manifest.csv is written")
    listen = command(_listen, values)
    listen.add_argument("recording", help="an audio or video file")
    listen.add_argument("--sllm", default="", metavar="FOLDER", help="a trained SLLM, as `train` prints it "
                        "(default: the one trained last; `make quick` trains one)")
    listen.add_argument("--out", default=".", metavar="FOLDER", help="of table, labels and page (default: here)")
    listen.add_argument("--turns", default="", metavar="CSV", help="start, end, speaker of each turn, in seconds "
                        "(default: turns are found by voice activity)")
    plan = command(_plan, values, corpus, cells)
    plan.add_argument("--tflops", type=float, default=0.0,
                      help="rate of a large product on the GPU planned for (default: of this machine, measured)")
    command(_bench, values, corpus).add_argument("what", choices=("memory", "context", "reproduce"))
    return parser


def _asked(options: argparse.Namespace) -> tuple[Settings, dict[str, Any]]:
    """The settings that a command asks for, and its overrides alone."""
    overrides = {}
    for pair in options.overrides:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes NAME=VALUE, e.g. --set memory.lr=1e-3, not {pair!r}")
        try:
            overrides[name] = ast.literal_eval(value.title() if value in ("true", "false") else value)
        except (ValueError, SyntaxError):
            overrides[name] = value
        path = os.path.abspath(os.path.expanduser(value))  # of the working directory
        if name.endswith((".source", ".sequences")) and os.path.exists(path):
            overrides[name] = path
    settings = Settings.of(options.profile, overrides, home=options.home)
    # Relative to the project folder, so that no record holds a path of this machine.
    root = os.path.relpath(options.root, settings.home_path) if options.root else settings.root
    return settings.but(corpus=options.corpus or settings.corpus, root=root), overrides


def numbers(text: str) -> list[int]:
    """The numbers in an option, such as 1,3; none for all."""
    return [] if text == "all" else [int(part) for part in text.split(",")]


def _folds(options: argparse.Namespace, corpus: Any) -> list[int]:
    known = range(1, len(corpus.folds) + 1)
    if unknown := [fold for fold in options.folds if fold not in known]:
        raise UserError(f"fold {unknown[0]} does not exist: corpus {corpus.name!r} has folds 1 to {known[-1]}")
    return options.folds or list(known)


# -- commands: the name without its underscore, and the docstring as help. Each imports what it needs. ------------

def _reproduce(options: argparse.Namespace) -> int:
    """run the notebooks headlessly, beside the reference"""
    from . import corpora, findings, records, reproduce, tables

    settings, overrides = _asked(options)
    folds = _folds(options, corpora.load(settings))
    cells = [settings.override({"fold": fold, "seed": seed}) for fold in folds for seed in options.seeds]
    notebooks = [name for name in reproduce.NOTEBOOKS if name.startswith(tuple(options.notebooks.split(",")))]
    if not notebooks:
        raise UserError(f"--notebooks {options.notebooks!r} names none of {', '.join(reproduce.NOTEBOOKS)}")
    failed: dict[str, str] = {}
    if options.ray:
        failed = reproduce.run_grid(cells, notebooks, overrides, options.ray)
    else:
        for cell in cells:
            reproduce.run(cell, notebooks, overrides)
    names = {cell.run_name for cell in cells}
    ran = [r for r in records.load_all(settings.own_path) if r["run"] in names
           and (r["profile"], r["corpus"]) == (settings.profile, settings.corpus)]
    reference = records.load_all(records.REFERENCE)
    print(findings.told(ran), *(tables.beside(r, reference) for r in ran if r["kind"] == "methods"), sep="\n\n")
    _report(options)
    for name, reason in failed.items():
        print(f"dpmkit: {name} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _train(options: argparse.Namespace) -> None:
    """fine-tune the SLLM of a corpus, alone or on all processes of accelerate launch or torchrun"""
    from accelerate import PartialState
    from torch.distributed import DistNetworkError

    from . import codes, corpora, finetune, machine

    settings, _ = _asked(options)
    try:
        process = PartialState(cpu=machine.device(settings).type == "cpu")
    except DistNetworkError as error:
        raise UserError(f"the processes cannot meet at {os.environ.get('MASTER_ADDR')}: use torchrun --standalone "
                        "on one machine, or give another --master-port") from error
    with process.main_process_first():  # the others find what it has made
        data = corpora.load(settings)
        spoken = codes.make(settings, data)
    tuned = finetune.train(settings, data, spoken)
    process.print(tuned.folder)


def _settings(options: argparse.Namespace) -> None:
    """print the settings of a profile as JSON"""
    print(json.dumps(_asked(options)[0].flat(), indent=1))


def _report(options: argparse.Namespace) -> None:
    """write the page of one's own results from their records"""
    from . import report

    print("wrote", report.write(Settings(home=options.home).own_path)[0], file=sys.stderr)


def _publish(options: argparse.Namespace) -> None:
    """make one's own results the committed reference"""
    from . import records, report

    readme = records.REFERENCE.parent / "README.md"
    if not readme.is_file():
        raise UserError(f"{records.REFERENCE.parent} is no checkout of dpmkit: publish from a clone")
    print("published", *records.publish(Settings(home=options.home).own_path, records.REFERENCE), file=sys.stderr)
    print("wrote", *report.write(records.REFERENCE, readme), file=sys.stderr)


def _segment(options: argparse.Namespace) -> int:
    """find the utterances of recordings: a table to label, for the corpus manifest"""
    from .corpora import manifest

    table, skipped = manifest.prepare(_asked(options)[0], options.recordings, options.out)
    for left_out in skipped:
        print(f"dpmkit: {left_out.item}: {left_out.reason}", file=sys.stderr)
    if table.empty:
        return 2  # nothing is written
    minutes = (table["end"] - table["start"]).sum() / 60
    print(f"wrote {os.path.join(options.out, 'manifest.csv')}: {table['conversation'].nunique()} conversation(s), "
          f"{minutes:.1f} minutes of speech; fill in speaker, emotion and split, then use it as --corpus "
          f"manifest --root {options.out}", file=sys.stderr)
    return 1 if skipped else 0


def _listen(options: argparse.Namespace) -> None:
    """hear a recording through a trained SLLM: a table, labels and a page that plays it"""
    from pathlib import Path

    from . import listen

    recording, out, turns = (Path(place) for place in (options.recording, options.out, options.turns))
    asked = Path(options.sllm) if options.sllm else None
    sllm, facts = listen.trained(asked, Settings(home=options.home).home_path)
    print("SLLM of profile {profile}, trained on {corpus}:".format_map(facts), sllm, file=sys.stderr)
    options.profile = facts["profile"].replace("?", options.profile)  # its memory
    said, written = listen.listen(_asked(options)[0], recording, sllm, out, turns if options.turns else None)
    print(said.groupby("emotion").size().rename("turns").to_string())
    print("wrote", *written, file=sys.stderr)


def _plan(options: argparse.Namespace) -> None:
    """GPU hours of folds and seeds, from shapes and lengths alone"""
    from . import corpora, estimate, finetune, methods, records, tables

    settings, _ = _asked(options)
    corpus = corpora.load(settings)
    writers = len(methods.TUNED) + 2  # dpm and dpm-swapped at the paper's rate, then all at validation's
    path = estimate.plan(settings, corpus, _folds(options, corpus), len(options.seeds), finetune.sizes,
                         writers, options.tflops)
    print(tables.bench(records.read(path)["results"]).T.to_string(header=False))


def _bench(options: argparse.Namespace) -> None:
    """measure: rungs of the memory beside a PEFT loop, long recordings, the notebooks quiet and beside a loop"""
    from . import bench, records, tables

    path = getattr(bench, options.what)(_asked(options)[0])
    print(tables.bench(records.read(path)["results"]).to_string(index=False))
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
