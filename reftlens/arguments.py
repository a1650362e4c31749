"""Explains wrong arguments of public calls: turns an error from deep inside into one that names the argument.

The arguments are compared with the function's annotations only after an exception that this package
did not raise on purpose. The new error names an argument that does not fit, what was expected and
what was given. If all arguments fit, the exception is raised unchanged. So a call that works is not
checked beforehand, except for its numbers: NaN as a count would give a wrong answer instead of an
error. Classes check their own arguments when they are created.

The calls are wrapped for this, so a warning cannot count the frames up to the user's line; `warn`
looks for it.
"""

from __future__ import annotations

import collections.abc
import dis
import inspect
import math
import operator
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal

from reftlens.numbers import LARGEST, plain_number

_PACKAGE = str(Path(__file__).parent)
_BETWEEN = ("reftlens", "torch", "contextlib")
"""Packages whose frames lie between a warning and the line that it is about: this one, and those of its decorators."""
_RAISE = dis.opmap["RAISE_VARARGS"]
_METHODS = ("__init__", "__getitem__", "__or__", "__sub__")
"""Methods with underscores that users call, directly or by an operator."""
_HINTS = {
    "TransformerBridge": "rl.load_bridge(hf_model=model, tokenizer=tokenizer) or rl.load_bridge(name)",
    "Batch": "rl.encode(bridge, prompts)",
    "Metric": "rl.analysis.probability_of, loss_of or logit_difference_of",
    "Reft": "rl.Reft.at_layers(bridge, ...)",
    "Positions": 'rl.parse("f1+l1"), rl.Last(1), rl.Span(text), ...',
}
"""The functions that create an instance of each class."""


def explain_all(namespace: dict[str, Any]) -> None:
    """Makes the public calls of a package name a wrong argument. Call it last in its `__init__`, with `globals()`.

    Args:
        namespace: the namespace of the package, with `__all__`.
    """
    for name in namespace["__all__"]:
        namespace[name] = explained(namespace[name], namespace["__name__"])


def explained(public: Any, package: str) -> Any:
    """Makes the calls of a public object name a wrong argument. Functions are wrapped; classes keep their identity.

    Args:
        public: the object; if it is neither a function nor a class, it is returned unchanged.
        package: the package in which users, and pickle, find it.
    """
    if inspect.isfunction(public):
        return _function(public, package)
    if inspect.isclass(public):
        for kind in public.__mro__:
            if kind.__module__.startswith("reftlens."):
                _class(kind)
    return public


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the user's line: the innermost one outside this package.

    Args:
        message: what is wrong, and what to do.
        category: class of the warning.
    """
    frame = sys._getframe(1)
    # By module, not by file: the methods of dataclasses have no file.
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        # As in `warnings.warn`: with it, a line that warns again of the same is silent by default.
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


@cache
def _function(function: Callable[..., Any], package: str) -> Callable[..., Any]:
    room = package.rpartition(".")[2]
    wrapper = _wrapped(function, f"rl.{function.__name__}" if room == package else f"rl.{room}.{function.__name__}")
    wrapper.__module__ = package
    return wrapper


@cache
def _class(kind: type) -> None:
    if issubclass(kind, BaseException) or getattr(kind, "_is_protocol", False):
        return
    # Cached, so that a class reached through several public names is wrapped once.
    for name, member in list(vars(kind).items()):
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if inspect.isfunction(function) and (name in _METHODS or not name.startswith("_")):
            wrapper = _wrapped(function, kind.__name__ if name == "__init__" else f"{kind.__name__}.{name}")
            setattr(kind, name, wrapper if function is member else type(member)(wrapper))


def _wrapped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    is_manager = inspect.isgeneratorfunction(inspect.unwrap(function))
    numbers = {} if function.__name__.startswith("__") else _numbers(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if numbers:
            args = tuple(
                plain_number(*numbers[place], value) if place in numbers else value for place, value in enumerate(args)
            )
            kwargs |= {
                name: plain_number(name, kind, kwargs[name]) for name, kind in numbers.values() if name in kwargs
            }
        try:
            made = function(*args, **kwargs)
        except Exception as error:
            _explain(error, function, name, args, kwargs)
            raise
        if is_manager and isinstance(made, AbstractContextManager):
            return _Entered(made, lambda error: _explain(error, function, name, args, kwargs))
        return made

    return call


def _numbers(function: Callable[..., Any]) -> dict[int, tuple[str, str]]:
    """Maps the index of each number argument to its name and annotation. Keyword-only arguments come after all others."""
    found = {}
    for place, parameter in enumerate(inspect.signature(function).parameters.values()):
        if str(parameter.annotation).removesuffix(" | None") in ("int", "float"):
            found[place] = parameter.name, str(parameter.annotation)
    return found


class _Entered(AbstractContextManager[Any]):
    """Explains errors on entering a context as well, since its function runs no line before that."""

    def __init__(self, context: AbstractContextManager[Any], explain: Callable[[Exception], None]) -> None:
        self.context, self.explain = context, explain

    def __enter__(self) -> Any:
        try:
            return self.context.__enter__()
        except Exception as error:
            self.explain(error)
            raise

    def __exit__(self, *error: Any) -> bool | None:
        return self.context.__exit__(*error)


def _explain(
    error: Exception, function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    if isinstance(error, Warning) or _on_purpose(error):
        return
    signature = inspect.signature(function)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return  # Python's own message already explains missing and surplus arguments.
    for parameter, value in given.items():
        kind = signature.parameters[parameter].kind
        hint = _hint(function, parameter)
        if kind is inspect.Parameter.VAR_POSITIONAL:
            # *args are annotated with the type of one of them, and bound as a tuple.
            hint = tuple[hint, ...]  # type: ignore[valid-type]
        if kind is inspect.Parameter.VAR_KEYWORD or (wrong := _wrong(value, hint)) is None:
            continue
        wanted = signature.parameters[parameter].annotation
        makers = [f"; make one with {how}" for what, how in _HINTS.items() if re.search(rf"\b{what}\b", str(wanted))]
        raise TypeError(
            f"{name}: {parameter} must be {wanted if isinstance(wanted, str) else inspect.formatannotation(wanted)}"
            f"{_described(function, parameter)}, got {wrong}{makers[0] if makers else ''}"
        ) from error
    if isinstance(error, IndexError):
        _require_known_tokens(name, given, error)
    resid: Any = given.get("resid")
    width = getattr(given.get("self"), "d_model", None)
    if width is not None and hasattr(resid, "shape") and tuple(resid.shape[-1:]) != (width,):
        raise ValueError(f"{name}: resid must be [..., {width}], got {_shown(resid)}") from error


def _require_known_tokens(name: str, given: Mapping[str, Any], error: IndexError) -> None:
    sizes = [value.cfg.d_vocab for value in given.values() if hasattr(value, "cfg") and hasattr(value.cfg, "d_vocab")]
    for parameter, value in given.items():
        if sizes and hasattr(value, "tokens") and hasattr(value.tokens, "max"):
            least, most = int(value.tokens.min()), int(value.tokens.max())
            if least < 0 or most >= sizes[0]:
                raise ValueError(
                    f"{name}: the tokens of {parameter} must be in the bridge's vocabulary, 0 to {sizes[0] - 1}, got "
                    f"{least} to {most}: make {parameter} with rl.encode(bridge, prompts) from the same bridge"
                ) from error


def _on_purpose(error: BaseException) -> bool:
    """Whether this package raised it, other than by the `raise` above, since an outer call may explain that one better."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    inside = code.co_filename.startswith(_PACKAGE) and code.co_filename != __file__
    # The instruction that left the innermost frame: a raise statement, or a call that failed.
    return inside and code.co_code[trace.tb_lasti] == _RAISE


def _hint(function: Callable[..., Any], parameter: str) -> Any:
    plain = inspect.unwrap(function)
    annotation = getattr(plain, "__annotations__", {}).get(parameter, Any)
    try:
        # One annotation at a time: an unresolvable name elsewhere in the signature must not matter.
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={parameter: annotation}), plain.__globals__)[
            parameter
        ]
    except Exception:  # a name that exists only for type checkers
        return Any


def _described(function: Callable[..., Any], parameter: str) -> str:
    """Returns the parameter's description from the docstring, in brackets."""
    text = inspect.getdoc(function) or ""
    found = re.search(rf"^ +{re.escape(parameter)}: (.*?)(?=\n\s*\n|\n +\w+: |\Z)", text, re.MULTILINE | re.DOTALL)
    return f" ({' '.join(found[1].split()).rstrip('.')})" if found else ""


def _wrong(value: object, hint: Any) -> str | None:
    """Describes the part of a value that does not fit an annotation; None if all of it fits."""
    if hint is Any or isinstance(hint, typing.TypeVar | str | typing.ForwardRef):
        return None
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        found = [_wrong(value, part) for part in inner]
        # The longest complaint comes from the alternative that fits furthest into the value.
        return None if None in found else max(filter(None, found), key=len)
    if origin is Literal:
        return None if isinstance(value, str | int | None) and value in inner else _shown(value)
    if hint is None or hint is type(None):
        return None if value is None else _shown(value)
    if origin is type:
        return None if isinstance(value, type) else _shown(value)
    if origin is collections.abc.Callable:
        return None if callable(value) else _shown(value)
    if hint in (int, float, str):
        return _wrong_scalar(value, hint)
    if origin is not None and isinstance(origin, type):
        return _wrong_items(value, origin, inner)
    try:
        if not isinstance(value, hint):
            return _shown(value)
    except TypeError:  # a protocol, or another type that isinstance does not support
        return None
    finite = value.isfinite().all() if "Tensor" in str(hint) and hasattr(value, "isfinite") else True
    return None if finite else f"{_shown(value)} that holds NaN or infinity"


def _wrong_scalar(value: object, hint: type) -> str | None:
    if hint is str:
        if isinstance(value, str):
            broken = re.search("[\ud800-\udfff]", value)
            return f"a string with a lone surrogate, {broken[0]!r} at index {broken.start()}" if broken else None
        return _shown(value)
    try:
        number = operator.index(value) if hint is int else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return _shown(value)
    fits = not isinstance(value, bool | str | bytes) and math.isfinite(number) and abs(number) <= LARGEST
    return None if fits else _shown(value)


def _wrong_items(value: object, origin: type, inner: tuple[Any, ...]) -> str | None:
    if not isinstance(value, origin) or (isinstance(value, str | bytes) and inner):
        return _shown(value)
    if isinstance(value, Mapping):
        pairs = [(f"key {key!r:.40}", key, inner[0]) for key in value]
        pairs += [(f"the value of {key!r:.40}", item, inner[-1]) for key, item in value.items()]
    elif not isinstance(value, collections.abc.Collection) or not inner:
        return None
    elif origin is tuple and Ellipsis not in inner:
        if len(value) != len(inner):
            return f"{len(value)} of them"
        pairs = [(f"item {i}", item, part) for i, (item, part) in enumerate(zip(value, inner, strict=True))]
    else:
        pairs = [(f"item {i}", item, inner[0]) for i, item in enumerate(value)]
    for where, item, part in pairs:
        if wrong := _wrong(item, part):
            return f"a {type(value).__name__} with {wrong} as {where}"
    return None


def _shown(value: object) -> str:
    name = type(value).__name__
    if value is None:
        return "None"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{name} of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"{value!r:.60} ({name})" if isinstance(value, str | bytes | int | float | complex) else name
