"""How many groups the ranks of a run are shared out among, where the user has not said it. Pure."""


def choose_groups(world_size: int, stride: int, batch: int, has_branches: bool) -> int:
    """G, the groups that share out every step: as many as possible, because that is exact, and components are not.

    Args:
        world_size: how many ranks there are.
        stride: S; a group has at least S ranks.
        batch: how large the batch of a denoiser call is.
        has_branches: whether the pipeline guides, so that a batch of one is one branch of a step's calls.
    """
    divisors = [groups for groups in range(world_size, 1, -1) if world_size % groups == 0]
    fitting = [groups for groups in divisors if world_size // groups >= stride]
    for groups in fitting:
        if batch > 1 and batch % groups == 0:
            return groups
    return 2 if has_branches and batch == 1 and 2 in fitting else 1
