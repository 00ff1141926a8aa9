"""The five notebooks, headlessly: papermill runs each for every fold and seed, in turn or as tasks of Ray, and each
becomes a page that loads nothing (nbconvert's own template fetches scripts, and adds 300 kB of styles)."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import papermill
from bs4 import BeautifulSoup
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from latex2mathml import converter
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.translators import translate_parameters
from pygments.formatters import HtmlFormatter

from . import records, runs
from .settings import GridSettings, Settings, UserError

NOTEBOOKS = ("01_data_prep", "02_backbone_finetuning", "03_dpm_inference", "04_ablations", "05_context_length")
SOURCE = Path(__file__).resolve().parent.parent / "notebooks"
RETRIES = 2  # of a cell whose worker died
LOCAL = "local"  # address of a Ray that is started here, with all processors of this machine


# -- one run ---------------------------------------------------------------------

class OwnKernel(AsyncKernelManager):
    """A kernel of the interpreter and the package that run now, whatever kernels a site has by the same name."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """What starts a kernel."""
        package = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        # Freed blocks of many shapes go back to the system: else training on a CPU holds thrice as much.
        malloc = {"MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "33554432"}
        quiet = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # a debugger's warning at every start
        return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                          display_name="Python 3", language="python", env={"PYTHONPATH": path, **malloc, **quiet})


def run(settings: Settings, notebooks: Sequence[str] = NOTEBOOKS, overrides: dict[str, Any] | None = None) -> None:
    """Run notebooks in order; <results>/<profile>-<corpus>/<run name>/ gets each as executed ipynb and HTML.

    The notebooks themselves are never written. `overrides` are settings by dotted name, passed on as they are.
    Raises UserError as a notebook raised it; any other failure is a RuntimeError that names the notebook, what
    went wrong, and the file that holds what it did so far.
    """
    work = settings.home_path / "runs" / "notebooks" / f"{settings.profile}-{settings.corpus}" / settings.run_name
    work.mkdir(parents=True, exist_ok=True)
    named = ("profile", "corpus", "root", "fold", "seed", "home")
    parameters = {name: getattr(settings, name) for name in named} | {"overrides": overrides or {}}
    for number, name in enumerate(notebooks, start=1):
        print(f"[{number}/{len(notebooks)}] {name}  {settings.profile} {settings.corpus} {settings.run_name}",
              file=sys.stderr, flush=True)
        start = time.perf_counter()
        _execute(name, work / f"{name}.ipynb", parameters)
        _publish(work / f"{name}.ipynb", settings, parameters)
        print(f"    {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def _execute(name: str, executed: Path, parameters: dict[str, Any]) -> None:
    if not (SOURCE / f"{name}.ipynb").is_file():
        raise UserError(f"notebook {name!r} is not in {SOURCE}: run it from a clone of dpmkit")
    try:
        papermill.execute_notebook(SOURCE / f"{name}.ipynb", executed, parameters, cwd=SOURCE,
                                   kernel_name="python3", kernel_manager_class=OwnKernel,
                                   extra_arguments=["--IPKernelApp.log_level=ERROR"])
        return
    except PapermillExecutionError as error:
        if error.ename == "UserError":
            raise UserError(error.evalue) from None
        reason = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    except DeadKernelError:
        reason = ("its kernel died, most likely as memory ran out: lower evaluation.streams or "
                  "finetune.forward_tokens, or give the container more")
    raise RuntimeError(f"notebook {name} failed: {reason}; {executed} holds what it did. Finished stages are kept: "
                       "run again to go on")


def _publish(executed: Path, settings: Settings, parameters: dict[str, Any]) -> None:
    """The executed notebook without progress bars, times of cells and paths of this machine, as ipynb and HTML."""
    shown, changed = ({name: records.shown(settings, name, value) for name, value in given.items()}
                      for given in (parameters, parameters["overrides"]))
    shown["overrides"] = changed
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec", "language_info")
                         if name in notebook.metadata}
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
        if "injected-parameters" in cell.metadata["tags"]:
            cell.source = translate_parameters("python3", "python", shown, "Parameters")
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"
                            and "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
                            and "<progress" not in "".join(o.get("data", {}).get("text/html", ""))]
    for suffix, text in ((".ipynb", nbformat.writes(notebook) + "\n"), (".html", page_of(notebook))):
        with runs.atomic(settings.results_path / settings.run_name / f"{executed.stem}{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")


def page_of(notebook: NotebookNode) -> str:
    """The notebook as HTML: its headings as contents (at the left of a wide screen), every code cell closed."""
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    exporter = HTMLExporter(template_name="basic", raw_template=template, exclude_input_prompt=True,
                            exclude_output_prompt=True, anchor_link_text="#")
    exporter.register_filter("headings", _headings)
    markdown = MarkdownWithMath(renderer=_Formulas(escape=False, anchor_link_text="#"))
    exporter.register_filter("markdown2html", markdown.render)
    style = HtmlFormatter(style="default").get_style_defs(".highlight")
    return exporter.from_notebook_node(notebook, {"code_style": style})[0]


class _Formulas(IPythonRenderer):
    """Markdown whose LaTeX becomes MathML, which browsers draw themselves: nbconvert's own leaves it to MathJax,
    a script from the network."""

    def block_math(self, body: str) -> str:
        return converter.convert(body, display="block")

    def inline_math(self, body: str) -> str:
        return converter.convert(body)


def _headings(html: str) -> list[dict[str, str]]:
    """Level (h1 to h3), id and text of the headings of markdown cells; nbconvert gives those alone an id."""
    soup = BeautifulSoup(html, "html.parser")
    for anchor in soup.select(".anchor-link"):
        anchor.decompose()  # its # is no part of the text
    return [{"level": h.name, "id": h["id"], "text": h.get_text()} for h in soup.select("h1[id], h2[id], h3[id]")]


# -- many runs, side by side -----------------------------------------------------

def run_grid(cells: Sequence[Settings], notebooks: Sequence[str], overrides: dict[str, Any], address: str = LOCAL,
             work: Callable[[Settings, Sequence[str], dict[str, Any]], None] = run) -> dict[str, str]:
    """`run` every cell as a task of Ray, which takes what `grid` says; the records are those of a sequential run.
    Returns run name -> what went wrong, of the cells that failed; the others' results stand.

    A cell whose worker dies is tried again; its finished stages are kept, as are all when this process is killed
    and started again. On a cluster (host:port, or ray://host:port) all machines share the project folder. Raises
    UserError where Ray is not installed, does not answer at the address, or has no machine as large as a task.
    """
    at = cells[0].grid
    ray = _ray(address, at)
    task = ray.remote(num_cpus=at.cpus, num_gpus=at.gpus, max_retries=RETRIES)(work)
    pending = {task.remote(cell, tuple(notebooks), overrides): cell.run_name for cell in cells}
    failed: dict[str, str] = {}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        name = pending.pop(done)
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError as error:
            failed[name] = str(error.cause)
        except ray.exceptions.RayError as error:
            failed[name] = f"its worker died {RETRIES + 1} times ({str(error).splitlines()[0]})"
        print(f"[{len(cells) - len(pending)}/{len(cells)}] {name}: {failed.get(name, 'done')}", file=sys.stderr,
              flush=True)
    return failed


def _ray(address: str, at: GridSettings) -> ModuleType:
    """The module ray, connected: once a process, which spares each later call some ten seconds."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    started = {"include_dashboard": False} if address == LOCAL else {}  # a running one refuses such options
    try:
        import ray

        if address != LOCAL:  # Ray itself would try for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        for last in (address != LOCAL, True):  # a busy machine may take longer than the half minute that Ray waits
            try:
                if not ray.is_initialized():
                    ray.init(address, log_to_driver=False, logging_level="error", **started)
            except Exception:
                ray.shutdown()
                if last:
                    raise
    except Exception as error:  # Ray raises bare ones, e.g. of a node that took too long to start
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"no Ray at {address!r} ({reason}): an address is host:port of a cluster (see `ray start`)"
                        f", or {LOCAL}, which needs dpmkit[ray], a short TMPDIR and, after a run that was "
                        "stopped, `ray stop --force`; finished work is kept") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= at.cpus and node.get("GPU", 0) >= at.gpus for node in nodes):
        # Ray would wait for ever for a machine that is large enough.
        raise UserError(f"no machine of Ray has the {at.cpus} processors and {at.gpus:g} GPUs that one task asks "
                        "for: lower grid.cpus or grid.gpus, or add a larger machine")
    return ray
