"""Checkpoints: tensors and plain values only, written whole or not at all, and the random state that goes with them."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.config import Config
from lib.errors import InputError
from lib.files import reason, written_whole
from lib.interface import Graphs

CHECKPOINT_FORMAT = 3
# In every checkpoint, for its readers. Graphs travel with the weights: the eigenbasis of the Laplacian encoding is
# arbitrary, and the weights rely on it.
CARRIED = ("settings", "graphs", "scaling", "sensor_ids", "made_from", "profile_week", "map")


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all."""
    # In memory first: torch.save does not tell a full disk from other faults.
    written = io.BytesIO()
    torch.save(dict(content), written)
    with written_whole(path) as partial:
        partial.write_bytes(written.getbuffer())


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a file that torch.save wrote, of a dictionary of tensors and plain values only.

    PyTorch writes a CRC-32 of every part into its zip archives and never looks at it; here it is checked. The older
    format of PyTorch before 1.6 has none.

    Raises:
        InputError: the file is missing or damaged, or holds anything else.
    """
    try:
        with path.open("rb") as handle:
            if zipfile.is_zipfile(handle):
                damaged = zipfile.ZipFile(handle).testzip()
                if damaged is not None:
                    raise zipfile.BadZipFile(f"a wrong checksum of {damaged}")
            handle.seek(0)
            content = torch.load(handle, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a checkpoint") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    except Exception as error:  # torch.load raises many kinds, and advises to unpickle
        what = reason(error) if isinstance(error, zipfile.BadZipFile) else type(error).__name__
        raise InputError(f"{path}: cannot be read as a checkpoint of tensors and plain values ({what})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: found a {type(content).__name__}, expected a dictionary of tensors")
    return content


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint of this project."""
    save_tensors(path, {"format": CHECKPOINT_FORMAT, **content})


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project.

    Raises:
        InputError: the file is missing, damaged, or not such a checkpoint.
    """
    checkpoint = load_tensors(path)
    found = checkpoint.get("format")
    if not isinstance(found, int) or found != CHECKPOINT_FORMAT:
        raise InputError(f"{path}: found checkpoint format {found}, expected {CHECKPOINT_FORMAT}".replace("\n", " "))
    if "data_fingerprint" in checkpoint:  # written before runs kept more of what they were trained on
        checkpoint["made_from"] = {"series": checkpoint.pop("data_fingerprint")}
    checkpoint.setdefault("map", None)  # written before runs knew where their sensors stand
    for key in (*CARRIED, "weights", "progress"):
        if key not in checkpoint:
            raise InputError(f"{path}: found no '{key}', expected a checkpoint of this project")
    if not isinstance(checkpoint["settings"], str):
        raise InputError(f"{path}: found settings of type {type(checkpoint['settings']).__name__}, expected a text")
    return checkpoint


def restored(path: Path, checkpoint: Mapping[str, Any], config: Config) -> nn.Module:
    """Return the network of a checkpoint that was read from `path`, built by the run's settings.

    Raises:
        InputError: its weights are not those of that network.
    """
    try:
        model = config.variant.network(Graphs.from_content(checkpoint["graphs"]), config.sizes, config.model)
        model.load_state_dict(checkpoint["weights"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reasons = "; ".join(line.strip() for line in str(error).splitlines())
        raise InputError(f"{path}: found weights that do not fit its model: {reasons}") from None
    return model


def random_state() -> dict[str, Tensor | list[Tensor]]:
    """Return the states of PyTorch's generators.

    They are all that training draws from: nothing of it uses the generators of NumPy or of Python's `random`, so these
    need not be kept.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put PyTorch's generators back into a state of `random_state`; those of GPUs only where there are as many."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
