"""The five notebooks, headlessly: papermill runs each for every fold and seed, and each becomes a page."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.translators import translate_parameters

from . import render, runs
from .settings import Settings, UserError

NOTEBOOKS = ("01_data_prep", "02_backbone_finetuning", "03_dpm_inference", "04_ablations", "05_context_length")
SOURCE = Path(__file__).resolve().parent.parent / "notebooks"


class OwnKernel(AsyncKernelManager):
    """A kernel of the interpreter and the package that run now, whatever kernels a site has by the same name."""

    @property
    def kernel_spec(self) -> KernelSpec:
        package = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                          display_name="Python 3", language="python", env={"PYTHONPATH": path})


def run(settings: Settings, notebooks: Sequence[str] = NOTEBOOKS, overrides: dict[str, Any] | None = None) -> None:
    """Run notebooks in order; <results>/<profile>-<corpus>/<run name>/ gets each as executed ipynb and HTML.

    The notebooks themselves are never written. `overrides` are settings by dotted name, passed on as they are.
    Raises UserError as a notebook raised it; any other failure names the notebook, its cell and the file that
    holds what it did so far.
    """
    target = settings.results_path / settings.run_name
    work = settings.home_path / "runs" / "notebooks" / f"{settings.profile}-{settings.corpus}" / settings.run_name
    parameters = {"profile": settings.profile, "corpus": settings.corpus, "root": settings.root,
                  "fold": settings.fold, "seed": settings.seed, "home": settings.home,
                  "overrides": overrides or {}}
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    for number, name in enumerate(notebooks, start=1):
        if not (SOURCE / f"{name}.ipynb").is_file():
            raise UserError(f"notebook {name!r} is not in {SOURCE}; choose from {', '.join(NOTEBOOKS)}")
        print(f"[{number}/{len(notebooks)}] {name}  {settings.profile} {settings.corpus} {settings.run_name}",
              file=sys.stderr, flush=True)
        start = time.perf_counter()
        work.mkdir(parents=True, exist_ok=True)
        executed, begun = work / f"{name}.ipynb", []  # a cell each
        try:
            papermill.execute_notebook(SOURCE / f"{name}.ipynb", executed, parameters, kernel_name="python3",
                                       cwd=SOURCE, progress_bar=True, log_output=False,
                                       kernel_manager_class=OwnKernel,
                                       on_cell_execute=lambda begun=begun, **_: begun.append(1),
                                       extra_arguments=["--IPKernelApp.log_level=ERROR"])
        except PapermillExecutionError as error:
            if error.ename == "UserError":
                raise UserError(error.evalue) from None
            raise RuntimeError(f"notebook {name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}; "
                               f"{executed} holds what it did. Finished stages are kept: run again to go on"
                               ) from error
        except DeadKernelError as error:
            raise RuntimeError(f"the kernel of notebook {name} died in cell {len(begun)}: most likely the "
                               "system stopped it as memory ran out (lower evaluation.streams or finetune."
                               f"forward_tokens, or give the container more); {executed} holds what it did. "
                               "Finished stages are kept: run again to go on") from error
        _render(executed, target, name, settings, parameters)
        print(f"    {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def _render(executed: Path, target: Path, name: str, settings: Settings, parameters: dict[str, Any]) -> None:
    """The executed notebook without progress bars, times of cells and paths of this machine, as ipynb and HTML, in
    `target`."""
    shown = {k: settings.shown(k, v) for k, v in parameters.items()}
    shown["overrides"] = {k: settings.shown(k, v) for k, v in parameters["overrides"].items()}
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("papermill", None)  # holds paths of this machine
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = translate_parameters("python3", "python", shown, "Parameters")
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"
                            and "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
                            and "<progress" not in "".join(o.get("data", {}).get("text/html", ""))]
    notebook.metadata.pop("widgets", None)
    for suffix, text in ((".ipynb", nbformat.writes(notebook) + "\n"), (".html", render.page(notebook))):
        path = target / f"{name}{suffix}"
        with runs.atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
