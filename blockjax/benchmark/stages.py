"""Simulates stages of a pipeline: block-wise training beside the schedules of end-to-end training."""

import dataclasses
from collections.abc import Sequence

FORWARD, BACKWARD = (
    1.0,
    2.0,
)  # time of a stage for a whole batch; two matrix products for each one forward


@dataclasses.dataclass(frozen=True)
class Task:
    """A piece of work of one stage.

    Attributes:
      kind: forward, backward, or update, which is block-wise training's forward, backward and optimizer in one.
      batch: which batch.
      part: which of its microbatches; of an update, which of the stage's blocks.
      seconds: how long it takes, in units of a stage's forward pass of a batch.
    """

    kind: str
    batch: int
    part: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What came out.

    Attributes:
      busy: fraction of all stages' time, from the first task to the last, that is spent on tasks.
      held: for each stage, the most activations at a time, in units of one stage's activations of a whole batch.
      sent: streams, or gradients of streams, of a whole batch that cross a boundary between two stages for each batch.
      timeline: for each stage, its tasks with the times at which they begin.
    """

    busy: float
    held: list[float]
    sent: float
    timeline: list[list[tuple[float, Task]]]


def blockwise(stages: int, batches: int, blocks: int = 1) -> Simulation:
    """Simulates `pipelined`: every stage trains its blocks on a batch as soon as the stage before it has.

    Args:
      stages: how many.
      batches: how many from filling to draining.
      blocks: of each stage.

    Raises:
      ValueError: a number below 1.
    """
    _at_least_one(stages=stages, batches=batches, blocks=blocks)
    seconds = (FORWARD + BACKWARD) / blocks
    order = [Task("update", i, j, seconds) for i in range(batches) for j in range(blocks)]
    return _simulate([order] * stages, parts=blocks)


def one_forward_one_backward(stages: int, batches: int, microbatches: int) -> Simulation:
    """Simulates end-to-end training by 1F1B: PipeDream-Flush, arXiv:2006.09503.

    A stage begins with as many forward passes as there are stages behind it, then takes backward and forward passes in
    turns. Its optimizer works once for each batch, so that no pass uses stale parameters.

    Raises:
      ValueError: a number below 1.
    """
    _at_least_one(stages=stages, batches=batches, microbatches=microbatches)
    orders = []
    for stage in range(stages):
        order, ahead = [], min(stages - 1 - stage, microbatches)
        for batch in range(batches):
            forward = [
                Task("forward", batch, i, FORWARD / microbatches) for i in range(microbatches)
            ]
            backward = [
                Task("backward", batch, i, BACKWARD / microbatches) for i in range(microbatches)
            ]
            order += forward[:ahead]
            for i in range(microbatches):
                order += [*forward[ahead + i : ahead + i + 1], backward[i]]
        orders.append(order)
    return _simulate(orders, parts=microbatches)


def _simulate(orders: Sequence[Sequence[Task]], parts: int) -> Simulation:
    """Runs each stage's tasks in their order, each as soon as what it needs has arrived."""
    stages, ended, sent = len(orders), {}, 0.0
    timeline = [[] for _ in orders]
    clock = [0.0] * stages
    while any(len(done) < len(order) for done, order in zip(timeline, orders, strict=True)):
        before = len(ended)
        for stage, order in enumerate(orders):
            while len(timeline[stage]) < len(order):
                task = order[len(timeline[stage])]
                needed = _needed(stage, task, stages, parts)
                if needed is not None and needed not in ended:
                    break
                if needed is not None and needed[0] != stage:
                    sent += 1 if task.kind == "update" else 1 / parts
                begin = max(clock[stage], ended[needed] if needed else 0.0)
                clock[stage] = begin + task.seconds
                ended[stage, task.kind, task.batch, task.part] = clock[stage]
                timeline[stage].append((begin, task))
        assert len(ended) > before, "the tasks wait for one another"
    work = sum(task.seconds for order in orders for task in order)
    batches = 1 + max(task.batch for task in orders[0])
    return Simulation(
        busy=work / (stages * max(clock)),
        held=[_most_held(tasks) / parts for tasks in timeline],
        sent=sent / max(1, stages - 1) / batches,
        timeline=timeline,
    )


def _needed(stage, task, stages, parts):
    """Returns the task that must have ended before, as (stage, kind, batch, part); None if there is none."""
    if task.kind == "backward":
        if stage == stages - 1:
            return stage, "forward", task.batch, task.part
        return stage + 1, "backward", task.batch, task.part
    if stage == 0 or (task.kind == "update" and task.part):
        return None
    return stage - 1, task.kind, task.batch, parts - 1 if task.kind == "update" else task.part


def _most_held(tasks):
    """Returns how many microbatches', or blocks', activations a stage holds at most: until backward has ended."""
    held = most = 0
    for _, task in tasks:
        held += task.kind != "backward"
        most = max(most, held)
        held -= task.kind != "forward"
    return most


def _at_least_one(**numbers):
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
