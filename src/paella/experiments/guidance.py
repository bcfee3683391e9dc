"""What does classifier-free guidance give, and when is it too much? The paper shows FID and recall over w."""

from paella.experiments.scored import scored

EXPERIMENT = scored(
    "Quality over the guidance weight", {"guidance w": {str(w): {"guidance": float(w)} for w in range(1, 11)}}
)
