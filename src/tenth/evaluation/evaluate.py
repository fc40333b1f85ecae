"""`tenth eval`: tasks on a bundle, a GGUF or a Hugging Face folder, and the same on its original."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenth import __version__
from tenth.core import jobs, statistics
from tenth.core.errors import InputError, OutputError
from tenth.core.progress import Reporter
from tenth.core.store import sha256
from tenth.evaluation import catalogue, results
from tenth.evaluation.results import Evaluation, Outcome, TaskResult
from tenth.models import source
from tenth.runtime import sandbox

_WORK = {
    "loglikelihood": "score choices",
    "rolling": "score texts",
    "generate": "write answers",
    "check": "read the answers",
}


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    name: str
    path: Path  # a GGUF or a Hugging Face folder
    runtime: dict[str, Any] | None  # of a bundle's plan
    bundle: Path | None  # its folder

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of `runtimes.opened`."""
        return {"path": str(self.path), "runtime": self.runtime}

    def digest(self) -> str:
        """SHA-256 of the GGUF, or of the folder's safetensors files one after the other."""
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.safetensors"))
        return sha256(*files)


def subject(model: str) -> Subject:
    """A bundle, a GGUF, or what MODEL means elsewhere. InputError where it is none of them."""
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{model} is no .gguf file; give one, a bundle, or a Hugging Face folder")
        return Subject(path.name, path, None, None)
    if (path / "model.gguf").is_file() and (path / "plan.json").is_file():
        from tenth.runtime.bundle import open_bundle

        bundle = open_bundle(path)
        return Subject(str(path), bundle.gguf, bundle.plan.runtime.model_dump(), path)
    return Subject(model, source.resolve(model), None, None)


@dataclass(frozen=True)
class Options:
    """What is asked."""

    tasks: tuple[str, ...]
    limit: int | None = None  # items of each task; None for all
    data: Path | None = None  # folder of JSONL files; None for the hub
    seed: str = ""  # hex; draws other items than the fixed sample (hidden.py)
    threads: int = 0
    limits: sandbox.Limits | None = None  # a stranger's file, which is run in a cell


def evaluate(
    of: Subject, options: Options, reporter: Reporter, log: Path | None = None
) -> tuple[Evaluation, list[Outcome]]:
    """Ask a model. Raises InputError (unknown tasks, no data, no lm-eval), NativeError (the model fails)."""
    check(options)
    steps = _Steps(reporter)
    with tempfile.TemporaryDirectory(prefix="tenth-eval-") as scratch, steps:
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": scratch}
        found = jobs.call(
            "tenth.evaluation.harness:run",
            {
                "tasks": list(options.tasks),
                "model": of.model,
                "limit": options.limit,
                "data": None if options.data is None else str(options.data),
                "seed": options.seed,
                "threads": options.threads,
                "limits": options.limits.model_dump() if options.limits else None,
            },
            steps.on_event,
            log,
            {"TOKENIZERS_PARALLELISM": "false", **(offline if options.data else {})},
        )
    tasks, outcomes = [], []
    for name, part in found["tasks"].items():
        mine = [Outcome(**o) for o in part["outcomes"]]
        tasks.append(_result(name, part, mine))
        outcomes += mine
    from tenth.runtime import llama

    runtime = "transformers, float32" if of.path.is_dir() else llama.build()
    evaluation = Evaluation(
        tenth=__version__,
        harness=found["harness"],
        runtime=runtime,
        model=of.name,
        sha256=of.digest(),
        tasks=tasks,
    )
    return evaluation, outcomes


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
    options: Options,
    reporter: Reporter,
) -> Evaluation:
    """Ours with comparisons; an original that is a model is asked now. Raises as `evaluate` does."""
    evaluation, outcomes = ours
    name = "an earlier run"
    if isinstance(theirs, Subject):
        name = theirs.name
        reporter.say(f"the same tasks on the original, {name}")
        theirs = evaluate(theirs, options, reporter)[1]
    comparisons = results.compare(evaluation.tasks, outcomes, theirs)
    return evaluation.model_copy(update={"against": name, "comparisons": comparisons})


def check(options: Options) -> None:
    """All that can be known to be wrong before a model is loaded."""
    if not options.tasks:
        raise InputError(f"give tasks with --tasks; known: {', '.join(catalogue.known())}")
    if len(set(options.tasks)) != len(options.tasks):
        raise InputError("a task is named twice in --tasks")
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit {options.limit} is no number of items; give 1 or more")
    for name in options.tasks:
        task = catalogue.load(name)
        if options.data is None:
            continue
        if not options.data.is_dir():
            raise InputError(f"no folder of items at {options.data}; leave out --data to use the hub")
        if lacking := catalogue.missing(task, options.data):
            raise InputError(
                f"{options.data} has no {lacking[0]}, which {name} needs; leave out --data to use the hub"
            )
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("tasks need lm-eval; install it with: pip install 'tenth[eval]'")


def _result(name: str, part: dict[str, Any], outcomes: Sequence[Outcome]) -> TaskResult:
    task = catalogue.load(name)
    scores, chance, p = results.score(task.metrics, outcomes)
    prompts = hashlib.sha256("".join(o.prompt for o in sorted(outcomes, key=lambda o: o.id)).encode())
    origin = f"lm-eval's {task.source}" if task.source else "our own configuration"
    return TaskResult(
        task=name,
        title=task.title,
        source=f"{origin}, version {part['version']}",
        items=len(outcomes),
        available=part["available"],
        scores=scores,
        chance=chance,
        above_chance=p,
        informative=p < statistics.LEVEL,
        prompts=prompts.hexdigest(),
        seconds=part["seconds"],
    )


class _Steps:
    """Shows a child's events as the Reporter's steps, one after the other."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._kind = reporter, ""
        self._step: Any = None
        self._advance: Callable[[float], None] = lambda _: None

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *error: object) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)

    def on_event(self, event: dict[str, Any]) -> None:
        """{"kind", "done", "total"}: a new kind is a new step."""
        if event["kind"] != self._kind:
            self.__exit__()
            self._kind = event["kind"]
            self._step = self._reporter.step(_WORK[self._kind], event["total"], "requests")
            self._advance = self._step.__enter__()
        self._advance(event["done"])
