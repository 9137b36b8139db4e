"""Process groups of our own beside the default one."""

import torch.distributed as dist


def end_group(group: dist.ProcessGroup, is_broken: bool = False) -> None:
    """Destroy a group, unless it went with the default one.

    Args:
        is_broken: whether operations may be outstanding that will never end. Destroying waits for them where a backend
            works on its own, so they are aborted first, as far as torch can do that (not in 2.6).
    """
    try:
        dist.get_rank(group)
    except ValueError:
        return
    if is_broken and hasattr(group, "abort"):
        group.abort()
    dist.destroy_process_group(group)
