"""`coterie serve` in a process that writes down whom it tries to reach: watched_server.py FILE [ARGUMENTS OF coterie].

An audit hook sees each connect, each name looked up, each program started, by whatever library.
"""

import sys

_WATCHED = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.gethostbyname", "subprocess.Popen", "os.exec"}
_LOOKED_UP = "socket.getaddrinfo"


def main(file: str, *arguments: str) -> None:
    """Does not come back; the exit code is that of `coterie`."""
    record = open(file, "a", buffering=1)  # noqa: SIM115  # for the process's whole life

    def watch(event: str, details: tuple[object, ...]) -> None:
        if event in _WATCHED or (event == _LOOKED_UP and details[0] not in ("127.0.0.1", None)):
            record.write(f"{event} {details[1:]!r}\n")

    sys.addaudithook(watch)
    from coterie.cli.main import main as coterie

    sys.argv = ["coterie", *arguments]
    coterie()


if __name__ == "__main__":
    main(*sys.argv[1:])
