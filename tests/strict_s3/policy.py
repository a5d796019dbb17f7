"""What the one user may do: an IAM policy document, read as AWS reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_OPERATORS = frozenset({"StringEquals", "StringLike"})


@dataclass(frozen=True, kw_only=True)
class _Statement:
    allows: bool
    actions: list[str]
    resources: list[str]
    conditions: list[tuple[str, str, list[str]]]

    def applies(self, action: str, resource: str, context: dict[str, str]) -> bool:
        return (
            any(_like(pattern.lower(), action.lower()) for pattern in self.actions)
            and any(_like(pattern, resource) for pattern in self.resources)
            and all(self._holds(*condition, context) for condition in self.conditions)
        )

    @staticmethod
    def _holds(operator: str, name: str, values: list[str], context: dict[str, str]) -> bool:
        if name not in context:
            return False
        if operator == "StringEquals":
            return context[name] in values
        return any(_like(value, context[name]) for value in values)


class Policy:
    """A policy document. Knows ``Allow`` and ``Deny``, wildcards, and string conditions on ``s3:prefix``.

    :raises ValueError: for a document that asks for more than that.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._statements = [_statement(item) for item in _list(document["Statement"])]

    def allows(self, action: str, bucket: str, key: str = "", **context: str) -> bool:
        """Tell whether an action on a bucket or an object is allowed.

        :param context: condition keys of the ``s3:`` family, for example ``prefix``.
        """
        resource = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
        known = {f"s3:{name}": value for name, value in context.items()}
        verdicts = [each.allows for each in self._statements if each.applies(action, resource, known)]
        return bool(verdicts) and all(verdicts)


def _statement(item: dict[str, Any]) -> _Statement:
    unknown = set(item) - {"Sid", "Effect", "Action", "Resource", "Condition"}
    if unknown or item["Effect"] not in ("Allow", "Deny"):
        raise ValueError(f"a policy statement with {sorted(unknown) or item['Effect']} is not understood")
    conditions = [
        (operator, name, _list(values))
        for operator, tests in item.get("Condition", {}).items()
        for name, values in tests.items()
    ]
    for operator, name, _ in conditions:
        if operator not in _OPERATORS or name != "s3:prefix":
            raise ValueError(f"the condition {operator} on {name} is not understood")
    return _Statement(
        allows=item["Effect"] == "Allow",
        actions=_list(item["Action"]),
        resources=_list(item["Resource"]),
        conditions=conditions,
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _like(pattern: str, text: str) -> bool:
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, text, re.DOTALL) is not None
