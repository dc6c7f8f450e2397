"""Cells that are passed over, and failures that do not cost a version's output.

Kaggle executes a saved version with papermill, and publishes nothing of a version whose cell has failed. papermill
fails on an output of type `error` (papermill/execute.py, `raise_for_execution_errors`), nbclient on the reply's status
(nbclient/client.py, `_check_raise_for_error`); so a failure that may be kept is printed in red and its mark is taken
off the result before IPython's kernel answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbutils.core.errors import UserError

AGAIN = "session.resume("
"""A cell that calls this is executed in any case: somebody in the editor begins again."""
RED = "\033[1;31m{}\033[0m"


class Guard:
    """Watches the cells of this kernel, and passes over them while `skipping` is set.

    `keep` is asked at each failure whether the notebook shall end quietly, so that its output is kept.
    """

    def __init__(self, shell: Any, keep: Callable[[BaseException], bool]) -> None:
        self._keep = keep
        self.skipping = False
        shell.set_custom_exc((Exception,), self._failed)
        shell.events.register("post_run_cell", self._after)
        shell.input_transformers_cleanup.append(self._transformed)

    def _failed(self, shell: Any, kind: Any, error: BaseException, trace: Any, tb_offset: Any = None) -> None:
        if not self._keep(error):
            shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
            return
        if not isinstance(error, UserError):
            print("\n".join(shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset=tb_offset)))
        print(RED.format(f"{kind.__name__}: {error}"), flush=True)
        self.skipping = True

    def _after(self, result: Any) -> None:
        if self.skipping:
            result.error_in_exec = None

    def _transformed(self, lines: list[str]) -> list[str]:
        if any(AGAIN in line for line in lines):
            self.skipping = False
        return ["print('passed over')\n"] if self.skipping else lines
