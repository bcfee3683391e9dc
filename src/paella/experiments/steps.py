"""What do more sampling steps give, and what do they cost? The paper's headline is 8 steps."""

from paella.experiments.scored import scored

EXPERIMENT = scored(
    "Quality and time over the number of steps",
    {"steps T": {str(steps): {"steps": steps} for steps in (1, 2, 4, 8, 12, 16, 32)}},
)
