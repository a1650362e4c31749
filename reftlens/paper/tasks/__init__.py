"""The paper's benchmarks, one family a file: loading, prompts, decoding, scoring (Wu et al. 2024, section 4)."""

from reftlens.arguments import explain_all
from reftlens.paper.tasks import arithmetic, commonsense, glue, instruct
from reftlens.paper.tasks.base import Family, Record, Task, TextTask, evaluate

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *commonsense.TASKS,
        commonsense.TRAINING,
        *arithmetic.TASKS,
        arithmetic.TRAINING,
        *instruct.TASKS,
        *glue.TASKS,
    )
}
"""All tasks by name, including training sets, in the order of the paper's tables."""

__all__ = ["TASKS", "Family", "Record", "Task", "TextTask", "evaluate", "task_named"]


def task_named(name: str) -> Task:
    """Returns a task by its name, in upper or lower case.

    Raises:
        ValueError: If the name is unknown. The message lists the known ones.
    """
    for task in TASKS.values():
        if task.name.lower() == name.lower():
            return task
    raise ValueError(f"Unknown task {name!r}. Choose from: {', '.join(TASKS)}")


explain_all(globals())
