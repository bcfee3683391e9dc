"""Laws of recipes: later entries win, and whatever does not fit is named before anything starts."""

import re
from pathlib import Path
from typing import Any

import pytest
from training import RECIPES, SCHEMAS, make_stage, schema

from paella.data.vocabulary import all_objects
from paella.train.recipe import OptimizerConfig, Recipe, load_recipe

pytestmark = pytest.mark.usefixtures("small_gallery")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_of_the_repository_loads(path: Path) -> None:
    kind = re.split(r"[-_.]", path.name)[0]
    recipe = load_recipe(schema("predictor" if kind in ("baseline", "finetune") else kind), path)
    assert recipe.steps > 0 and not Path(recipe.output).is_absolute()


def test_there_is_a_recipe_for_every_stage() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} >= set(SCHEMAS)


def test_overrides_come_last(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output: here\nsteps: 5\nmodel: {ch: 64, ch_mult: [1, 2]}\noptimizer: {warmup: 0.5}\n")
    recipe: Any = load_recipe(schema("vqgan"), path, ["steps=7", "model.ch=32"])
    assert (recipe.output, recipe.steps, recipe.optimizer.warmup) == ("here", 7, 0.5)
    assert (recipe.model.ch, list(recipe.model.ch_mult)) == (32, [1, 2])
    assert recipe.optimizer.learning_rate == OptimizerConfig().learning_rate


def test_all_objects_are_asked_for_in_one_word() -> None:
    chosen = [load_recipe(schema("vqgan"), None, ["output=x", f"data.objects={given}"]) for given in ("[all]", "[fox]")]
    assert [recipe.data.objects for recipe in chosen] == [list(all_objects()), ["fox"]]


@pytest.mark.parametrize("text", ["2024_01_15", "007", "1e3", "true", "run #2", "a: b", "[old] pics", "*", "a=b"])
def test_a_text_is_taken_as_it_is(text: str) -> None:
    recipe: Any = load_recipe(schema("predictor"), None, [f"output={text}", f"data.folder={text}", "steps=1_0"])
    assert (recipe.output, recipe.data.folder, recipe.steps) == (text, text, 10)
    recipe = load_recipe(schema("predictor"), None, ["output=${name}/${steps}", f"name= {text}", "steps=5"])
    assert recipe.output == f"{text}/5"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stepz=5"], "stepz"),
        (["optimizer.momentum=1"], "momentum"),
        (["steps=many"], "many"),
        (["model.c_hidden=wide"], "wide"),
        (["data.folder="], "'data.folder=' has no value"),
        (["steps"], "'steps' is not of the form key=value"),
        ([], "output"),  # what has no default
    ],
)
def test_a_wrong_entry_is_named(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=f"^recipe: .*{words}"):
        load_recipe(schema("predictor"), None, [*(["output=x"] if overrides else []), *overrides])


def test_what_is_no_text_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"^recipe: .*picture\.png: .*utf-8"):
        load_recipe(schema("predictor"), tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=0", "steps: must be at least 1, not 0"),
        ("log_every=0", "log_every: must be at least 1, not 0"),
        ("average_every=3", r"log_every: must be a multiple of average_every \(3\), as .*, not 1"),
        ("precision=fp8", "precision: must be auto, bf16 or float32, not 'fp8'"),
        ("data.jitter=-1", r"data\.jitter: must be at least 0, not -1"),
        ("data.size=15", r"data\.size: must be a multiple of [24], the VQGAN's compression, not 15"),
        ("data.mirrored=2", r"data\.mirrored: must be within 0 \.\.\. 1, not 2"),
        ("data.objects=[fox,blob]", r"data\.objects: 'blob' is not in the vocabulary"),
        ("data.objects=[]", r"data\.objects: must not be empty"),
        ("seed=-5", "seed: must be at least 0, not -5"),
        ("ema=1.5", "ema: must be within 0 ... 1, not 1.5"),
        ("optimizer.warmup=200", r"optimizer\.warmup: must be within 0 ... 1, not 200"),
        ("data.shares=[1,2]", r"data\.shares: must be one for each of"),
        ("optimizer.clip=0", r"optimizer\.clip: must be above 0 \(\.inf = gradients as they are\), not 0"),
        ("optimizer.clip=-1", r"optimizer\.clip: must be above 0"),
        ("optimizer.learning_rate=-1", r"optimizer\.learning_rate: must be at least 0, not -1"),
        ("optimizer.weight_decay=-1", r"optimizer\.weight_decay: must be at least 0, not -1"),
        ("optimizer.full_rate_inputs=-1", r"optimizer\.full_rate_inputs: must be at least 0, not -1"),
        ("checkpoint_minutes=.nan", "checkpoint_minutes: must be at least 0, not nan"),
    ],
)
@pytest.mark.parametrize("kind", ["vqgan", "predictor"])
def test_a_value_out_of_range_is_refused_before_the_first_step(
    kind: str, override: str, message: str, tiny_model: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make_stage(kind, tiny_model, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("null_share=10", "null_share: must be within 0 ... 1, not 10"),
        ("t_power=0", "t_power: must be a finite number above 0, not 0"),
        ("image_shift=1", "image_shift: must be at least 0 and less than 1, not 1"),
        ("context_share=1 region_share=0", "context_share: is of samples with a clean region"),
        ("grow=true", "grow: needs init_from"),
    ],
)
def test_so_is_a_predictor_s(override: str, message: str, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make_stage("predictor", tiny_model, *override.split())


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^recipe: cannot read .*missing\.yaml"):
        load_recipe(Recipe, tmp_path / "missing.yaml")
    for text, words in (("output: x\nstepz: 5\n", "stepz"), ("output: [x\n", "line"), ("- steps\n", "")):
        (tmp_path / "wrong.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"^recipe: .*{words}"):
            load_recipe(Recipe, tmp_path / "wrong.yaml")
