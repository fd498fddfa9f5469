"""One stage of training: epochs over batches, warm-up, clipping, early stopping, and checkpoints that go on exactly.

The result is a function of the seed, the data and the settings: a run that was killed and goes on from its last
checkpoint ends with the same weights, bit for bit, on the same machine and number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...protocols.devices import CPU
from ..distillation_settings import DistillError, DistillSettings
from .batches import epoch_batches, padded_length
from .checkpoints import read, write


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

    loss        of a batch's positions, and the tokens that the batch is padded to: the tensor to minimise, and numbers
                to record
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
    device: torch.device = CPU,
) -> list[dict[str, float]]:
    """Train the parameters that require gradients; leave the model with its best weights. Returns the history by epoch.

    lengths   of the training texts: what batches are made of
    file      the stage's checkpoint: gone on from if it is there
    device    where model and texts are
    Errors: DistillError if the loss is not finite, if the disk is full, or if the checkpoint is of another run.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(decayed(parameters, settings.weight_decay), lr=stage.rate, betas=(0.9, 0.98))
    batches_an_epoch = -(-len(lengths) // settings.batch)
    total = stage.epochs * batches_an_epoch
    state, best = _State(), {n: p.detach().clone() for n, p in parameters.items()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)  # of dropout
        stored = read(file)
        if stored is not None:
            state = _resume(stored, parameters, optimizer, best, fingerprint, file, device)
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
                    loss, parts = stage.loss(indices, length)
                value = loss.item()
                norm = math.nan
                if math.isfinite(value):
                    loss.backward()
                    norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip))
                if not math.isfinite(norm):
                    raise DistillError(_diverged(stage, state, value, indices, file))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                state.at, state.step = state.at + 1, state.step + 1
                for name, number in (("loss", value), *parts.items()):
                    state.sums[name] = state.sums.get(name, 0.0) + number
                if progress:
                    progress(TrainingStep(stage.name, state.epoch, state.step, total, value, _shown(state)))
                if state.at < batches_an_epoch and state.at % settings.checkpoint_steps == 0:
                    _save(file, state, parameters, optimizer, best, fingerprint, device)
            model.eval()
            with torch.no_grad():
                figures = stage.validate()
            _end_epoch(figures, stage, state, best, parameters, batches_an_epoch, settings.patience)
            _save(file, state, parameters, optimizer, best, fingerprint, device)
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
        "lower the learning rate or raise the range weight, in another folder"
    )


# Checkpoints.

_RANDOM = "random"  # the state of the generator that dropout draws from


def _save(
    file: Path,
    state: _State,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    fingerprint: str,
    device: torch.device,
) -> None:
    tensors = {f"now.{n}": p.detach() for n, p in parameters.items()}
    tensors |= {f"best.{n}": t for n, t in best.items()}
    tensors[_RANDOM] = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
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
    device: torch.device,
) -> _State:
    tensors, state = stored
    if state.pop("fingerprint") != fingerprint:
        raise DistillError(
            f"{file}: belongs to a run with other settings, data or teacher; give another folder, or remove it"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"now.{name}"])
            best[name].copy_(tensors[f"best.{name}"])
            if f"step.{name}" in tensors:  # a head has no gradients while states are learned
                moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter].update({"step": tensors[f"step.{name}"], **moments})
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors[_RANDOM], device)
    else:
        torch.set_rng_state(tensors[_RANDOM])
    return _State(**state)


def accuracy(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of right answers; (logits [texts, C], labels [texts])."""
    right = [(logits.argmax(-1) == labels).float() for logits, labels in pairs]
    return float(torch.cat(right).mean())
