"""Who goes first: start-time fair queueing over flows of equal jobs (Goyal, Vin and Cheng, 1996).

A flow is (priority, caller, kind). Each has a tag, the moment in virtual time at which its next job may
start. The flow with the lowest tag is served, and its tag grows by what the job cost over its weight; a flow
that was empty starts at the present virtual time. So flows that wait share the engine by weight, whatever
their jobs cost; a small picture never waits for a backlog of large ones; interactive flows get most of the
engine, and batch flows their share.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from twinshot_server.scheduling.costs import CostTable
from twinshot_server.scheduling.jobs import Job, Kind, Priority

WEIGHTS = {Priority.INTERACTIVE: 8.0, Priority.BATCH: 1.0}
"""Shares of the engine while both wait."""

FlowKey = tuple[Priority, str, Kind]


@dataclass(slots=True)
class _Flow:
    tag: float
    jobs: deque[Job] = field(default_factory=deque)


class FairQueue:
    """Jobs that wait; `largest` is the most that may share a forward pass."""

    def __init__(self, costs: CostTable, largest: int) -> None:
        self._costs = costs
        self._largest = largest
        self._flows: dict[FlowKey, _Flow] = {}
        self._now = 0.0  # in virtual time

    def __len__(self) -> int:
        """How many jobs wait."""
        return sum(len(flow.jobs) for flow in self._flows.values())

    def push(self, job: Job) -> None:
        """Add a job, behind those of its flow."""
        key = (job.priority, job.caller, job.kind)
        flow = self._flows.setdefault(key, _Flow(self._now))
        if not flow.jobs:
            flow.tag = max(flow.tag, self._now)
        flow.jobs.append(job)

    def put_back(self, job: Job) -> None:
        """Add a job that was popped but not drawn, ahead of those of its flow."""
        key = (job.priority, job.caller, job.kind)
        self._flows.setdefault(key, _Flow(self._now)).jobs.appendleft(job)

    def remove(self, job: Job) -> bool:
        """Take out a job that nobody wants any more; False if it was not waiting."""
        flow = self._flows.get((job.priority, job.caller, job.kind))
        if flow is None or job not in flow.jobs:
            return False
        flow.jobs.remove(job)
        return True

    def clear(self) -> list[Job]:
        """Take out everything."""
        jobs = [job for flow in self._flows.values() for job in flow.jobs]
        self._flows.clear()
        return jobs

    def pop(self) -> list[Job]:
        """The batch whose turn it is, of one kind; empty if nothing waits."""
        leader = min(filter(lambda key: self._flows[key].jobs, self._flows), key=self._turn, default=None)
        if leader is None:
            return []
        self._now = max(self._now, self._flows[leader].tag)
        kind = leader[2]
        mates = [leader, *(key for key in self._flows if key[2] == kind and key != leader)]
        waiting = sum(len(self._flows[key].jobs) for key in mates)
        count = self._costs.best_batch(kind.size, kind.passes, min(waiting, self._largest))
        share = self._costs.seconds(kind.size, kind.passes, count) / count
        batch: list[Job] = []
        for key in mates:
            batch += self._take(key, count - len(batch), share)
        self._forget_idle_flows()
        return batch

    def copy(self) -> FairQueue:
        """A queue of the same jobs in the same state, to find out what would be."""
        copy = FairQueue(self._costs, self._largest)
        copy._now = self._now
        copy._flows = {key: _Flow(flow.tag, flow.jobs.copy()) for key, flow in self._flows.items()}
        return copy

    def _turn(self, key: FlowKey) -> tuple[float, float]:
        flow = self._flows[key]
        return flow.tag, flow.jobs[0].arrived

    def _take(self, key: FlowKey, count: int, seconds: float) -> list[Job]:
        """Up to `count` jobs of a flow, each charged with its share of the batch's seconds."""
        flow = self._flows[key]
        taken = [flow.jobs.popleft() for _ in range(min(count, len(flow.jobs)))]
        flow.tag = max(flow.tag, self._now) + len(taken) * seconds / WEIGHTS[key[0]]
        return taken

    def _forget_idle_flows(self) -> None:
        idle = [key for key, flow in self._flows.items() if not flow.jobs and flow.tag <= self._now]
        for key in idle:
            del self._flows[key]
