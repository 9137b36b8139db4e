"""Denoisers of what is neither picture nor sound: proteins."""

from typing import Any

import torch

from asyncdiff.zoo.specimen import Specimen, noise

_TOKENS, _LATENTS = 12, 4
_ATOMS = 37  # places for atoms in a residue

_RFD_4 = {
    "nlayers": 5,
    "token_dim": 32,
    "nheads": 2,
    "dim_cond": 16,
    "pair_repr_dim": 16,
    "latent_dim": _LATENTS,
    "token_type_emb_dim": 8,
    "cath_emb_dim": 4,
    "t_emb_dim": 16,
    "seq_sep_dim": 8,
    "xt_pair_dist_dim": 8,
    "tri_mult_c": 8,
}


def _annotations() -> dict[str, Any]:
    """What the preparation of a protein always gives: here nothing is known but the chain itself."""
    unknown = torch.zeros(1, _TOKENS, _ATOMS, dtype=torch.long)
    names = ("hbond", "pistack", "pication", "saltbridge", "hydrophobic", "metal-coord")
    position = torch.arange(_TOKENS)
    return {
        **{f"condition_{name}_1_atom": unknown for name in names},
        "condition_index-group_1_token": torch.zeros(1, _TOKENS, dtype=torch.long),
        "is_in_context_conditioning": torch.zeros(1, _TOKENS, dtype=torch.bool),
        "supports_local_latent": torch.ones(1, _TOKENS, dtype=torch.bool),
        "token_bond_path_length": (position[:, None] - position[None, :]).abs()[None],
        "molecule_iid": torch.zeros(1, _TOKENS, dtype=torch.long),
        "molecule_entity_id": torch.zeros(1, _TOKENS, dtype=torch.long),
    }


def _rfd_4(**more: Any) -> dict[str, Any]:
    return {
        "bb_ca": noise(1, _TOKENS, 3),
        "local_latents": noise(1, _TOKENS, _LATENTS, seed=1),
        "bb_ca_time": torch.tensor([0.3]),
        "local_latents_time": torch.tensor([0.2]),
        "padding_mask": torch.arange(_TOKENS)[None] < _TOKENS - 1,
        "token_type": torch.zeros(1, _TOKENS, dtype=torch.long),
        "atom37_mask": torch.ones(1, _TOKENS, _ATOMS),
        "conditioning": _annotations(),
        **more,
    }


def _rfd_4_recycled() -> dict[str, Any]:
    """Two passes through the blocks in one call."""
    return _rfd_4(recycle_depth=2)


SPECIMENS: tuple[Specimen, ...] = (
    Specimen("RFD4ProteinaTransformer", _RFD_4, _rfd_4, time="bb_ca_time"),
    Specimen("RFD4ProteinaTransformer", _RFD_4, _rfd_4_recycled, variant="two passes", time="bb_ca_time"),
)
