"""One of two processes of a pipeline: says as JSON what it generated, scored and read.

Its one argument is JSON: port of the coordinator, index, path, context, prompts, most new tokens.
"""

from __future__ import annotations

import json
import sys

import numpy as np

import endor_jax as endor
from endor_jax.streaming.devices import first_stages


def main() -> None:
    options = json.loads(sys.argv[1])
    read: set[str] = set()
    ordinary = endor.Checkpoint.read_part

    def noted(self: endor.Checkpoint, part, *, into: np.ndarray) -> None:
        read.add(part.path)
        ordinary(self, part, into=into)

    endor.Checkpoint.read_part = noted
    prompts, place = options["prompts"], f"127.0.0.1:{options['port']}"
    with (
        endor.join(place, processes=2, index=options["index"], timeout_seconds=120) as peers,
        endor.load(
            options["path"], context=options["context"], batch=4, mesh=first_stages(2, 1), peers=peers
        ) as model,
    ):
        done = dict(model.complete_batch(prompts, max_tokens=options["most"]))
        losses = [each.tolist() for each in model.losses(prompts[2:4])]
    answers = [[each.token_ids, each.finish_reason] for _, each in sorted(done.items())]
    said = {"answers": answers, "losses": losses, "read": sorted(read), "stages": list(model.plans)}
    sys.stdout.write(f"\n{json.dumps(said)}\n")


if __name__ == "__main__":
    main()
