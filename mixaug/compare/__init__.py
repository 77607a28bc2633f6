"""Does it help on my task? Trains any learner with and without each method, and says which differences are real.

The methods may be mixing callbacks or any others. All runs of a seed start from the same weights and see the same
batches, so each method is compared to the baseline seed by seed.
"""

from .measures import ece
from .result import Comparison
from .run import compare
from .statistics import Difference, paired_difference

__all__ = ["Comparison", "Difference", "compare", "ece", "paired_difference"]
