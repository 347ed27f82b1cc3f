"""`coterie serve` again and again, without importing torch again: a line of arguments on stdin starts one in a fork.

Said on stderr: what the server says, `pid N` before it, `exit N` after it. Each child does all that the command does
but the imports: it binds, loads, serves, and ends by its own exit code or signal.
"""

import os
import shlex
import sys
from importlib import import_module


def main() -> None:
    for name in ("coterie.api", "coterie.server.app", "coterie.server.run"):
        import_module(name)
    from coterie.cli.main import main as coterie_main

    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if pid == 0:
            sys.argv = ["coterie", "serve", *shlex.split(line)]
            sys.exit(coterie_main())
        _say(f"pid {pid}")
        _say(f"exit {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())


if __name__ == "__main__":
    main()
