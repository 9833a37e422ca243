"""Which runs are one experiment, which recipe a run was made by, and when a run goes on instead of anew."""

from pathlib import Path

import pytest

from lib.config import recipe_names
from lib.errors import InputError
from lib.experiments import VARIANT, Recipe, experiments_of, read_recipes, recipe_of
from lib.files import save_json
from lib.run_folder import METRICS_KEYS, RunFolder
from lib.runs import complete_run, resume_run, start_run
from model.variants import VARIANTS
from tests.conftest import DatasetMaker, load

RECIPES = read_recipes()


def finished(path: Path, root: Path, name: str, *changes: str, recipe: str | None = None) -> RunFolder:
    """Write as much of a finished run as says which experiment it is of."""
    folder = RunFolder(root / name)
    folder.path.mkdir(parents=True)
    folder.save_start(load(path, changes, recipe), {})
    save_json(folder.metrics, dict.fromkeys(METRICS_KEYS))
    return folder


@pytest.mark.parametrize("name", recipe_names())
def test_a_run_is_of_the_recipe_that_it_was_made_by(name: str, make_dataset: DatasetMaker) -> None:
    path = make_dataset(points_per_hour=12, days=2, hours=1)  # room for a patch of three hours
    changes = ["Training.seed=7", "Runtime.threads=2"]
    recipe, differing = recipe_of(load(path, changes, name), RECIPES)
    assert (recipe.name, differing) == (name, [])


def test_the_nearest_recipe_says_what_differs(make_dataset: DatasetMaker) -> None:
    config = load(make_dataset(), ["Training.epochs=12", "Training.dropout=0.2"], "stid_demo")
    recipe, differing = recipe_of(config, RECIPES)
    assert (recipe.name, differing) == ("stid_demo", ["Training.dropout 0.2", "Training.epochs 12"])


def test_a_variant_without_a_recipe_is_its_own(make_dataset: DatasetMaker) -> None:
    config = load(make_dataset(), ["Model.variant=stid", "Model.history_steps=2"])
    without = [recipe for recipe in RECIPES if recipe.texts[VARIANT] != "stid"]
    recipe, differing = recipe_of(config, without)
    assert (recipe.name, recipe.overrides, differing) == ("stid", ["Model.variant=stid"], [])


def test_of_recipes_that_fit_the_one_that_says_most_counts(make_dataset: DatasetMaker) -> None:
    path = make_dataset()
    recipes = [
        Recipe("plain", {VARIANT: "paper"}),
        Recipe("wide", {"Training.d_model": "16"}),  # of any variant
        Recipe("large", {VARIANT: "paper", "Training.d_model": "16.0", "Model.large_kernels": "15, 31"}),
    ]
    wide, large = ["Training.d_model=16"], ["Training.d_model=16", "Model.large_kernels=15 31"]
    for changes, expected in (([], "plain"), (wide, "wide"), (large, "large"), ([*wide, "Model.variant=stid"], "wide")):
        recipe, differing = recipe_of(load(path, changes), recipes)
        assert (recipe.name, differing) == (expected, [])
    recipe, differing = recipe_of(load(path, ["Model.variant=stid"]), recipes)  # which has none of its own
    assert (recipe.name, differing) == ("stid", [])
    assert Recipe("other", {"Model.patch_len": "0"}).differences(load(path, ["Model.variant=stid"])) == [
        "Model.patch_len none"
    ]


def test_a_recipe_is_also_a_list_of_overrides(make_dataset: DatasetMaker) -> None:
    path = make_dataset(points_per_hour=12, days=2, hours=1)
    for recipe in RECIPES:
        assert load(path, recipe.overrides) == load(path, recipe=recipe.name)


def test_where_a_run_is_computed_makes_no_other_experiment_but_precision_and_first_weights_do(
    make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    path = make_dataset()
    runs = [
        finished(path, tmp_path, "one", "Training.seed=1", "Runtime.threads=1", recipe="stid"),
        finished(path, tmp_path, "rounded", "Training.seed=1", "Runtime.precision=bf16", recipe="stid"),
        finished(path, tmp_path, "two", "Training.seed=2", "Runtime.threads=2", "Runtime.data=host", recipe="stid"),
        finished(path, tmp_path, "longer", "Training.seed=2", "Training.epochs=41", recipe="stid"),
        finished(path, tmp_path, "begun", "Training.seed=1", "Training.weights=a/best.pt", recipe="stid"),
        finished(path, tmp_path, "begun-elsewhere", "Training.seed=2", "Training.weights=b/best.pt", recipe="stid"),
    ]
    found, left_out = experiments_of(runs, VARIANTS)
    one, rounded, two, longer, begun, begun_elsewhere = runs
    expected = [{1: one, 2: two}, {1: rounded}, {2: longer}, {1: begun, 2: begun_elsewhere}]
    assert [experiment.runs for experiment in found] == expected
    assert [experiment.name for experiment in found] == ["stid"] * 4
    assert [experiment.differing for experiment in found] == [[], [], ["Training.epochs 41"], []]
    assert left_out == []


def test_a_seed_that_was_run_twice_counts_once_and_is_named(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    path = make_dataset()
    first, again = finished(path, tmp_path, "first"), finished(path, tmp_path, "again", "Runtime.threads=1")
    found, left_out = experiments_of([first, again, RunFolder(tmp_path / "." / "first")], VARIANTS)
    assert [experiment.runs for experiment in found] == [{0: first}]
    assert left_out == [(again, f"found settings and seed of {first}, expected each seed once")]
    again.metrics.unlink()
    with pytest.raises(InputError, match=r"again: found no metrics\.json, expected a finished run"):
        experiments_of([first, again], VARIANTS)


def test_a_run_is_completed_wherever_it_is_computed_and_never_with_other_settings(
    make_dataset: DatasetMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_dataset(epochs=2, fine_tune_epochs=0)
    changes = ["Model.variant=stid", "Training.max_batches=1"]
    config = load(path, [*changes, "Runtime.threads=1"])
    elsewhere = load(path, [*changes, "Runtime.threads=2", "Runtime.checkpoint_minutes=1"])
    start_run(config, tmp_path, "run")  # broken off before its first epoch
    folder = complete_run(elsewhere, tmp_path, "run", VARIANTS)
    assert (folder.is_finished(), len(folder.read_log())) == (True, 2)
    assert folder.read_config(VARIANTS) == config  # it stays what it was started as
    at_once = complete_run(config, tmp_path, "at-once", VARIANTS)
    assert at_once.read_metrics() == folder.read_metrics()

    capsys.readouterr()
    kept = folder.metrics.read_bytes()
    assert complete_run(elsewhere, tmp_path, "run", VARIANTS) == folder
    assert capsys.readouterr().out == f"finished before: {folder}\n"  # nothing was trained
    for change, differing in (
        ("Training.epochs=3", "Training.epochs 2"),
        ("Training.seed=1", "Training.seed 0"),
        ("Runtime.precision=bf16", "Runtime.precision float32"),
        ("Model.variant=paper", "Model.variant stid"),
    ):
        with pytest.raises(InputError) as raised:
            complete_run(load(path, [*changes, change]), tmp_path, "run", VARIANTS)
        expected = "expected the settings asked for, or a new name for the run"
        assert str(raised.value) == f"{folder.settings}: found {differing}, {expected}"
    both = load(path, [*changes, "Training.learning_rate=0.1", "Graph.hops=2"])
    with pytest.raises(InputError, match=r"found Training\.learning_rate 0\.003, expected"):
        complete_run(both, tmp_path, "run", VARIANTS)
    assert folder.metrics.read_bytes() == kept
    with pytest.raises(InputError, match="found no run here"):
        resume_run(RunFolder(tmp_path / "TINY" / "none"), VARIANTS, None)
