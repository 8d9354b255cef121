"""Writes tests/data/schedules.json: the learning rates of transformers' schedules.

    python compiler/command/tests/reference/schedules.py
"""

import json
import pathlib

import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_wsd_schedule,
)

DATA = pathlib.Path(__file__).resolve().parents[1] / "data" / "schedules.json"
LR, STEPS = 0.0078125, 60


def rates(make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer)
    out = []
    # Nothing is compared after the end, because a run has no steps there.
    for _ in range(STEPS + 1):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def case(schedule, warmup, make, min_lr=0.0, decay=None):
    return {
        "schedule": schedule,
        "lr": LR,
        "steps": STEPS,
        "warmup": warmup,
        "min_lr": min_lr,
        "decay": decay,
        "rates": rates(make),
    }


def main():
    cases = []
    for warmup in [0, 1, 7]:
        cases += [
            case("constant", warmup, lambda o: get_constant_schedule_with_warmup(o, warmup)),
            case("linear", warmup, lambda o: get_linear_schedule_with_warmup(o, warmup, STEPS)),
            case("cosine", warmup, lambda o: get_cosine_schedule_with_warmup(o, warmup, STEPS)),
            case(
                "linear",
                warmup,
                lambda o: get_polynomial_decay_schedule_with_warmup(o, warmup, STEPS, lr_end=LR / 8, power=1.0),
                min_lr=LR / 8,
            ),
            case(
                "cosine",
                warmup,
                lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, warmup, STEPS, min_lr=LR / 8),
                min_lr=LR / 8,
            ),
            case("wsd", warmup, lambda o: get_wsd_schedule(o, warmup, 15, num_training_steps=STEPS), decay=15),
            case("wsd", warmup, lambda o: get_wsd_schedule(o, warmup, 6, num_training_steps=STEPS)),
        ]
    # With a minimum rate, transformers also begins the warm-up at it; without a warm-up both are equal.
    cases.append(
        case("wsd", 0, lambda o: get_wsd_schedule(o, 0, 15, num_training_steps=STEPS, min_lr_ratio=1 / 8), LR / 8, 15)
    )
    DATA.write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
