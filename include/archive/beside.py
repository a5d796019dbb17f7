"""What is made from a recording's manifest and kept beside it. It is in no manifest, and losing it loses nothing."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from include.archive.errors import AlreadyExistsError, IntegrityError, ManifestConflictError, ObjectMissingError
from include.archive.manifest import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from include.archive.manifest import Manifest
    from include.archive.stores import Store

log = logging.getLogger(__name__)

_ATTEMPTS = 5
_HEAD_BYTES = 1000


@dataclass(frozen=True)
class Beside:
    """One such file.

    :param name: within the recording's folder.
    :param media_type: what its bytes are.
    :param make: returns the bytes for a manifest in a folder; None where there is to be no file.
    :param mark: what stands near the beginning of each such file that this project wrote.
    """

    name: str
    media_type: str
    make: Callable[[Store, str, Manifest], bytes | None]
    mark: bytes

    def write(self, store: Store, folder: str, manifest: Manifest) -> None:
        """Put the file beside a settled recording's manifest, in one write; one that is there is renewed.

        :param folder: the recording's folder.
        :raises ManifestError: and ``StorageError``: as :meth:`renew`.
        """
        data = self.make(store, folder, manifest)
        if data is None or not store.put_if_absent(f"{folder}/{self.name}", data, self.media_type):
            self.renew(store, folder)

    def renew(self, store: Store, folder: str) -> None:
        """Let the file show the manifest that is there now; one that shows it already is not written again.

        :raises ManifestError: when the manifest can't be read.
        :raises ManifestConflictError: when somebody else keeps replacing it, or the file.
        :raises StorageError: when the store refuses.
        """
        for _ in range(_ATTEMPTS):
            manifest = load(store, folder)
            # Who is slow must not bring back what the manifest no longer says.
            if manifest is None or (self.show(store, folder, manifest) and load(store, folder) == manifest):
                return
        name = self.name
        raise ManifestConflictError(f"{folder}: somebody else keeps replacing the manifest or {name}; try again later")

    def show(self, store: Store, folder: str, manifest: Manifest) -> bool:
        """Let the file show a manifest, be it the one that is there or one that is about to be.

        Only a file that this project wrote makes room, or one that the store has let rot, and only as the version that
        was looked at; any other stays.

        :return: False when somebody else wrote or removed the file meanwhile.
        :raises StorageError: when the store refuses.
        """
        key, data = f"{folder}/{self.name}", self.make(store, folder, manifest)
        info = store.stat(key)
        if info is None:
            return data is None or store.put_if_absent(key, data, self.media_type)
        try:
            with suppress(IntegrityError):
                stored = b"".join(store.read(key))
                if stored == data:
                    return True
                if self.mark not in stored[:_HEAD_BYTES]:
                    log.warning("%s is not of this project and stays as it is", key)
                    return True
            if data is None:
                store.delete(info)
                return True
            with store.write(key, media_type=self.media_type, size=len(data), replaces=info) as writer:
                writer.write(memoryview(data))
                writer.commit({})
        except (AlreadyExistsError, ObjectMissingError):
            return False
        return True
