"""The places of ranks in groups and components."""

from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.plan.mesh import Mesh


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_mesh(guidance: int, component: int, tokens: int) -> None:
    mesh = Mesh(guidance, component, tokens)
    assert mesh.world_size == guidance * component * tokens == guidance * mesh.in_group
    assert sorted(rank for group in mesh.groups() for rank in group) == list(range(mesh.world_size))
    for rank in range(mesh.world_size):
        group, place = mesh.coordinates(rank)
        assert mesh.groups()[group][place] == mesh.counterparts()[place][group] == rank
