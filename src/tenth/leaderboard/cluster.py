"""The same on a Ray cluster: one task a submission, `judge` itself on whichever machine has a core.

The machines share the folders of the submissions, the results and the work folder, by the same paths.
"""

from __future__ import annotations

from collections.abc import Generator

from tenth.core.errors import InputError, TenthError
from tenth.leaderboard.judge import JudgeSubmission, judge_apart
from tenth.leaderboard.records import Verdict

LOCAL = "local"  # as an address: a cluster of this machine alone


def judge_on_cluster(
    submissions: list[JudgeSubmission], address: str
) -> Generator[tuple[JudgeSubmission, Verdict | str], None, None]:
    """Judge on a cluster, as they come; a str says why there is no verdict. Raises InputError without Ray."""
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("--cluster needs Ray; install it with: pip install 'tenth[cluster]'") from None
    started = not ray.is_initialized()
    try:
        if started:
            how: dict[str, str] = {} if address == LOCAL else {"address": address}
            ray.init(log_to_driver=False, include_dashboard=False if address == LOCAL else None, **how)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]:.200}") from None
    remote = ray.remote(max_retries=0, num_cpus=max(1, submissions[0].round.threads))(judge_on_worker)
    try:
        pending = {remote.remote(job): job for job in submissions}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1)
            for reference in done:
                job = pending.pop(reference)
                try:
                    answer: Verdict | str = ray.get(reference)
                except (ray.exceptions.RayError, TenthError) as error:
                    answer = " ".join(str(error).split())[-300:]
                yield job, answer
    finally:
        if started:
            ray.shutdown()


def judge_on_worker(job: JudgeSubmission) -> Verdict:
    """On a worker of the cluster: judge in a child, as everywhere."""
    return judge_apart(job)
