"""Several processes that work as one: the hosts of a TPU pod, the tasks of a cluster, or a few shells on one machine.

Every process runs the same command. `start` comes first in a program and asks the environment whether there are others:

| where                   | what says so                                                                          |
|-------------------------|---------------------------------------------------------------------------------------|
| anywhere                | JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES, JAX_PROCESS_ID   |
| SLURM, within `srun`    | nothing to set; a process takes one GPU, or those in JAX_LOCAL_DEVICE_IDS             |
| Open MPI, `mpirun`      | nothing to set; likewise                                                              |
| TPU pod on GKE          | nothing to set                                                                        |
| Kubernetes, Indexed Job | the first row without JAX_PROCESS_ID: JOB_COMPLETION_INDEX is there                   |
| anything else JAX knows | MARIGOLD_JAX_DISTRIBUTED=1, as on the TPU VMs of Google Cloud outside of GKE          |

Datasets, checkpoints and outputs lie on a disk that all processes share.
"""

import os
from collections.abc import Mapping
from typing import Any

PATIENCE = 7 * 24 * 3600  # seconds for which one process waits for another's share

# Variable -> whether its value means that there is more than one process.
ANNOUNCEMENTS = {
    "JAX_COORDINATOR_ADDRESS": bool,
    "SLURM_STEP_NUM_TASKS": lambda value: int(value) > 1,
    "OMPI_COMM_WORLD_SIZE": lambda value: int(value) > 1,
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
    "TPU_PROCESS_ADDRESSES": lambda value: "," in value,
    "MARIGOLD_JAX_DISTRIBUTED": lambda value: value not in ("", "0"),
}
NUMBERS = {  # argument of JAX -> where it may stand, in this order; what stands nowhere, JAX asks the cluster
    "num_processes": ("JAX_NUM_PROCESSES",),
    "process_id": ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX"),
}


def several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment speaks of more than one process."""
    return any(name in environment and means(environment[name]) for name, means in ANNOUNCEMENTS.items())


def start() -> tuple[int, int]:
    """Joins the other processes, if there are any. Returns this one's index, and how many there are.

    Must come before JAX touches a device; on its own, a process does not even import it. Raises ValueError with one
    line where the environment is incomplete or the others do not answer.
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
            "and JAX_NUM_PROCESSES in all of them, JAX_PROCESS_ID from 0 on, and the first of them within reach"
        ) from error
    return jax.process_index(), jax.process_count()


def wait_for_all(where: str) -> None:
    """No process goes on before all have come here; `where` is a name that is used only once.

    The processes wait with no device involved, so that one may take days longer than another.
    """
    import jax

    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(where, timeout=PATIENCE, processes=everyone)
