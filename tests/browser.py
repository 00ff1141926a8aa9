"""Notebooks in a real JupyterLab, driven by a real Chromium: what a reader does, who runs all cells and plays with
the widgets. All notebooks share one kernel, whose imports take longer than any of them at smoke size."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

TIMEOUT = 240_000  # milliseconds; on a busy machine a notebook may take a minute
SHOWN = """() => jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model).filter(
    model => model.type === 'code').map(model => ({source: model.sharedModel.getSource(),
    count: model.executionCount, outputs: model.outputs.toJSON()}))"""
SETTINGS = {  # cells out of sight are drawn, too, and no news is offered
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false"}}
OPEN = """name => {const now = jupyterapp.shell.currentWidget; return now.title.label === name &&
    now.context?.isReady && now.sessionContext.session?.kernel}"""


def needed():
    """The path of a Chromium, and playwright; a loud skip where one is absent."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("CHROMIUM ABSENT: install it; no notebook was run in a browser")
    return path, pytest.importorskip("playwright.sync_api", reason="PLAYWRIGHT ABSENT: pip install -e '.[dev]'")


@contextmanager
def lab(folder, package):
    """The address of a JupyterLab on the notebooks in `folder`, whose kernels import the package at `package`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = folder / ".own"  # nothing of a user's configuration
    for name, setting in SETTINGS.items():
        (own / "settings" / name).parent.mkdir(parents=True)
        (own / "settings" / name).write_text(json.dumps(setting))
    names = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "spaces", "IPYTHONDIR": "ipython",
             "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
             "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}",
             "--LabApp.expose_app_in_browser=True"],
            env=os.environ | {name: str(own / of) for name, of in names.items()} | {"PYTHONPATH": path},
            stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def asked(url, data=None):
    """What the server says; it may still be starting."""
    for _ in range(600):
        try:
            body = None if data is None else json.dumps(data).encode()
            with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def copies(sources, folder, parameters):
    """The notebooks in `folder`, with these parameters, as papermill changes them."""
    folder.mkdir()
    for path in sources:
        notebook = parameterize_notebook(load_notebook_node(str(path)), parameters)
        nbformat.write(notebook, folder / path.name)


def opened(driver, path, url, names):
    """A page of a JupyterLab whose notebooks, when they are opened, share one kernel."""
    asked(f"{url}/api/status")
    kernel = asked(f"{url}/api/kernels", {})["id"]
    for name in names:
        asked(f"{url}/api/sessions", {"path": name, "name": "", "type": "notebook", "kernel": {"id": kernel}})
    page = driver.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(f"{url}/lab")
    page.wait_for_function("() => window.jupyterapp")
    page.evaluate("async () => {await jupyterapp.restored}")
    return page


def run_all(page, name):
    """Open a notebook, run all of its cells as its menu does, and wait for the last."""
    page.evaluate("async path => {await jupyterapp.commands.execute('docmanager:open', {path})}", name)
    page.wait_for_function(OPEN, arg=name)
    page.evaluate("async () => {await jupyterapp.commands.execute('notebook:run-all-cells')}")


def until(done):
    """Wait until it is so."""
    end = time.monotonic() + TIMEOUT / 1000
    while not done():
        assert time.monotonic() < end, "nothing changed"
        time.sleep(0.1)


def errors(page):
    """What went wrong in the notebook that is open: errors of its cells, and cells that did not run."""
    cells = page.evaluate(SHOWN)
    return [(c["source"], o["evalue"]) for c in cells for o in c["outputs"] if o["output_type"] == "error"] + [
        (c["source"], "not run") for c in cells if not c["count"]]
