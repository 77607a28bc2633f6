"""The options that all methods share: how they are checked, and how they are shown."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, TypeVar

from fastai.callback.core import Callback
from fastcore.meta import delegates
from torch import Tensor

Schedule = Callable[[float], float]  # from the fraction of the fit that is done to a value, as fastai's SchedCos(0, 1)
Pairing = Callable[[Tensor], Tensor]  # from targets (B, ...) to weights (B, B)
Rule = Literal["loss", "average", "mask", "union", "keep"] | Callable[[Any, Tensor], Tensor] | None  # of a target
InputRule = Literal["mix", "keep"] | Callable[[Any, Any], Any] | None  # of an input
LabelLam = Callable[[Any, Tensor, Tensor], Tensor]  # from the mix and both targets to the targets' coefficients
Cls = TypeVar("Cls", bound=type)


class CutOptions(TypedDict, total=False):
    """Types of the options that the docstring of :class:`MixHandler` explains, for an IDE to complete."""

    prob: float | Schedule
    start: int | float | None
    stop: int | float | None
    per_sample: bool
    stack_x: bool
    stack_y: bool | None
    targets: Rule | Sequence[Rule]
    inputs: InputRule | Sequence[InputRule]
    spatial_dims: int | None
    clean: bool
    pair: Literal["same", "other"] | Pairing | None
    partners: Iterable | Literal["last"] | None
    lam_targets: LabelLam | None
    seed: int | None


class MixOptions(CutOptions, total=False):
    """The same with `fold`, for methods that do not define it."""

    fold: bool


def with_options(cls: Cls) -> Cls:
    """Show the inherited options in the signature of a class and, as its base explains them, in its docstring."""
    doc, wanted, inherited = inspect.cleandoc(cls.__doc__ or ""), False, []
    for line in inspect.cleandoc(cls.__base__.__doc__ or "").partition("Args:\n")[2].splitlines():
        if not line.startswith("    "):
            break
        if not line.startswith("     "):  # an argument's first line
            wanted = f"\n{line.partition(':')[0]}:" not in doc
        inherited += [line] * wanted
    cls.__doc__ = doc.replace("    **kwargs: See :class:`MixHandler`.", "\n".join(inherited))
    return delegates()(cls)


def number(name: str, value: Any, ok: Callable[[float], bool], expected: str, remedy: str = "") -> float:
    """Return `value` as a float; TypeError if it is not a number, ValueError if it is not `ok`."""
    message = f"{name} must be {expected}, got {value!r}"
    if isinstance(value, type):
        raise TypeError(f"{message}. Did you mean an instance, {value.__name__}()?")
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(message)
    if not ok(result := float(value)):
        raise ValueError(message + remedy)
    return result


def flag(name: str, value: Any) -> bool:
    """Return `value` as a bool; TypeError if it is neither True nor False."""
    if value not in (True, False):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def rules(name: str, value: Any, known: tuple[str, ...]) -> Any:
    """Return a rule, or a tuple with a rule for each tensor, if each is known, a function or None."""
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not given or not all(rule is None or rule in known or _is_function(rule) for rule in given):
        names = ", ".join(map(repr, known))
        raise ValueError(f"{name} must be {names}, a function (mix, tensor), or a tuple of these, got {value!r}")
    return given if isinstance(value, (tuple, list)) else value


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, (Callback, type))


def whole(name: str, value: Any, least: int) -> int:
    """Return `value` as an int; an error if it is none, or smaller."""
    return int(number(name, value, lambda k: k >= least and k.is_integer(), f"a whole number >= {least}"))


def alpha_now(value: Any) -> float:
    """Return the value of an alpha or its schedule; 0 disables mixing."""
    return number("alpha", value, lambda a: 0 <= a < math.inf, "a finite number > 0 or a schedule")


def prob_now(value: Any) -> float:
    """Return the value of a probability or its schedule."""
    return number("prob", value, lambda p: 0 <= p <= 1, "a probability from 0 to 1 or a schedule")


def schedule_or(check: Callable[[Any], float], value: Any) -> Any:
    """Return a number as a checked float, or a schedule as it is if both its ends pass the check."""
    if not _is_function(value):
        return check(value)
    for fraction in (0.0, 1.0):
        check(value(fraction))
    return value


def moment(name: str, value: Any) -> Any:
    """Return an epoch as an int, a fraction of the fit as a float, or None."""
    if value is None or (isinstance(value, Integral) and not isinstance(value, bool)):
        return value
    return number(name, value, lambda t: 0 <= t <= 1, "an epoch (int) or a fraction of the fit from 0 to 1 (float)")


def shown(value: Any) -> str:
    """Return the `repr` of an option; of a function or a schedule its name."""
    if f := getattr(value, "f", None):  # fastai's SchedCos(0, 1), whose function is called sched_cos
        name = "".join(part.capitalize() for part in f.__name__.split("_"))
        return f"{name}({value.start}, {value.end})"
    if isinstance(value, partial):
        given = *map(shown, value.args), *(f"{name}={shown(v)}" for name, v in value.keywords.items())
        return f"partial({', '.join((shown(value.func), *given))})"
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= 100 and "tensor(" not in text else f"<{type(value).__name__}>"  # a list of batches


def call_of(method: Any, first: str, values: dict[str, Any]) -> str:
    """Return the call that makes a method: argument `first`, and every option whose value is not the default.

    Values are those in `values`, else the attributes.
    """
    arguments = [shown(getattr(method, first))]
    for name, p in inspect.signature(type(method)).parameters.items():
        value = values.get(name, getattr(method, name, p.default))
        if name != first and (value != p.default or type(value) is not type(p.default)):
            arguments.append(f"{name}={shown(value)}")
    return f"{type(method).__name__}({', '.join(arguments)})"
