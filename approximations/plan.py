"""A plan: which approximation each function of a model gets, and the constants that calibration has fitted."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .errors import PlanError
from .registry import A_ROUND, EXACT, FAITHFUL, Approximation, Constants, Range, find, kinds

FILE_NAME = "plan.json"
DENOMINATOR = "/denominator"
"""The end of the name of a softmax's division, as a call site."""


class Choice(BaseModel):
    """The name of an approximation, and options for its fit (or for the function, if it has no fit)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, float] = Field(default_factory=dict)


def _as_choice(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Named = Annotated[Choice, BeforeValidator(_as_choice)]
Bits = Annotated[int, Field(ge=8, le=16)]
Fraction = Annotated[int, Field(ge=8, le=18)]

A_LAN = 0.0005 * 1e9
"""Bits that a LAN takes there and back in the time of a round: 0.5 ms at 1 Gbit/s."""

FULL_BITS = 16
"""Linear weights of so many bits are not quantised in torch: fixed point rounds them so when it encodes them."""

FULL_FRACTION = 16

PRESETS: dict[str, dict[str, Any]] = {FAITHFUL: {}, "fast": {"linear_bits": 8, "fraction": 13}, "he": {}, EXACT: {}}
"""What each preset sets besides the kinds' choices, which the kinds say themselves."""


class Plan(BaseModel):
    """A choice of approximations: one per kind of function, exceptions by module, calibrated ranges and fits.

        plan = bf.Plan(softmax="2quad", gelu="quad", linear_bits=8)

    gelu ...     the choice for each kind, by name (default: as in preset "faithful")
    overrides    choices by a glob on module paths, the last match wins: {"encoder.layer.0.*": {"gelu": "quad"}}
    linear_bits  bits of linear weights; `bits`: exceptions by a glob on layer paths
    fraction     fractional bits of a rounded value; fewer save bytes and rounds
    ranges       calibrated, by site: "<module path>/<kind>", "/2" for a second call, "/denominator" for a softmax's
    fits         constants by site, for ranges widened by the factor `margin`
    a_round      value of one round, in numbers of 8 bytes from the dealer; more on slow networks (`for_network`)
    pool         layers after which pairs of tokens become their mean, such as (2, 4)

    Raises PlanError for unknown names and values.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Named]  # by kind: which kinds there are is known when all files are read

    name: str = "custom"
    linear_bits: Bits = FULL_BITS
    bits: dict[str, Bits] = Field(default_factory=dict)
    fraction: Fraction = FULL_FRACTION
    margin: float = Field(default=2.0, ge=1.0)
    a_round: float = Field(default=A_ROUND, gt=0.0)
    pool: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), max_length=8)
    overrides: dict[str, dict[str, Named]] = Field(default_factory=dict)
    ranges: dict[str, Range] = Field(default_factory=dict)
    fits: dict[str, Constants] = Field(default_factory=dict)

    if TYPE_CHECKING:

        def __getattr__(self, kind: str) -> Choice: ...

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise PlanError(_one_line(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _with_every_kind(cls, fields: dict[str, Any]) -> dict[str, Any]:
        known = [*cls.model_fields, *kinds()]
        for name in fields:
            if name not in known:
                raise PlanError(f"unknown key {name!r} in the plan: use one of {', '.join(known)}")
        return {**_preset(FAITHFUL), **fields}

    @model_validator(mode="after")
    def _pools_in_order(self) -> Plan:
        if list(self.pool) != sorted(self.pool):
            raise PlanError(f"pool {', '.join(map(str, self.pool))}: give numbers of layers in their order, as 2, 4")
        return self

    @model_validator(mode="after")
    def _choices_exist(self) -> Plan:
        for kind, choice in self.chosen():
            known = find(kind, choice.name).options()
            for option in choice.options:
                if option not in known:
                    raise PlanError(
                        f"approximation {choice.name!r} of {kind} has no option {option!r}: "
                        f"use {', '.join(known) or 'none'}"
                    )
        return self

    @classmethod
    def preset(cls, name: str) -> Plan:
        """A preset: "faithful" for models as they are, "fast" and "he" for students, "exact" for torch's own."""
        if name not in PRESETS:
            raise PlanError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}")
        return cls(name=name, **PRESETS[name], **_preset(name))

    def chosen(self) -> list[tuple[str, Choice]]:
        """Pairs (kind, choice), then those of the overrides."""
        own = [(kind, getattr(self, kind)) for kind in kinds()]
        return own + [pair for by_kind in self.overrides.values() for pair in by_kind.items()]

    def choice(self, kind: str, path: str) -> Choice:
        """The choice for a kind in the module at `path`."""
        chosen: Choice = getattr(self, kind)
        for pattern, by_kind in self.overrides.items():
            if kind in by_kind and fnmatchcase(path, pattern):
                chosen = by_kind[kind]
        return chosen

    def bits_of(self, path: str) -> int:
        """Bits of the linear weight at `path`."""
        chosen = self.linear_bits
        for pattern, bits in self.bits.items():
            if fnmatchcase(path, pattern):
                chosen = bits
        return chosen

    def constants(self, kind: str, site: str, path: str) -> tuple[Approximation, Constants]:
        """The approximation of a call site and its constants; exact if its range has no fit."""
        choice = self.choice(kind, path)
        approximation = find(kind, choice.name)
        fitted = self.fits.get(site)
        if fitted is None and approximation.fit is not None and site in self.ranges:
            return find(kind, EXACT), {}
        if fitted is None or approximation.function is None:
            return approximation, approximation.constants(None, choice.options)
        if not approximation.accepts(fitted):
            raise PlanError(f"the fit stored for {site} is not one of {choice.name!r}: calibrate the plan again")
        return approximation, fitted

    def widened(self, site: str) -> Range | None:
        """The range of a site, widened by the margin; None if not calibrated."""
        if site not in self.ranges:
            return None
        low, high = self.ranges[site]
        return (
            low * self.margin if low < 0 else low / self.margin,
            high * self.margin if high > 0 else high / self.margin,
        )

    def replace(self, **changes: Any) -> Plan:
        """A copy with changed fields."""
        return Plan(**{**dict(self), **changes})

    def for_network(self, rtt: float, bandwidth: float) -> Plan:
        """A copy with fewer rounds for a slow network. rtt: seconds; bandwidth: bits a second."""
        worth = rtt * bandwidth / A_LAN
        return self if worth == 1.0 else self.replace(a_round=A_ROUND * worth)

    def needs_distillation(self) -> bool:
        """Whether a choice needs a student that was trained with it."""
        return bool(self.pool) or any(find(kind, choice.name).needs_distillation for kind, choice in self.chosen())

    def has_scores(self, path: str | None = None) -> bool:
        """Whether attention computes scores, in the module at `path` or anywhere."""
        chosen = self.chosen() if path is None else [("softmax", self.choice("softmax", path))]
        return not any(find(kind, choice.name).features for kind, choice in chosen)

    def same_functions(self, other: Plan) -> bool:
        """Whether both plans choose the same functions; ranges and fits may differ."""
        return (self.overrides, self.pool, self.chosen()) == (other.overrides, other.pool, other.chosen())

    def halvings(self, layer: int) -> int:
        """How often tokens were pooled before this layer (0: the first)."""
        return sum(after <= layer for after in self.pool)

    def trained_fits(self) -> dict[str, Constants]:
        """Fits that a student was trained with, which calibration keeps."""
        return {site: fit for site, fit in self.fits.items() if self._is_trained(site)}

    def _is_trained(self, site: str) -> bool:
        kind = kind_of(site)
        return find(kind, self.choice(kind, site.split("/", maxsplit=1)[0]).name).needs_distillation

    def describe(self) -> list[tuple[str, str, str]]:
        """Rows (what, choice, remark) for a table."""
        rows = [(kind, _label(getattr(self, kind)), _remark(kind, getattr(self, kind))) for kind in kinds()]
        rows += [
            (f"{kind} in {pattern}", _label(choice), _remark(kind, choice))
            for pattern, by_kind in self.overrides.items()
            for kind, choice in by_kind.items()
        ]
        rows.append(("a round", f"{self.a_round:,.0f} numbers", "what it is worth: more on a slow network"))
        rows.append(("linear weights", f"{self.linear_bits} bits", "power-of-two scale per output channel"))
        rows += [(f"linear weights in {pattern}", f"{bits} bits", "") for pattern, bits in self.bits.items()]
        rows.append(("values", f"{self.fraction} fractional bits", "fewer are fewer bytes and fewer rounds"))
        if self.pool:
            layers = ", ".join(str(after) for after in self.pool)
            rows.append(("tokens", f"halved after layers: {layers}", "pairs become their means; needs distillation"))
        calibrated = f"{len(self.ranges)} sites" if self.ranges else "no"
        rows.append(
            ("calibrated", calibrated, f"ranges widened by {self.margin:g}" if self.ranges else "default ranges")
        )
        return rows

    def to_json(self) -> str:
        """Canonical JSON: equal plans give equal texts.

        It names every kind, so a stored plan keeps its meaning when a preset changes. A new kind changes every plan's
        hash.
        """
        unset = {name for name in ("pool", "fraction") if getattr(self, name) == type(self).model_fields[name].default}
        fields = self.model_dump(mode="json", exclude=unset)
        return json.dumps(fields, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = FILE_NAME) -> Plan:
        """The plan of a JSON text; errors name `where`."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"{where} is not JSON ({error}): save the plan again") from None
        if not isinstance(fields, dict):
            raise PlanError(f"{where} does not hold a plan: a JSON object is expected")
        try:
            return cls(**fields)
        except PlanError as error:
            raise PlanError(f"{where}: {error}") from None

    def content_hash(self) -> str:
        """SHA-256 of the JSON, in hexadecimal.

        All parties have it. Calibrated ranges are left out: from a hash of them, a party could test guesses of the
        weights.
        """
        seen = self.replace(ranges=dict.fromkeys(self.ranges, (0.0, 0.0)))
        return hashlib.sha256(seen.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write to a file, or to plan.json in a folder. Returns the file."""
        file = _file(path)
        file.write_text(self.to_json(), encoding="utf-8")
        return file

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a file that `save` wrote."""
        file = _file(path)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise PlanError(f"cannot read {file} ({error.strerror}): give a plan file or its directory") from None
        return cls.from_json(text, str(file))


def kind_of(site: str) -> str:
    """The kind of function a call site name stands for."""
    return "reciprocal" if site.endswith(DENOMINATOR) else site.split("/")[1]


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / FILE_NAME if path.is_dir() else path


def _preset(name: str) -> dict[str, str]:
    return {kind.name: kind.presets.get(name, EXACT) for kind in kinds().values()}


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r} in the plan: use one of {', '.join(Choice.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _label(choice: Choice) -> str:
    options = ", ".join(f"{key}={value:g}" for key, value in choice.options.items())
    return f"{choice.name} ({options})" if options else choice.name


def _remark(kind: str, choice: Choice) -> str:
    approximation = find(kind, choice.name)
    if approximation.function is None:
        return "torch's own, not on secrets"
    parts = [f"error {approximation.error:g}"] if approximation.error is not None and not choice.options else []
    parts += [f"{approximation.comparisons} comparisons"] if approximation.comparisons else []
    parts += ["needs distillation"] if approximation.needs_distillation else []
    return ", ".join(parts)
