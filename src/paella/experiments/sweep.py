"""Which temperature and which typical mass suit the model? One at a time, the other settings being the model's own."""

from paella.experiments.scored import scored

TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.25)
MASSES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)

EXPERIMENT = scored(
    "Temperature and typical mass",
    {
        "temperature": {str(value): {"temperature": value} for value in TEMPERATURES},
        "typical mass": {str(value): {"typical_mass": value} for value in MASSES},
    },
)
