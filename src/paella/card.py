"""What a model says of itself: the rows of `paella info`, and the model card on the hub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from paella.labels import Labels

if TYPE_CHECKING:
    from paella.engine import Engine

CARD = """\
---
library_name: paella
pipeline_tag: text-to-image
---

# {name}

A text-to-image model of the library paella, which implements
[Fast Text-Conditional Discrete Denoising on Vector-Quantized Latent Spaces](https://arxiv.org/abs/2211.07292).

```python
from paella import Paella

pictures = Paella.from_pretrained({repo_id!r}).generate({prompt!r})
```

{parts}

## Training

{training}

## Results

{results}
"""


def describe(pipeline: Engine) -> dict[str, str]:
    """The model's parts, sizes and settings, in words."""
    config, encoder = pipeline.vqgan.config, pipeline.clip
    if isinstance(encoder, Labels):
        encoders, prompts = {"labels": encoder}, f"one of {len(encoder.config.names)} labels"
    else:
        encoders, prompts = {"CLIP": encoder.model}, f"at most {encoder.context} tokens"
    modules = {"predictor": pipeline.predictor, "VQGAN": pipeline.vqgan, **encoders}
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    return {
        "model": pipeline.name,
        "parameters": ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in parameters.items()),
        "pictures": f"{pipeline.size} x {pipeline.size} pixels, or any multiples of {config.f}",
        "tokens": f"one of {config.n_embed} codes for each {config.f} x {config.f} pixels (f = {config.f})",
        "prompts": prompts,
        "settings": ", ".join(f"{name} {value}" for name, value in vars(pipeline.settings).items()),
    }


def model_card(pipeline: Engine, repo_id: str, results: str = "") -> str:
    """The README.md of a model's repository.

    Args:
        repo_id: the repository's, as `Paella.from_pretrained` takes it.
        results: what was measured, in Markdown.
    """
    parts = [f"| {name} | {value} |" for name, value in describe(pipeline).items()]
    parts = ["| | |", "|---|---|", *parts]
    if pipeline.objects:
        parts += ["", f"It was trained to draw {len(pipeline.objects)} objects: {', '.join(pipeline.objects)}."]
    training = "The model does not record how it was trained."
    if pipeline.recipe is not None:
        recipe = json.dumps(pipeline.recipe, indent=1, ensure_ascii=False)
        training = f"By paella, with this recipe:\n\n```json\n{recipe}\n```"
    return CARD.format(
        name=pipeline.name,
        repo_id=repo_id,
        prompt=pipeline.objects[0] if pipeline.objects else "what to draw",
        parts="\n".join(parts),
        training=training,
        results=results.strip() or "None were given.",
    )
