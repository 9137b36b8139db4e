"""How many groups the ranks of a run are shared out among, where the user has not said it. Pure."""

from asyncdiff.plan.parts import Parts

# Of the groups' time so much must be spent on members of the batch that no other group computes.
_LEAST_USE = 0.75


def choose_groups(world_size: int, stride: int, batch: int, has_branches: bool) -> int:
    """G, the groups that share out every step: as many as possible, because that is exact, and components are not.

    Args:
        world_size: how many ranks there are.
        stride: S; a group has at least S ranks.
        batch: how large the batch of a denoiser call is.
        has_branches: whether the pipeline guides, so that what is no even batch may be one branch of a step's calls.
    """
    divisors = [groups for groups in range(world_size, 1, -1) if world_size % groups == 0]
    fitting = [groups for groups in divisors if world_size // groups >= stride]
    for groups in fitting:
        # Where the parts overlap, several calls of a step are shared out rather than the batch of each.
        least = 1.0 if has_branches else _LEAST_USE
        if batch > 1 and Parts(batch, groups).use >= least:
            return groups
    return 2 if has_branches and 2 in fitting else 1
