"""Which experiment a finished run belongs to, and the recipe that it was made by: the rows of all tables of runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from lib.config import RECIPES, Config, recipe_names
from lib.ini import read_sections, read_text
from lib.interface import Variants
from lib.run_folder import RunFolder

VARIANT = "Model.variant"


@dataclass(frozen=True)
class Recipe:
    """Settings that go over those of an INI file.

    Attributes:
        name: of its file; that of the variant where this has no recipe.
        texts: of its settings, by `Section.key`.
    """

    name: str
    texts: dict[str, str]

    @property
    def overrides(self) -> list[str]:
        """The settings as `load_config` takes them."""
        return [f"{name}={text}" for name, text in self.texts.items()]

    def differences(self, config: Config) -> list[str]:
        """Return the settings of a run that are not those of the recipe, each as `Section.key value`."""
        found = config.texts()
        return [
            f"{name} {found.get(name) or 'none'}"
            for name, text in self.texts.items()
            if not _same_value(found.get(name, ""), text)
        ]


def _same_value(first: str, second: str) -> bool:
    """Return whether two texts are the same words or number: `0.0010` is `0.001`, and `15, 17` is `15 17`."""
    try:
        return float(first) == float(second)
    except ValueError:
        return first.replace(",", " ").split() == second.replace(",", " ").split()


def read_recipes() -> list[Recipe]:
    """Return all recipes."""
    recipes = []
    for name in recipe_names():
        path = RECIPES / f"{name}.conf"
        sections = read_sections(read_text(path), path, [])
        texts = {f"{section}.{key}": text for section, keys in sections.items() for key, text in keys.items()}
        recipes.append(Recipe(name, texts))
    return recipes


def recipe_of(config: Config, recipes: Sequence[Recipe]) -> tuple[Recipe, list[str]]:
    """Return the recipe that a run was made by, or else the nearest of its variant, and the settings that differ.

    Of several that fit, it is the one with the most settings.
    """
    variant = config.variant.name
    own = [recipe for recipe in recipes if recipe.texts.get(VARIANT) == variant] or [
        Recipe(variant, {VARIANT: variant})
    ]
    of_any_variant = [recipe for recipe in recipes if VARIANT not in recipe.texts]
    nearest = min(
        [*own, *of_any_variant],
        key=lambda recipe: (len(recipe.differences(config)), -len(recipe.texts.keys() - {VARIANT})),
    )
    return nearest, nearest.differences(config)


@dataclass(frozen=True)
class Experiment:
    """Finished runs that differ by their seed alone.

    Attributes:
        config: the settings, with seed 0.
        recipe: what they were made by, or else the nearest.
        differing: the settings that are not those of the recipe, each as `Section.key value`.
        runs: the folder of each seed.
    """

    config: Config
    recipe: Recipe
    differing: list[str]
    runs: dict[int, RunFolder]

    @property
    def name(self) -> str:
        """The name of its recipe; that of its variant where it was made by none."""
        return self.config.variant.name if self.differing else self.recipe.name


def experiments_of(
    folders: Sequence[RunFolder], variants: Variants
) -> tuple[list[Experiment], list[tuple[RunFolder, str]]]:
    """Group finished runs by experiment, in their order.

    Returns:
        The experiments; and the runs that are left out, each with the reason: of two runs of one experiment with the
        same seed, only the first counts.

    Raises:
        InputError: a folder is not that of a finished run.
    """
    recipes = read_recipes()
    experiments: dict[tuple[tuple[str, str], ...], Experiment] = {}  # by the texts of its settings
    left_out = []
    for folder in {folder.path.resolve(): folder for folder in folders}.values():
        folder.read_metrics()
        config = folder.read_config(variants)
        shared, seed = config.experiment, config.training.seed
        key = tuple(shared.texts().items())
        if key not in experiments:
            experiments[key] = Experiment(shared, *recipe_of(shared, recipes), {})
        runs = experiments[key].runs
        if seed in runs:
            left_out.append((folder, f"found settings and seed of {runs[seed]}, expected each seed once"))
        else:
            runs[seed] = folder
    return list(experiments.values()), left_out
