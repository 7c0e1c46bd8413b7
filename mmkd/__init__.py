"""Knowledge distillation of object detectors inside the OpenMMLab stack.

Importing `mmkd` alone imports nothing else: `mmkd.functional` needs torch only.
"""

__version__ = '0.1.0'
