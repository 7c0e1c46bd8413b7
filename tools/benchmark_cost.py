"""Time and memory of a distillation step beside the plain student and beside MMRazor; no data set, no download."""

from mmkd.engine.command_line import run_command
from mmkd.testing.benchmark_cost import main

if __name__ == '__main__':
    run_command(main)
