"""Runs of several processes: the hosts of a TPU pod, the tasks of a cluster job, or several shells on one machine.

Every process runs the same command. A program calls `start` first, which detects the others from the environment:

| where                   | what to set                                                                           |
|-------------------------|---------------------------------------------------------------------------------------|
| anywhere                | JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID   |
| SLURM, within `srun`    | nothing; each process uses one GPU, or those in JAX_LOCAL_DEVICE_IDS                  |
| Open MPI, `mpirun`      | nothing; likewise                                                                     |
| TPU pod on GKE          | nothing                                                                               |
| Kubernetes, Indexed Job | as in the first row, without JAX_PROCESS_ID: Kubernetes sets JOB_COMPLETION_INDEX     |
| other clusters that JAX | MARIGOLD_JAX_DISTRIBUTED=1; for example on TPU VMs of Google Cloud outside of GKE     |
| detects                 |                                                                                       |

Datasets, checkpoints and outputs must be on a file system that all processes share.
"""

import os
from collections.abc import Mapping
from typing import Any

PATIENCE = 7 * 24 * 3600  # seconds that a process waits for the others

# Variable -> whether its value means that there is more than one process.
ANNOUNCEMENTS = {
    "JAX_COORDINATOR_ADDRESS": bool,
    "SLURM_STEP_NUM_TASKS": lambda value: int(value) > 1,
    "OMPI_COMM_WORLD_SIZE": lambda value: int(value) > 1,
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
    "TPU_PROCESS_ADDRESSES": lambda value: "," in value,
    "MARIGOLD_JAX_DISTRIBUTED": lambda value: value not in ("", "0"),
}
NUMBERS = {  # argument of JAX -> variables, in order of preference; JAX detects the rest
    "num_processes": ("JAX_NUM_PROCESSES",),
    "process_id": ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX"),
}


def several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment describes more than one process."""
    return any(name in environment and means(environment[name]) for name, means in ANNOUNCEMENTS.items())


def start() -> tuple[int, int]:
    """Connects to the other processes, if there are any. Returns the index of this process, and their number.

    Call this before JAX initialises its devices. A single process does not import JAX here.

    Raises:
        ValueError: the environment is incomplete, or the other processes cannot be reached.
    """
    if not several():
        return 0, 1
    import jax

    arguments: dict[str, Any] = {}
    for argument, names in NUMBERS.items():
        for name in reversed([name for name in names if name in os.environ]):
            if not os.environ[name].isdecimal():
                raise ValueError(f"{name}={os.environ[name]}: wanted a number")
            arguments[argument] = int(os.environ[name])
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot join the other processes ({str(error).splitlines()[0]}); wanted the same JAX_COORDINATOR_ADDRESS "
            "and JAX_NUM_PROCESSES in all of them, JAX_PROCESS_ID from 0 on, and a coordinator that can be reached"
        ) from error
    return jax.process_index(), jax.process_count()


def wait_for_all(where: str) -> None:
    """Blocks until all processes have called this. `where` is a name that is used only once.

    No device takes part, so one process may take days longer than another.
    """
    import jax

    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(where, timeout=PATIENCE, processes=everyone)
