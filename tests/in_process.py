"""Papermill without kernels: a notebook's cells run in this process, which has long imported what they need.

A kernel's start and its imports are eight seconds of processor, more than most notebooks take at smoke size.
"""

import functools
from types import ModuleType

import matplotlib.pyplot as plt
import papermill
from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat.v4 import new_output
from papermill.engines import Engine, papermill_engines
from traitlets.config import Config


class InProcess(Engine):
    """Code cells by IPython, in names of their own; outputs are kept, the first error is raised."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **_):
        shell = InteractiveShell.instance(user_module=ModuleType("notebook"),
                                          config=Config({"HistoryManager": {"enabled": False}}))
        try:
            for cell in nb_man.nb.cells:
                if cell.cell_type == "code":
                    with capture_output() as got:
                        shell.display_trap.hook = CapturingDisplayHook(shell, shell.display_pub.outputs)
                        shell.run_cell(cell.source).raise_error()
                    plt.close("all")
                    shown = [new_output("display_data", data=o.data, metadata=o.metadata) for o in got.outputs]
                    cell.outputs = [new_output("stream", text=got.stdout), *shown]
        finally:
            InteractiveShell.clear_instance()


papermill_engines.register("in process", InProcess)
execute_notebook = functools.partial(papermill.execute_notebook, engine_name="in process")
