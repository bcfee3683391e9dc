"""Which parts of the sampler matter? Guidance and typical sampling, each alone and both; the noise between steps, and
whether it is put at random or where the predictor is least sure.

A low temperature may do by itself what typical sampling is for, so both are measured: the model's own, and 1.
"""

from typing import Any

from paella.experiments.scored import scored

WITHOUT_GUIDANCE, WITHOUT_TYPICAL = {"guidance": 1.0}, {"typical_mass": 1.0}
PARTS: dict[str, dict[str, Any]] = {
    "plain": WITHOUT_GUIDANCE | WITHOUT_TYPICAL,
    "+ guidance": WITHOUT_TYPICAL,
    "+ typical sampling": WITHOUT_GUIDANCE,
    "+ both": {},
}

EXPERIMENT = scored(
    "What each part of the sampler gives",
    {
        "parts": PARTS,
        "parts, temperature 1": {name: {**changes, "temperature": 1.0} for name, changes in PARTS.items()},
        "noise between steps": {source: {"renoise": source} for source in ("initial", "previous", "fresh")},
        "its places": {places: {"renoise_at": places} for places in ("random", "unsure")},
    },
)
