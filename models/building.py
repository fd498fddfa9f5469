"""From a model to a compiled folder: calibrated once, then one program for each length, all with the same plan."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..approximations import Plan, calibrate
from ..approximations.calibrate import out_of_range
from ..approximations.plan import FILE_NAME
from .artifacts import save, write_with_adapters
from .artifacts.writing import check_free
from .compile import CalibrationWarning, Compiled, Logged, Progress, check_embedding, compile, part_of
from .encrypted import Chosen, can_be_encrypted, circuit_for
from .loading.accepted import TRACING
from .loading.calibration_recordings import calibration_recordings
from .loading.calibration_texts import calibration_texts
from .loading.huggingface import LoadError
from .loading.load import BUCKETS, Loaded, load
from .loading.media import media_files
from .loading.speech import SECONDS
from .loading.students import trained_length
from .weight_owners import Weights, weight_owners

LENGTHS = (32, 64, 128)
CALIBRATED = 0.2  # of the time, about
MOST_IMAGES = 64  # to calibrate on
CALIBRATION_IMAGES = "calibration"
"""A folder of images beside a model's weights, which it is calibrated on unless others are given."""
Batches = list[dict[str, Tensor]]


def compile_folder(
    model: str | Path | Loaded,
    folder: str | Path,
    *,
    lengths: Sequence[int] | None = None,
    plan: Plan | str | None = None,
    calibration: Sequence[Any] | None = None,
    embedding: str = "client",
    weights: Weights | None = None,
    outputs: list[str] | None = None,
    texts: int | None = None,
    samples: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Compile a model into a folder, and return it: DIR/server for its owner, DIR/client for every client.

        bf.compile_folder("minilm", "compiled", lengths=[32, 128])

    model        a folder that `save_pretrained` wrote, a hub id, a packaged model, or a result of `load`
    lengths      padded lengths in tokens (default: those of 32, 64, 128 that the model takes); not for images
    plan         a preset's name or a plan (default: the model's own, else "faithful")
    calibration  typical texts, or files, folders or PIL images; never a user's (default: built-in texts)
    texts        texts or images of one query (default: 1; for encrypted queries as many as fit)
    samples      of audio, at least; longer calibration audio raises it

    The other arguments are those of `compile`. A program of sums and products also serves encrypted queries.

    Raises LoadError, ArtifactError, TooDeep, and the errors of `compile`.
    """
    check_free(Path(folder))
    check_embedding(embedding)
    if weights is not None:
        weight_owners(weights)
    progress = progress or Logged()
    loaded = model if isinstance(model, Loaded) else load(model)
    plan = own_plan(loaded.folder) if plan is None else plan
    options: dict[str, Any] = {"embedding": embedding, "weights": weights, "outputs": outputs}
    chosen = Plan.preset(plan) if isinstance(plan, str) else plan
    first = 1.0 if texts is not None or _divides(chosen) else 0.5  # then the number of texts is found, for the second
    check_one_pass(loaded)
    inputs = typical_inputs(loaded, lengths, calibration, samples)

    def compiled(rows: int, progress: Progress) -> dict[int, Compiled]:
        return compile_alike(loaded, inputs, plan, rows=rows, progress=progress, **options)

    programs = compiled(texts or 1, part_of(progress, 0, first))
    circuits = _circuits(programs, part_of(progress, first, 1))
    room = min((circuit.packing.room for circuit, _ in circuits.values()), default=1)
    if texts is None and room > 1:
        programs = compiled(room, part_of(progress, first, 1))
        circuits = _circuits(programs, part_of(progress, 1, 1))
    part_of(progress, 1, 1)("write", 1, 1)
    return save(programs, folder, loaded, circuits)


def compile_beside(
    model: str | Path,
    base: Loaded,
    adapters: Mapping[str, Path],
    folder: str | Path,
    make: Callable[..., Path],
    progress: Progress | None = None,
) -> Path:
    """Compile a base into `folder`, and beside it the base with each of these adapters (artifacts/adapters.py).

    model    the base, for `load` to put each adapter on
    make     `compile_folder` or `compile_chat_folder`, with its other options

    Errors: LoadError, ArtifactError, and those of `make`.
    """
    check_free(Path(folder))
    share = 1 / (1 + len(adapters))

    def writer(number: int, name: str, place: Path) -> Callable[[Path], Path]:
        def write(aside: Path) -> Path:
            loaded = replace(load(model, place), name=f"{base.name}+{name}")
            saying = part_of(progress, number * share, (number + 1) * share, f"{name}: ")
            return make(loaded, aside, progress=saying)

        return write

    whole = partial(make, base, folder, progress=part_of(progress, 1 - share, 1))
    if not adapters:
        return whole()
    writers = {name: writer(number, name, place) for number, (name, place) in enumerate(adapters.items())}
    return write_with_adapters(folder, writers, whole)


def _circuits(programs: Mapping[int, Compiled], progress: Progress) -> dict[int, Chosen]:
    """For encrypted queries, where all programs have their operations and no division, which takes too many levels.

    Errors: TooDeep, CkksError.
    """
    if not all(can_be_encrypted(item.program) and not _divides(item.plan) for item in programs.values()):
        return {}
    progress("plan ciphertexts", 0, 1)
    return {length: circuit_for(compiled) for length, compiled in programs.items()}


def _divides(plan: Plan) -> bool:
    """Whether a plan has reciprocals and roots that take comparisons, or tables."""
    return any(choice.name in ("goldschmidt", "table") for _, choice in plan.chosen())


def own_plan(folder: Path) -> Plan | str:
    """The plan beside a model's weights, because it was trained with it; else `faithful`. Errors: PlanError."""
    return Plan.load(folder) if (folder / FILE_NAME).is_file() else "faithful"


def default_lengths(loaded: Loaded) -> list[int]:
    """Those of 32, 64, 128 that the model takes; of a student of longer texts, those up to what it was trained for."""
    most, trained = loaded.positions, trained_length(loaded.folder)
    longer = [bucket for bucket in BUCKETS if LENGTHS[-1] < bucket <= trained]
    return [length for length in (*LENGTHS, *longer) if most is None or length <= most] or [most or LENGTHS[0]]


def checked_lengths(loaded: Loaded, lengths: Iterable[int]) -> list[int]:
    """Each once, the shortest first. Errors: LoadError for one that the model does not take."""
    wanted = sorted(set(lengths))
    for length in wanted:
        if length < 1:
            raise LoadError(f"length {length}: give numbers of tokens, 1 or more")
        if loaded.positions is not None and length > loaded.positions:
            raise LoadError(f"length {length}: the model takes {loaded.positions} tokens; choose a lower one")
    return wanted


def compile_lengths(
    loaded: Loaded,
    lengths: Iterable[int],
    plan: Plan | str = "faithful",
    *,
    texts: Sequence[str] | None = None,
    **options: Any,
) -> dict[int, Compiled]:
    """A text model's program for each length, the shortest first. `texts` calibrate them all, cut to each length.
    `options`: of `compile_alike`.

    One plan serves all lengths, so that a text's answer hardly depends on what it is padded to, and weights that are
    encoded alike are stored and sent once.
    """
    return compile_alike(loaded, typical_inputs(loaded, lengths, texts), plan, **options)


def compile_alike(
    loaded: Loaded,
    inputs: Mapping[int, Batches],
    plan: Plan | str,
    *,
    rows: int = 1,
    weights: Weights | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[int, Compiled]:
    """A program for the inputs of each length, all with one plan, which they calibrate together.

    inputs   of `typical_inputs`
    rows     texts, images or recordings of one query
    options  of `compile`: embedding, outputs
    """
    check_one_pass(loaded)
    calibrating = part_of(progress, 0, CALIBRATED)
    with TRACING:
        batches = {
            length: _within(loaded, plan, some, part_of(calibrating, at / len(inputs), (at + 1) / len(inputs)))
            for at, (length, some) in enumerate(inputs.items())
        }
        together = [batch for some in batches.values() for batch in _together(some)]
        plan = _calibrated(loaded, plan, together, calibrating)
    programs: dict[int, Compiled] = {}
    work = {length: max(length, 1) * len(some) for length, some in batches.items()}
    for length, some in batches.items():
        done = sum(work[earlier] for earlier in programs)
        start, end = (CALIBRATED + (1 - CALIBRATED) * part / sum(work.values()) for part in (done, done + work[length]))
        programs[length] = compile(
            loaded.model,
            _in_rows(some, rows),
            plan,
            weights=loaded.weights(weights),
            progress=part_of(progress, start, end, f"{length} tokens: " if len(inputs) > 1 else ""),
            name=loaded.name,
            **options,
        )
    return programs


def check_one_pass(loaded: Loaded) -> None:
    """Errors: LoadError for a model whose answer is no one pass."""
    if loaded.task.writes:
        raise LoadError(
            f"{loaded.name}: answers token by token: compile it with `blindformer compile`, or ask bf.pipeline"
        )


def typical_files(loaded: Loaded, files: Sequence[Any] | None) -> list[Any]:
    """Images or recordings to calibrate on: those given, as of `compile_folder`, or the model's own; of many, some.

    Errors: LoadError, InputError.
    """
    medium, chosen = loaded.task.medium, []
    assert medium is not None
    for item in files or ():
        chosen += media_files(loaded.kind, [Path(item)]) if isinstance(item, str | Path) else [item]
    own = loaded.folder / CALIBRATION_IMAGES
    if not chosen and own.is_dir():
        chosen += media_files(loaded.kind, [own])
    if not chosen and loaded.kind == "speech":
        chosen += calibration_recordings(
            getattr(loaded.task.feature_extractor, "chunk_length", SECONDS), loaded.task.feature_extractor.sampling_rate
        )
    if not chosen:
        what = f"takes {medium.plural}; give some typical ones to calibrate on (--calibrate FOLDER)"
        raise LoadError(f"{loaded.name}: {what}")
    step = max(1, len(chosen) / MOST_IMAGES)
    return [chosen[int(i * step)] for i in range(min(MOST_IMAGES, len(chosen)))]


def typical_inputs(
    loaded: Loaded, lengths: Iterable[int] | None, given: Sequence[Any] | None, samples: int = 0
) -> dict[int, Batches]:
    """What a model is calibrated on, by length: `given`, cut to each, or what `compile_folder` takes in its place. Of
    images and recordings the length is 0. `samples`: of a recording, at least; the longest sets it, too.

    Errors: LoadError, InputError.
    """
    medium = loaded.task.medium
    if medium is not None:
        if lengths:
            raise LoadError(f"{loaded.name}: takes {medium.plural}, which have no lengths; leave --lengths out")
        files = typical_files(loaded, given)
        samples = max(samples, loaded.task.samples(files))
        return {0: [loaded.encode_file(item, samples) for item in files]}
    return {
        length: _texts(loaded, length, given) for length in checked_lengths(loaded, lengths or default_lengths(loaded))
    }


def _texts(loaded: Loaded, length: int, texts: Sequence[str] | None) -> Batches:
    most = 60 if length <= 32 else 40 if length <= 128 else 20
    chosen = list(texts) if texts else calibration_texts(most)
    return loaded.examples(chosen, length)


def _within(loaded: Loaded, plan: Plan | str, batches: Batches, progress: Progress) -> Batches:
    """The inputs that stay in the ranges of a plan that comes calibrated. Values of the others grow without bound."""
    if isinstance(plan, str) or not plan.ranges:
        return batches

    left = []
    for done, batch in enumerate(batches):
        progress("check the plan", done, len(batches))
        left.append(list(out_of_range(loaded.model, [batch], plan)))
    within = [batch for batch, sites in zip(batches, left, strict=True) if not sites]
    if len(within) == len(batches) or not within:
        return batches
    warnings.warn(
        f"{loaded.name}: {len(batches) - len(within)} of {len(batches)} calibration inputs leave the plan's ranges, "
        f"first at {next(site for sites in left for site in sites)}; distil again, or --calibrate typical inputs",
        CalibrationWarning,
        stacklevel=4,
    )
    return within


def _calibrated(loaded: Loaded, plan: Plan | str, batches: Batches, progress: Progress) -> Plan:
    if isinstance(plan, Plan) and plan.ranges:
        return plan
    count = lambda done, total: progress("calibrate", done, total)  # noqa: E731
    return calibrate(loaded.model, batches, plan, count)


def _together(batches: Sequence[Mapping[str, Tensor]], rows: int = 16) -> Batches:
    """The same inputs in fewer batches of several rows: quicker, and the ranges are the same."""
    groups = [batches[start : start + rows] for start in range(0, len(batches), rows)]
    return [{name: torch.cat([item[name] for item in group]) for name in group[0]} for group in groups]


def _in_rows(batches: Batches, rows: int) -> Batches:
    """The same inputs in batches of exactly so many rows; the last one is filled up with the first of all."""
    if rows == 1:
        return batches
    short = -len(batches) % rows
    return _together([*batches, *(batches[number % len(batches)] for number in range(short))], rows)
