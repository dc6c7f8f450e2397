"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """One sentence a user can act on: what was found, where, and what to do."""

    fields: tuple[str, ...] = ()
    """The settings that it is about, where it is about some."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: a notebook shows the sentence alone, without the stack of our own code."""
        return [f"\033[31m{self}\033[0m"]
