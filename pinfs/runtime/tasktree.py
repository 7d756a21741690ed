"""Where every task stands, for the log."""

from collections.abc import Iterator

import trio


def task_tree(task: trio.lowlevel.Task | None, depth: int = 0) -> Iterator[str]:
    """Every task with the functions and lines it waits in."""
    if task is None:
        return
    frames = [f"{frame.f_code.co_qualname}:{line}" for frame, line in task.iter_await_frames()]
    yield f"{'  ' * depth}{task.name} at {' > '.join(frames[-4:])}"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from task_tree(child, depth + 1)
