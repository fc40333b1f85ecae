"""Measure the default sensitivities of `tenth plan`, on standard output.

python bench/prior.py MODEL TEXT > src/tenth/data/default_sensitivity.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from tenth.cli.console import ConsoleReporter
from tenth.core.store import default_work
from tenth.models.checkpoint import open_checkpoint
from tenth.pipeline.effort import EFFORTS
from tenth.pipeline.steps import Stages, Workshop
from tenth.quantization import default_sensitivity


def main() -> None:
    model, text = Path(sys.argv[1]), Path(sys.argv[2])
    checkpoint = open_checkpoint(model)
    work = default_work()
    stages = Stages(checkpoint, Workshop(work, ConsoleReporter(), work / "prior.log"))
    texts = stages.texts(text, None, 512, EFFORTS["fast"], 0)
    calibration = stages.calibration(texts, 0)
    sensitivities = stages.sensitivities(calibration)
    kv = stages.kv_sensitivities(texts, texts.length)
    print(
        default_sensitivity.dump(
            default_sensitivity.derive(checkpoint.name, checkpoint.specs(), sensitivities, kv)
        ),
        end="",
    )


if __name__ == "__main__":
    main()
