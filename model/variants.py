"""All variants of the network. A new one is a file with its network and record, and its line here."""

from lib.interface import Variant, Variants
from model.dtg_lknet import DTGLKNet, PaperSettings
from model.released import RELEASED
from model.released_weights import load_released, to_released_checkpoint
from model.residual import RESIDUAL, RESIDUAL_MLP
from model.stid import STID_VARIANT

PAPER = Variant(  # here, for `model.released_weights` imports its network
    name="paper",
    label="DTG-LKNet (paper)",
    network=DTGLKNet,
    settings=PaperSettings,
    faults=PaperSettings.faults,
    has_encoder=True,
    of_the_paper=True,
    load_released=load_released,
    to_released=to_released_checkpoint,
)

VARIANTS: Variants = {  # the first is the default; tables have this order
    variant.name: variant
    for variant in (
        PAPER,
        RELEASED,
        STID_VARIANT,
        RESIDUAL,
        RESIDUAL_MLP,
    )
}
