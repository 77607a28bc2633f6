"""Does it help on my task? Trains any learner with and without each method, and says which differences are real.

The methods may be mixing callbacks or any others. All runs of a seed start from the same weights and see the same
batches, so each method is compared to the baseline seed by seed.
"""

from .command import digits, folder, learner, noisy, paired_interval, split
from .measures import ece
from .result import Comparison
from .run import compare
from .statistics import Difference

__all__ = [
    "Comparison",
    "Difference",
    "compare",
    "digits",
    "ece",
    "folder",
    "learner",
    "noisy",
    "paired_interval",
    "split",
]
