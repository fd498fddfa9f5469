"""Affine forms: what a value of the program is, as a linear map of values that lie in ciphertexts, plus a constant.

Everything between two products of secrets is linear: weights, biases, residuals, means, a normalisation that is affine,
all rearrangements. So it is composed here, in the clear, into one map, and costs one level however much of it there is.

A form's elements are rows x features. A term says, for each row, which elements of a base (a value in ciphertexts) it
reads, and the matrix by which its features follow from them. Rows share matrices, so a layer's weight is held once and
not once a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
ZERO = -1
"""The number of an element that is 0: padding."""


@dataclass(frozen=True)
class Term:
    """features[r] += matrix[kind[r]] @ base[support[r]].

    base     number of the base
    support  [R, S] numbers of its elements
    kind     [R] which matrix
    matrix   [K, F, S]
    """

    base: int
    support: Array
    kind: Array
    matrix: Array

    def like(self, other: Term) -> bool:
        return self.base == other.base and np.array_equal(self.support, other.support)


@dataclass(frozen=True)
class AffineForm:
    """shape (..., F), R = all dimensions but the last. `constant`: [R, F]."""

    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    constant: Array

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def known(self) -> Array | None:
        """The value, if it is no secret."""
        return None if self.terms else self.constant.reshape(self.shape)

    def scaled(self, factor: float) -> AffineForm:
        if factor == 1.0:
            return self
        terms = tuple(Term(t.base, t.support, t.kind, t.matrix * factor) for t in self.terms)
        return AffineForm(self.shape, terms, self.constant * factor)


def known(value: Array) -> AffineForm:
    value = np.asarray(value, dtype=np.float64)
    shape = value.shape or (1,)
    return AffineForm(shape, (), value.reshape(-1, shape[-1]))


def identity(base: int, shape: tuple[int, ...]) -> AffineForm:
    """The base itself."""
    features = shape[-1]
    support = np.arange(math.prod(shape)).reshape(-1, features)
    rows = len(support)
    return AffineForm(
        shape, (Term(base, support, np.zeros(rows, dtype=int), np.eye(features)[None]),), np.zeros((rows, features))
    )


def gather(form: AffineForm, at: Array) -> AffineForm:
    """The form whose element at each place is the element of `form` with the number that `at` holds there."""
    if at.shape == form.shape and np.array_equal(at.reshape(-1), np.arange(form.size)):
        return form
    shape = at.shape or (1,)
    at = at.reshape(-1, shape[-1])
    features = form.shape[-1]
    rows, columns = at // features, np.where(at == ZERO, 0, at % features)
    rows = np.where(at == ZERO, 0, rows)
    constant = np.where(at == ZERO, 0.0, form.constant[rows, columns])
    gathered = [_gathered(term, rows, columns, at == ZERO) for term in form.terms]
    return AffineForm(shape, tuple(term for term in gathered if term.matrix.any()), constant)


def _gathered(term: Term, rows: Array, columns: Array, missing: Array) -> Term:
    count, features = rows.shape
    if (rows == rows[:, :1]).all():
        first = rows[:, 0]
        key, kind = _unique(np.c_[term.kind[first][:, None], np.where(missing, ZERO, columns)])
        matrix = term.matrix[key[:, :1], np.maximum(key[:, 1:], 0)]  # [K, F, S]
        return Term(term.base, term.support[first], kind, matrix * (key[:, 1:] != ZERO)[:, :, None])
    # Elements of several rows: what each of them reads, side by side.
    support = term.support[rows]  # [R, F, S]
    width = support.shape[-1]
    key, kind = _unique(np.c_[term.kind[rows], np.where(missing, ZERO, columns)])
    blocks = term.matrix[key[:, :features], np.maximum(key[:, features:], 0)]  # [K, F, S]
    blocks = blocks * (key[:, features:] != ZERO)[:, :, None]
    matrix = np.zeros((len(key), features, features, width))
    matrix[:, np.arange(features), np.arange(features)] = blocks
    return _compact(
        Term(term.base, support.reshape(count, -1), kind, matrix.reshape(len(key), features, features * width))
    )


def _compact(term: Term) -> Term:
    """Without what no matrix reads."""
    used = (term.matrix != 0).any((0, 1))
    if used.all() or not used.any():
        return term
    return Term(term.base, term.support[:, used], term.kind, term.matrix[:, :, used])


def _unique(keys: Array) -> tuple[Array, Array]:
    unique, index = np.unique(keys, axis=0, return_inverse=True)
    return unique, index.reshape(-1)


def broadcast(form: AffineForm, shape: tuple[int, ...]) -> AffineForm:
    if form.shape == shape:
        return form
    return gather(form, np.broadcast_to(np.arange(form.size).reshape(form.shape), shape))


def add(x: AffineForm, y: AffineForm) -> AffineForm:
    """x + y, broadcasting."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    x, y = broadcast(x, shape), broadcast(y, shape)
    terms = list(x.terms)
    for term in y.terms:
        same = next((i for i, t in enumerate(terms) if t.like(term)), None)
        if same is None:
            terms.append(term)
        else:
            terms[same] = _sum(terms[same], term)
    return AffineForm(shape, tuple(terms), x.constant + y.constant)


def _sum(x: Term, y: Term) -> Term:
    key, kind = _unique(np.c_[x.kind, y.kind])
    return Term(x.base, x.support, kind, x.matrix[key[:, 0]] + y.matrix[key[:, 1]])


def times(form: AffineForm, value: Array) -> AffineForm:
    """The product with a known value, element by element, broadcasting."""
    shape = np.broadcast_shapes(form.shape, value.shape)
    form = broadcast(form, shape)
    factors = np.broadcast_to(value, shape).reshape(-1, shape[-1])
    distinct, index = _unique(factors)
    terms = []
    for term in form.terms:
        key, kind = _unique(np.c_[term.kind, index])
        terms.append(Term(term.base, term.support, kind, term.matrix[key[:, 0]] * distinct[key[:, 1]][:, :, None]))
    return AffineForm(shape, tuple(terms), form.constant * factors)


def linear(form: AffineForm, weight: Array) -> AffineForm:
    """form @ weight: [..., K] x [K, N]."""
    terms = tuple(
        Term(t.base, t.support, t.kind, np.einsum("kfs,fn->kns", t.matrix, weight, optimize=True)) for t in form.terms
    )
    return AffineForm((*form.shape[:-1], weight.shape[1]), terms, form.constant @ weight)


def total(form: AffineForm) -> AffineForm:
    """The sum over the last dimension, which stays with size 1."""
    terms = tuple(Term(t.base, t.support, t.kind, t.matrix.sum(1, keepdims=True)) for t in form.terms)
    return AffineForm((*form.shape[:-1], 1), terms, form.constant.sum(-1, keepdims=True))


def stack(forms: Sequence[AffineForm]) -> AffineForm:
    """All elements, one form after the other: rows as they are if all are of one width, else one element a row."""
    width = forms[0].shape[-1] if len({form.shape[-1] for form in forms}) == 1 else 1
    singles = [f if f.shape[-1] == width else gather(f, np.arange(f.size).reshape(-1, 1)) for f in forms]
    counts = [len(single.constant) for single in singles]
    terms = []
    for i, single in enumerate(singles):
        before, after = sum(counts[:i]), sum(counts[i + 1 :])
        for t in single.terms:
            nothing = len(t.matrix)
            terms.append(
                Term(
                    t.base,
                    np.pad(t.support, ((before, after), (0, 0))),
                    np.pad(t.kind, (before, after), constant_values=nothing),
                    np.concatenate([t.matrix, np.zeros((1, *t.matrix.shape[1:]))]),
                )
            )
    return AffineForm((sum(counts), width), tuple(terms), np.concatenate([single.constant for single in singles]))


@dataclass(frozen=True)
class Elementwise:
    """A form that is factor * base + shift, element by element."""

    base: int
    factor: Array
    shift: Array

    @property
    def uniform(self) -> float | None:
        """The one factor of all elements, if it is one."""
        first = float(self.factor.flat[0])
        return first if first != 0 and bool((self.factor == first).all()) else None


def as_elementwise(form: AffineForm, size: int) -> Elementwise | None:
    """The form as factors of a base of `size` elements in the same order, if it is that."""
    if len(form.terms) != 1 or form.size != size:
        return None
    term, features = form.terms[0], form.shape[-1]
    if term.support.shape != (form.size // features, features):
        return None
    if not np.array_equal(term.support.reshape(-1), np.arange(size)):
        return None
    diagonal = term.matrix[:, np.arange(features), np.arange(features)]
    if np.count_nonzero(term.matrix) != np.count_nonzero(diagonal):
        return None
    return Elementwise(term.base, diagonal[term.kind], form.constant)
