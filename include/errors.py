"""The one thing that the source and the destination share: how an error says what it is.

Neither wing knows the other, and neither knows Airflow. Whoever runs them needs three facts of any error: its stable
``code``, whether trying again can help, and how long to wait first.
"""

from __future__ import annotations

from typing import ClassVar


class CodedError(Exception):
    """Base of every error that this project raises on purpose.

    The message says what failed, for which id, and what to do. It never holds a signed link, a key, or a reply's body
    beyond 200 characters. Instances survive a pickle round trip with all their fields.

    :param message: one line for a person.
    :param code: overrides the class's stable, lower-case code.
    :param permanent: overrides the class's answer to "is trying again useless?".
    :param retry_after: seconds that the other side asked us to wait, where it did.
    """

    code: str = "unexpected_error"
    permanent: bool = True
    default_retry_after: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        permanent: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if permanent is not None:
            self.permanent = permanent
        self.retry_after = self.default_retry_after if retry_after is None else retry_after

    @property
    def message(self) -> str:
        """The message alone, without the code."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


def _rebuild(cls: type[CodedError], args: tuple[object, ...], state: dict[str, object]) -> CodedError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error
