"""torchrun without its tracebacks: when a process fails, what it said is the last that is said.

    python -m mmrole.launch --nproc_per_node 2 finetune/finetune.py …      # the flags of torchrun

Ends with the status of the process that failed first, so that a person's mistake is 2 here as well.
"""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError


def main(argv: list[str] | None = None) -> int:
    """Runs the processes of this machine to the end; returns the exit status."""
    logging.disable(logging.ERROR)  # in this process, which would log every process that it ends
    try:
        run.main(argv)
    except ChildFailedError as error:
        return _status(error)
    except SignalException as error:
        return 128 + error.sigval
    except (DistError, RendezvousError) as error:
        print(f"error: {str(error).splitlines()[0]}; is MASTER_PORT free, and MASTER_ADDR right?", file=sys.stderr)
        return 2
    return 0


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
