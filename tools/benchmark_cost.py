"""Time and memory of a distillation step beside the plain student and beside MMRazor; no data set, no download."""

from mmkd.engine.command_line import check_output, run_command
from mmkd.testing import benchmark_cost, cost_options


def main() -> None:
    """Measure, once the file of the figures is known to have a place."""
    figures = cost_options.parse_arguments().json
    if figures is not None:
        check_output('--json', figures)
    benchmark_cost.main()


if __name__ == '__main__':
    run_command(main)
