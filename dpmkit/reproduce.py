"""The five notebooks, headlessly: papermill runs each for every fold and seed, and each becomes a page.

render: An executed notebook as one HTML page that loads nothing: contents, code folded, some 10 kB of style.

nbconvert's own template brings 300 kB of JupyterLab's stylesheet to every page, and fetches require.js, MathJax and
Mermaid from the net, which the notebooks do not need: their formulas are plain text, their audio is in the page.
cluster: Work shared out to Ray: on this machine, or on a cluster whose machines share the project folder.
grid: A grid of runs, a cell each fold and seed, as tasks of Ray.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from bs4 import BeautifulSoup
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.translators import translate_parameters
from pygments.formatters import HtmlFormatter

from . import runs
from .settings import GridSettings, Settings, UserError

# -- render --------------------------------------------------------------------

STYLE = """
body { margin: 0; color: #1f2328; background: #fff; font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif }
main { max-width: 68rem; padding: 1rem 1.25rem 4rem; overflow-wrap: break-word }
p, li { max-width: 46rem }
h1, h2, h3 { line-height: 1.25; margin: 2.2rem 0 .6rem; scroll-margin-top: 1rem }
h1 { margin-top: .6rem; font-size: 1.8rem }
h2 { padding-bottom: .25rem; border-bottom: 1px solid #d8dee4; font-size: 1.3rem }
a { color: #0757ad; text-decoration: none }
a:hover { text-decoration: underline }
.anchor-link { margin-left: .4em; color: #8c959f; opacity: 0 }
:hover > .anchor-link, .anchor-link:focus { opacity: 1 }
code, pre { font: .84em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
code { padding: .1em .3em; background: #f2f4f7; border-radius: 3px }
pre { margin: .5rem 0; white-space: pre-wrap }
.highlight pre { padding: .6rem .8rem; white-space: pre; overflow-x: auto }
details.code { margin: .4rem 0 }
details.code > summary { width: max-content; color: #57606a; font-size: .8rem; cursor: pointer }
.output_area, .text_cell_render > table { overflow-x: auto }
.text_cell_render > table { display: block }
table { border-collapse: collapse; border: 0; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { max-width: 16rem; padding: .25rem .6rem; border: 0; text-align: right; vertical-align: top }
tbody tr:nth-child(odd) { background: #f6f8fa }
thead { border-bottom: 1.5px solid #57606a }
img { max-width: 100%; height: auto }
audio { max-width: 100% }
nav { padding: 1rem 1.25rem 0; font-size: .85rem; line-height: 1.4 }
nav a { display: block; padding: .2rem 0 }
nav .h1 { font-weight: 600 }
nav .h3 { padding-left: 1rem }
@media (min-width: 64rem) {
  body { display: grid; grid-template-columns: 15rem minmax(0, 1fr) }
  nav { position: sticky; top: 0; height: 100vh; box-sizing: border-box; overflow-y: auto;
        border-right: 1px solid #d8dee4 }
  main { padding-left: 2.5rem }
}
@media print {
  nav, audio, .anchor-link, details.code:not([open]) { display: none }
  body { display: block; font-size: 10pt }
  main, p, li { max-width: none }
  main { padding: 0 }
  h1, h2, h3 { break-after: avoid }
  img, tr { break-inside: avoid }
  .output_area { overflow: visible }
  .highlight pre { white-space: pre-wrap }
}
"""

TEMPLATE = """
{%- extends 'classic/base.html.j2' -%}
{%- block body -%}
{%- set content -%}{{ super() }}{%- endset -%}
{%- set headings = content | headings -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ headings[0].text | e if headings else "notebook" }}</title>
<style>{{ resources.style }}</style>
</head>
<body>
<nav aria-label="contents">
{%- for h in headings %}
<a class="{{ h.level }}" href="#{{ h.id | e }}">{{ h.text | e }}</a>
{%- endfor %}
</nav>
<main>
{{ content }}
</main>
</body>
</html>
{%- endblock -%}
{%- block input_group -%}
<details class="code"><summary>code</summary>{{ super() }}</details>
{%- endblock -%}
{%- block footer -%}{%- endblock -%}
"""


def page_of(notebook: NotebookNode) -> str:
    """The notebook as HTML: its headings as contents (at the left of a wide screen), every code cell closed."""
    exporter = HTMLExporter(template_name="basic", raw_template=TEMPLATE, exclude_input_prompt=True,
                            exclude_output_prompt=True, anchor_link_text="#")
    exporter.register_filter("headings", _headings)
    style = HtmlFormatter(style="default").get_style_defs(".highlight") + STYLE
    html, _ = exporter.from_notebook_node(notebook, {"style": style})
    return html


def _headings(html: str) -> list[dict[str, str]]:
    """Level (h1 to h3), id and text of the headings of markdown cells; nbconvert gives those alone an id."""
    soup = BeautifulSoup(html, "html.parser")
    for anchor in soup.select(".anchor-link"):
        anchor.decompose()  # its # is no part of the text
    return [{"level": h.name, "id": h["id"], "text": h.get_text()} for h in soup.select("h1[id], h2[id], h3[id]")]


# -- cluster -------------------------------------------------------------------

LOCAL = "local"  # address of a Ray that is started here, with all processors of this machine


def on_ray(work: Callable, calls: Sequence[tuple], address: str, at: GridSettings, shared: tuple = ()
            ) -> Iterator[tuple[int, Any, str]]:
    """Run `work(*shared, *call)` for every call as a task of Ray: (number of the call, what it returned, what went
    wrong or ""), as they end.

    A task takes `at.cpus` processors and `at.gpus` GPUs; one whose worker dies is tried `at.retries` times more.
    Raises UserError where Ray is not installed or does not answer at `address` (host:port, or ray://host:port).
    """
    ray = _started(address)
    _fits(ray, at)
    task = ray.remote(num_cpus=at.cpus, num_gpus=at.gpus, max_retries=at.retries)(work)
    sent = [ray.put(value) for value in shared]  # once, whatever number of tasks needs it
    pending = {task.remote(*sent, *call): number for number, call in enumerate(calls)}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        number, made, wrong = pending.pop(done), None, ""
        try:
            made = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            wrong = str(error.cause)
        except ray.exceptions.RayError as error:
            wrong = f"its worker died {at.retries + 1} times ({str(error).splitlines()[0]})"
        yield number, made, wrong


def _started(address: str) -> Any:
    """The module ray, connected: once a process, which spares each later call some ten seconds."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    told = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if address != LOCAL and (told or Path("~/.ray/auth_token").expanduser().exists()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray 2.60 itself asks an address before it looks for one
    try:
        import ray
    except ImportError as error:
        raise UserError(f'Ray is not installed: pip install "dpmkit[ray]" ({error})') from error
    if address != LOCAL:
        _answers(address)
    if ray.is_initialized():
        return ray
    for attempt in (1, 2):
        try:
            ray.init(address, log_to_driver=False, logging_level="error",
                     **({"include_dashboard": False} if address == LOCAL else {}))
            return ray
        except Exception as error:  # Ray raises bare ones, e.g. of a node that took too long to start
            ray.shutdown()
            if "AF_UNIX" in str(error):
                raise UserError(f"Ray's sockets need a shorter folder than {tempfile.gettempdir()}: set "
                                "TMPDIR=/tmp, then run again") from error
            if address == LOCAL and attempt == 1:
                time.sleep(5)  # what a killed run left behind goes by itself
                continue
            cure = ("`ray stop --force` removes what an earlier run left behind" if address == LOCAL
                    else "start a cluster there (ray start --head)")
            raise UserError(f"no Ray answers at {address!r}: {cure}; finished work is kept "
                            f"({(str(error).splitlines() or [type(error).__name__])[0][:160]})") from error


def _fits(ray: Any, at: GridSettings) -> None:
    # Ray would wait for ever for a machine that is large enough.
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= at.cpus and node.get("GPU", 0) >= at.gpus for node in nodes):
        there = "; ".join(f"{node.get('CPU', 0):g} processors and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UserError(f"no machine of Ray has the {at.cpus} processors and {at.gpus:g} GPUs that one task asks "
                        f"for (there: {there}): lower grid.cpus or grid.gpus, or add a larger machine")


def _answers(address: str) -> None:
    # Ray itself would try for a minute.
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(f"an address of Ray is host:port or ray://host:port of a cluster, or {LOCAL} for "
                        f"this machine, not {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(f"nothing answers at {address!r} ({error}): start a cluster there (ray start --head), or "
                        f"give {LOCAL} to use this machine") from error


# -- reproduce -----------------------------------------------------------------

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
    for suffix, text in ((".ipynb", nbformat.writes(notebook) + "\n"), (".html", page_of(notebook))):
        path = target / f"{name}{suffix}"
        with runs.atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


# -- grid ----------------------------------------------------------------------

def _cell(notebooks: Sequence[str], overrides: dict[str, Any], settings: Settings) -> None:
    run(settings, notebooks, overrides)


def run_grid(cells: Sequence[Settings], notebooks: Sequence[str], overrides: dict[str, Any],
        address: str = LOCAL,
        work: Callable[[Sequence[str], dict[str, Any], Settings], None] = _cell) -> dict[str, str]:
    """Run `reproduce.run` for every cell on Ray; the records are those of a sequential run. Returns run name ->
    what went wrong, of the cells that failed; the others' results stand.

    A cell whose worker dies is tried again; its finished stages are kept, as are all when this process is killed
    and started again. UserErrors as of `cluster.results`.
    """
    failed: dict[str, str] = {}
    shared = (tuple(notebooks), overrides)
    ended = on_ray(work, [(cell,) for cell in cells], address, cells[0].grid, shared)
    for count, (number, _, wrong) in enumerate(ended, start=1):
        name = cells[number].run_name
        if wrong:
            failed[name] = wrong
        print(f"[{count}/{len(cells)}] {name}: {wrong or 'done'}", file=sys.stderr, flush=True)
    return failed
