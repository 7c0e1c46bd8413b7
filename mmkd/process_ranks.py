"""Which process this is, as launchers say it in the environment, before any process group exists."""

import os
from collections.abc import Sequence

# torch, Slurm, OpenMPI
LOCAL_RANKS = ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')
RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def local_rank() -> int:
    """Number of this process on its machine; 0 where nobody says."""
    return _number(LOCAL_RANKS)


def global_rank() -> int:
    """Number of this process of all; 0 where nobody says."""
    return _number(RANKS)


def _number(names: Sequence[str]) -> int:
    """The first of these environment variables that is set, else 0."""
    return int(next(filter(None, map(os.environ.get, names)), 0))
