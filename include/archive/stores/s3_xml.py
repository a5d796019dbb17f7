"""What S3 answers in XML, and the one document that it is sent."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_plus
from xml.parsers import expat

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_DEEPEST = 16


class UnreadableError(ValueError):
    """It is no document of S3's: cut off, something else altogether, or with declarations of its own."""


class Element:
    """An element without its attributes and without its namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.children: list[Element] = []

    def __getitem__(self, name: str) -> str:
        """Return the text of the first child of that name, empty if there is none."""
        return next((child.text for child in self.children if child.name == name), "")

    def all(self, name: str) -> Iterator[Element]:
        """Yield the children of that name."""
        return (child for child in self.children if child.name == name)


class Listed(NamedTuple):
    """An object in a listing."""

    key: str
    size: int
    etag: str
    modified: float


class Begun(NamedTuple):
    """An upload in a listing."""

    key: str
    upload_id: str
    since: float


class Objects(NamedTuple):
    """A page of a listing of objects, and what to ask for the next one with, if there is one."""

    objects: list[Listed]
    folders: list[str]
    following: str | None


class Uploads(NamedTuple):
    """A page of a listing of uploads, and what to ask for the next one with, if there is one."""

    uploads: list[Begun]
    following: tuple[str, str] | None


def read(content: bytes) -> Element:
    """Return the root of a document.

    :raises UnreadableError: it is none.
    """
    top = Element("")
    path = [top]
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True

    def refuse(*_: Any) -> None:
        raise UnreadableError("it declares what S3 never does")  # with which a small document can become a huge one

    def begin(name: str, _: Any) -> None:
        if len(path) > _DEEPEST:
            raise UnreadableError("it is too deep")
        element = Element(name.rpartition(" ")[2])
        path[-1].children.append(element)
        path.append(element)

    def end(_: str) -> None:
        path.pop()

    def add(text: str) -> None:
        path[-1].text += text

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = add
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise UnreadableError("it is no XML") from error
    return top.children[0]


def objects(root: Element) -> Objects:
    """Read a page of a listing of objects.

    :raises ValueError: it has no such form.
    """
    decoded = unquote_plus if root["EncodingType"] == "url" else str
    return Objects(
        [
            Listed(decoded(one["Key"]), int(one["Size"]), one["ETag"], _moment(one["LastModified"]))
            for one in root.all("Contents")
        ],
        [decoded(one["Prefix"]) for one in root.all("CommonPrefixes")],
        (root["NextContinuationToken"] or None) if root["IsTruncated"] == "true" else None,
    )


def uploads(root: Element) -> Uploads:
    """Read a page of a listing of uploads.

    :raises ValueError: it has no such form.
    """
    return Uploads(
        [Begun(one["Key"], one["UploadId"], _moment(one["Initiated"])) for one in root.all("Upload")],
        (root["NextKeyMarker"], root["NextUploadIdMarker"]) if root["IsTruncated"] == "true" else None,
    )


def parts(parts: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the list of an upload's parts, whose values all are without special characters or quoted ETags."""
    lines = (
        "<Part>" + "".join(f"<{name}>{_escaped(str(part[name]))}</{name}>" for name in sorted(part)) + "</Part>"
        for part in parts
    )
    return f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{"".join(lines)}'.encode() + (
        b"</CompleteMultipartUpload>"
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _moment(text: str) -> float:
    """Return a time such as 2026-03-04T05:06:07.089Z, in seconds since 1970."""
    fraction = text[19:].rstrip("Z")
    return datetime.fromisoformat(text[:19] + "+00:00").timestamp() + (float(f"0{fraction}") if fraction else 0.0)
