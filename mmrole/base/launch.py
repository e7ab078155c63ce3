"""torchrun without its tracebacks: when a process fails, what it said is the last that is said.

    python -m mmrole.base.launch --nproc_per_node 2 finetune/finetune.py …      # the flags of torchrun

Ends with the status of the process that failed first, so that a person's mistake is 2 here as well.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys

from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

_COUNT = re.compile(r"0*[1-9][0-9]{0,5}")
_DEVICES = ("auto", "cpu", "gpu", "xpu")  # one process for each of them


def main(argv: list[str] | None = None) -> int:
    """Runs the processes of this machine to the end; returns the exit status."""
    flags = run.parse_args(argv)
    mistake = _mistake(flags)
    if mistake is not None:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    logging.disable(logging.ERROR)  # in this process, which would log every process that it ends
    try:
        run.run(flags)
    except ChildFailedError as error:
        return _status(error)
    except SignalException as error:
        return 128 + error.sigval
    except (DistError, RendezvousError) as error:
        print(f"error: {str(error).splitlines()[0]}; is MASTER_PORT free, and MASTER_ADDR right?", file=sys.stderr)
        return 2
    return 0


def _mistake(flags: argparse.Namespace) -> str | None:
    """What is wrong with the numbers of processes, machines and port, of which torchrun complains in tracebacks."""
    if flags.nproc_per_node not in _DEVICES and not _COUNT.fullmatch(flags.nproc_per_node):
        return f"--nproc_per_node {flags.nproc_per_node}: give a number of processes, at least 1"
    least, _, most = flags.nnodes.partition(":")
    most = most or least
    if not (_COUNT.fullmatch(least) and _COUNT.fullmatch(most) and int(least) <= int(most)):
        return f"--nnodes {flags.nnodes}: give a number of machines, at least 1"
    if not 0 <= flags.node_rank < int(most):
        return f"--node_rank {flags.node_rank}: of {most} machines, give a number from 0 to {int(most) - 1}"
    if flags.master_port is not None and not 0 < flags.master_port < 1 << 16:
        return f"--master_port {flags.master_port}: give a free port, from 1 to 65535"
    return None


def _status(error: ChildFailedError) -> int:
    """The exit status of the first process that failed, as a shell has it; names the signal that killed it."""
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return failure.exitcode
    killer = -failure.exitcode
    print(f"error: process {rank} was ended by {signal.Signals(killer).name}", file=sys.stderr)
    return 128 + killer


if __name__ == "__main__":
    sys.exit(main())
