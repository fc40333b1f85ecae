"""`tenth eval`: tasks on a bundle, a GGUF or a Hugging Face folder, and the same on its original."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tenth import __version__
from tenth.core import jobs, statistics
from tenth.core.errors import InputError, OutputError
from tenth.core.progress import Reporter
from tenth.core.store import temporary_folder
from tenth.evaluation import catalogue, results
from tenth.evaluation.results import Asked, Evaluation, Outcome, TaskResult, TaskRun
from tenth.evaluation.settings import EvalSettings, Subject
from tenth.models import source
from tenth.runtime import llama
from tenth.runtime.bundle import open_bundle

_WORK = {
    "loglikelihood": "score choices",
    "rolling": "score texts",
    "generate": "write answers",
    "check": "read the answers",
}


def subject(model: str) -> Subject:
    """A bundle, a GGUF, or what MODEL means elsewhere. InputError where it is none of them."""
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{model} is no .gguf file; give one, a bundle, or a Hugging Face folder")
        return Subject(name=path.name, path=path)
    if (path / "model.gguf").is_file() and (path / "plan.json").is_file():
        bundle = open_bundle(path)
        return Subject(name=str(path), path=bundle.gguf, runtime=bundle.plan.runtime, bundle=path)
    return Subject(name=model, path=source.resolve(model))


class AskTasks(jobs.Job[Asked]):
    """Every task's items, asked by lm-eval in a child process."""

    subject: Subject
    settings: EvalSettings

    def run(self, emit: jobs.Emit) -> Asked:
        """Ask; emits the kind of request and how many are done."""
        from tenth.evaluation import harness  # lm-eval is optional

        return harness.ask_tasks(self.subject, self.settings, emit)


def evaluate(
    of: Subject, settings: EvalSettings, reporter: Reporter, log: Path | None = None
) -> tuple[Evaluation, list[Outcome]]:
    """Ask a model. Raises InputError (unknown tasks, no data, no lm-eval), NativeError (the model fails)."""
    check(settings)
    steps = _Steps(reporter)
    with temporary_folder() as folder, steps:
        # Of what the child leaves in its temporary folder nothing stays, however it ends.
        environment = {"TOKENIZERS_PARALLELISM": "false", "TMPDIR": str(folder)}
        if settings.data:
            environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder)}
        job = AskTasks(subject=of, settings=settings)
        asked = jobs.run(job, steps.on_event, jobs.Surroundings(log, environment))
    evaluation = Evaluation(
        tenth=__version__,
        harness=asked.harness,
        runtime="transformers, float32" if of.path.is_dir() else llama.build(),
        model=of.name,
        sha256=of.digest(),
        tasks=[_result(name, run) for name, run in asked.tasks.items()],
    )
    return evaluation, [outcome for run in asked.tasks.values() for outcome in run.outcomes]


def place(folder: Path | None) -> Path | None:
    """The folder for the results, made where it is not there; OutputError where it cannot be written."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}; choose another --output") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} cannot be written; choose another --output")
    return folder


def original(given: str) -> Subject | list[Outcome]:
    """A model to ask, or the outcomes of an earlier run (its eval.jsonl). InputError where it is neither."""
    return results.read_items(Path(given)) if Path(given).suffix == ".jsonl" else subject(given)


def against(
    ours: tuple[Evaluation, list[Outcome]],
    theirs: Subject | list[Outcome],
    settings: EvalSettings,
    reporter: Reporter,
) -> Evaluation:
    """Ours with comparisons; an original that is a model is asked now. Raises as `evaluate` does."""
    evaluation, outcomes = ours
    name = "an earlier run"
    if isinstance(theirs, Subject):
        name = theirs.name
        reporter.say(f"the same tasks on the original, {name}")
        theirs = evaluate(theirs, settings, reporter)[1]
    comparisons = results.compare(evaluation.tasks, outcomes, theirs)
    return evaluation.model_copy(update={"against": name, "comparisons": comparisons})


def check(settings: EvalSettings) -> None:
    """All that can be known to be wrong before a model is loaded."""
    if not settings.tasks:
        raise InputError(f"give tasks with --tasks; known: {', '.join(catalogue.known())}")
    if len(set(settings.tasks)) != len(settings.tasks):
        raise InputError("a task is named twice in --tasks")
    if settings.limit is not None and settings.limit < 1:
        raise InputError(f"--limit {settings.limit} is no number of items; give 1 or more")
    for name in settings.tasks:
        task = catalogue.load(name)
        if settings.data is None:
            continue
        if not settings.data.is_dir():
            raise InputError(f"no folder of items at {settings.data}; leave out --data to use the hub")
        if lacking := catalogue.missing(task, settings.data):
            raise InputError(
                f"{settings.data} has no {lacking[0]}, which {name} needs; leave out --data to use the hub"
            )
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("tasks need lm-eval; install it with: pip install 'tenth[eval]'")


def _result(name: str, run: TaskRun) -> TaskResult:
    task = catalogue.load(name)
    scores, chance, p = results.score(task.metrics, run.outcomes)
    ordered = sorted(run.outcomes, key=lambda outcome: outcome.id)
    prompts = hashlib.sha256("".join(outcome.prompt for outcome in ordered).encode())
    origin = f"lm-eval's {task.source}" if task.source else "our own configuration"
    return TaskResult(
        task=name,
        title=task.title,
        source=f"{origin}, version {run.version}",
        items=len(run.outcomes),
        available=run.available,
        scores=scores,
        chance=chance,
        above_chance=p,
        informative=p < statistics.LEVEL,
        prompts=prompts.hexdigest(),
        seconds=run.seconds,
    )


class _Steps:
    """Shows a child's events as the Reporter's steps, one after the other."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._kind = reporter, ""
        self._step: AbstractContextManager[Callable[[float], None]] | None = None
        self._advance: Callable[[float], None] = lambda _: None

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *error: object) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)

    def on_event(self, event: jobs.Event) -> None:
        """{"kind", "done", "total"}: a new kind is a new step."""
        if event["kind"] != self._kind:
            self.__exit__()
            self._kind = event["kind"]
            self._step = self._reporter.step(_WORK[self._kind], event["total"], "requests")
            self._advance = self._step.__enter__()
        self._advance(event["done"])
