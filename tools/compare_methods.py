"""Compare all methods on one pair of detectors: the same budget, several seeds, one report; see docs/comparing.md."""

import sys

from mmkd.testing.compare_methods import main

if __name__ == '__main__':
    sys.exit(main())
