"""One stage of training: epochs over batches, warm-up, clipping, early stopping, and checkpoints that go on exactly.

The result is a function of the seed, the data and the settings: a run that was killed and goes on from its last
checkpoint ends with the same weights, bit for bit, on the same machine and number of threads and processes. Several
processes take the steps of one, up to the rounding of sums in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..distillation_settings import DistillError, DistillSettings
from .batches import epoch_batches, padded_length
from .checkpoints import read, write
from .processes import ALONE, Processes


@dataclass(frozen=True)
class TrainingStep:
    """Progress: after every step and every epoch. `metric`: the stage's best on validation so far, None before one."""

    stage: str
    epoch: int
    step: int
    steps: int
    loss: float
    metric: float | None


Progress = Callable[[TrainingStep], None]


@dataclass
class Stage:
    """What differs between stages.

    loss        of a batch's positions, or of this process's part of them, and the tokens that the batch is padded to:
                the tensor to minimise, and numbers to record; over all processes both add up to the batch's
    validate    numbers to record; "score" of them is the one to maximise
    dropout     the model's own; a student is to do exactly what its teacher does, without noise
    blame       called with the batch's positions when a loss is NaN or infinite: which layer left its range
    """

    name: str
    epochs: int
    rate: float
    loss: Callable[[Sequence[int], int], tuple[Tensor, dict[str, float]]]
    validate: Callable[[], dict[str, float]]
    dropout: bool = False
    blame: Callable[[Sequence[int]], str] = lambda indices: "no layer was watched"


@dataclass
class _State:
    epoch: int = 0
    at: int = 0  # batches done in this epoch
    step: int = 0
    best: float = -math.inf
    stale: int = 0
    finished: bool = False
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    model: nn.Module,
    stage: Stage,
    lengths: Sequence[int],
    settings: DistillSettings,
    file: Path,
    fingerprint: str,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> list[dict[str, float]]:
    """Train the parameters that require gradients; leave the model with its best weights. Returns the history by epoch.

    lengths   of the training texts: what batches are made of
    file      the stage's checkpoint: gone on from if it is there
    processes that divide each batch among them; the first validates, and writes and reads the file
    Errors: DistillError if the loss is not finite, if the disk is full, or if the checkpoint is of another run.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(decayed(parameters, settings.weight_decay), lr=stage.rate, betas=(0.9, 0.98))
    batches_an_epoch = -(-len(lengths) // settings.batch)
    total = stage.epochs * batches_an_epoch
    if len(set(processes.each(fingerprint))) > 1:
        raise DistillError(f"{file}: the processes have different settings, data or teachers; start all of them alike")
    start = processes.first(lambda: {n: p.detach().cpu() for n, p in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    state, best = _State(), {n: p.detach().clone() for n, p in parameters.items()}
    device = processes.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed + processes.rank)  # dropout: each draws its own
        stored = processes.first(lambda: read(file))
        if stored is not None:
            state = _resume(stored, parameters, optimizer, best, fingerprint, file, processes)
        if state.epoch == 0 and not state.finished and stage.epochs == 0:
            state.finished = True
        while not state.finished:
            batches = epoch_batches(lengths, settings.batch, settings.seed, state.epoch)
            model.train(stage.dropout)
            for indices in batches[state.at :]:
                for group in optimizer.param_groups:
                    group["lr"] = stage.rate * _slope(state.step, total, settings.warm_up)
                with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
                    length = padded_length(lengths[i] for i in indices)
                    loss, parts = stage.loss(processes.part(indices), length)
                value, *numbers = processes.totals(loss.item(), *parts.values())
                norm = math.nan
                if math.isfinite(value):
                    loss.backward()
                    processes.add_gradients(list(parameters.values()))
                    norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip))
                if not math.isfinite(norm):
                    raise DistillError(_diverged(stage, state, value, indices, file))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                state.at, state.step = state.at + 1, state.step + 1
                for name, number in (("loss", value), *zip(parts, numbers, strict=True)):
                    state.sums[name] = state.sums.get(name, 0.0) + number
                if progress:
                    progress(TrainingStep(stage.name, state.epoch, state.step, total, value, _shown(state)))
                if state.at < batches_an_epoch and state.at % settings.checkpoint_steps == 0:
                    _save(file, state, parameters, optimizer, best, fingerprint, processes)
            model.eval()
            figures = processes.first(torch.no_grad()(stage.validate))
            _end_epoch(figures, stage, state, best, parameters, batches_an_epoch, settings.patience)
            _save(file, state, parameters, optimizer, best, fingerprint, processes)
            if progress:
                progress(
                    TrainingStep(stage.name, state.epoch, state.step, total, state.history[-1]["loss"], _shown(state))
                )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(best[name])
    model.eval()
    return state.history


def _end_epoch(
    figures: dict[str, float],
    stage: Stage,
    state: _State,
    best: dict[str, Tensor],
    parameters: dict[str, nn.Parameter],
    batches: int,
    patience: int,
) -> None:
    means = {name: total / batches for name, total in state.sums.items()}
    state.history.append({"epoch": state.epoch + 1, **means, **{f"validation_{n}": v for n, v in figures.items()}})
    state.epoch, state.at, state.sums = state.epoch + 1, 0, {}
    if figures["score"] > state.best:
        state.best, state.stale = figures["score"], 0
        for name, parameter in parameters.items():
            best[name].copy_(parameter.detach())
    else:
        state.stale += 1
    state.finished = state.epoch >= stage.epochs or state.stale >= patience


def decayed(parameters: dict[str, nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """An optimizer's groups: matrices decay, biases and the weights of norms do not."""
    return [
        {"params": [p for p in parameters.values() if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters.values() if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _slope(step: int, total: int, warm_up: float) -> float:
    """Up in a line for the first steps, then down in a line to zero after the last."""
    rising = max(1, round(warm_up * total))
    return (step + 1) / rising if step < rising else max(0.0, (total - step) / max(1, total - rising))


def _shown(state: _State) -> float | None:
    return state.best if math.isfinite(state.best) else None


def _diverged(stage: Stage, state: _State, loss: float, indices: Sequence[int], file: Path) -> str:
    what = f"the loss is {loss:g}" if not math.isfinite(loss) else "a gradient is not finite"
    kept = f"the last good checkpoint is {file}" if file.is_file() else "no checkpoint was due before"
    return (
        f"stage {stage.name}, step {state.step + 1}: {what}; {stage.blame(indices)}. {kept}; "
        "lower the learning rate or raise the range weight, in a new folder"
    )


# Checkpoints.


def _save(
    file: Path,
    state: _State,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    fingerprint: str,
    processes: Processes,
) -> None:
    random = processes.each(processes.random_state())
    if processes.rank:
        return
    tensors = {f"now.{n}": p.detach() for n, p in parameters.items()}
    tensors |= {f"best.{n}": t for n, t in best.items()}
    tensors |= {_random(rank): drawn for rank, drawn in enumerate(random)}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    write(file, tensors, {"fingerprint": fingerprint, **vars(state)})


def _resume(
    stored: tuple[dict[str, Tensor], dict[str, Any]],
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    fingerprint: str,
    file: Path,
    processes: Processes,
) -> _State:
    tensors, state = stored
    if state.pop("fingerprint") != fingerprint:
        raise DistillError(
            f"{file}: belongs to a run with other settings, data, teacher or processes; give another folder"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"now.{name}"])
            best[name].copy_(tensors[f"best.{name}"])
            if f"step.{name}" in tensors:  # a head has no gradients while states are learned
                moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter].update({"step": tensors[f"step.{name}"], **moments})
    processes.set_random_state(tensors[_random(processes.rank)])
    return _State(**state)


def _random(rank: int) -> str:
    return f"random.{rank}" if rank else "random"


def accuracy(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of right answers; (logits [texts, C], labels [texts])."""
    right = [(logits.argmax(-1) == labels).float() for logits, labels in pairs]
    return float(torch.cat(right).mean())
