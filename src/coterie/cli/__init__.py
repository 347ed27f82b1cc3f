"""The command line: one file per verb, each with a click command named `command`; `main.py` finds them by name."""

__all__: list[str] = []
