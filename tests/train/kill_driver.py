"""Started once by test_nothing_is_lost.py: for each folder read from stdin it forks a process that trains there.

Answers with the process's id, and after its end with how that was. This process itself never trains, so that a fork
finds torch without threads; to start a new interpreter for each would take seconds.
"""

import dataclasses
import os
import sys
from pathlib import Path

import torch
from test_loop import trainer  # beside this file

from coterie.train.lock import hold_run
from coterie.train.peak import matrix_peak
from coterie.train.recipe import Run


def train(folder: Path, steps: int) -> None:
    """To the last step, a checkpoint after each."""
    run = trainer(folder, steps=steps, lr=1e-3)
    run.recipe = dataclasses.replace(run.recipe, run=Run(save_every=1, eval_every=3))
    with hold_run(folder):
        run.resume()
        run.run()


def main() -> None:
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # imports much of torch, which every fork would otherwise do again
    matrix_peak(torch.float32, torch.device("cpu"))  # measured once, not by every fork
    print("ready", flush=True)
    for line in sys.stdin:
        folder, steps = line.rsplit(maxsplit=1)
        pid = os.fork()
        if pid == 0:
            train(Path(folder), int(steps))
            os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
