"""Memory that this process holds, as Linux counts it."""

import ctypes
from pathlib import Path

# For a process of its own: freed memory goes back to the system at once. GNU's C library keeps freed blocks, and MKL,
# which torch multiplies matrices with, its buffers; how many depends on the sizes that came before.
RETURN_FREED_MEMORY = {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536', 'MKL_DISABLE_FAST_MM': '1'}


def process_memory(entry: str) -> int:
    """A figure of /proc/self/status in bytes.

    Args:
        entry: `VmRSS` (resident now) or `VmHWM` (the highest it has been).

    Raises:
        RuntimeError: not on Linux, or no such entry.
    """
    path = Path('/proc/self/status')
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith(f'{entry}:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f'/proc/self/status has no {entry}; memory on the CPU is measured on Linux only.')


def forget_peak() -> int:
    """Let `VmHWM` start anew; what the C library keeps of freed memory is given back first.

    Otherwise what comes next could be served from there and would seem to need nothing.

    Returns:
        Bytes resident now.
    """
    give_back = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # GNU's C library only
    if give_back:
        give_back(0)
    Path('/proc/self/clear_refs').write_text('5')  # 5: forget the peak so far
    return process_memory('VmRSS')
