"""What an operator read and wrote, in the words of OpenLineage.

Airflow's OpenLineage provider asks each operator for it when a task has ended; where that provider is missing or
switched off, nobody asks and nothing here is imported. Only what the task has at hand is told: no call, no link, no
name of a person.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from include.archive.layout import participant_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow.providers.openlineage.extractors import OperatorLineage

    from include.archive.stores import Store
    from include.provider.transfer import Batch, Ends, Settled
    from include.recall.client import RecallClient

MOST_FILES = 200
"""How many files the facet of a dataset names one by one."""


@dataclass(frozen=True)
class Data:
    """A dataset, and how much of it a task read or wrote.

    :param namespace: and ``name``: as OpenLineage names what is in Recall, in S3, or in a local folder.
    :param bytes: and ``files``: how much that was, where it is known.
    :param checksums: SHA-256 of each file, by its name below the dataset's.
    :param facts: ids and words about it.
    :param is_dropped: the task removed it.
    """

    namespace: str
    name: str
    bytes: int | None = None
    files: int | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    is_dropped: bool = False

    @property
    def version(self) -> str | None:
        """Stands for the content: the file's SHA-256, or that of the list that ``sha256sum`` would print of them."""
        if not self.checksums:
            return None
        if len(self.checksums) == 1:
            return next(iter(self.checksums.values()))
        lines = (f"{digest}  {name}\n" for name, digest in sorted(self.checksums.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Lineage:
    """What one task read and wrote."""

    reads: Sequence[Data] = ()
    writes: Sequence[Data] = ()


def archived(ends: Ends, batch: Batch, receipts: Sequence[Mapping[str, Any]]) -> Lineage:
    """Tell of the parts that were copied: a dataset for each participant who has one.

    :param receipts: as :func:`include.provider.transfer.archive` returned them.
    """
    stored = [receipt["stored"] for receipt in receipts]
    copied = [part for part in stored if part["transferred"]]
    source = _audio(
        ends.client, batch.recording_id, bytes=sum(part["transferred"] for part in copied), files=len(copied)
    )
    writes = []
    for one in batch.participant_ids:
        place = participant_folder(one)
        mine = {part["key"]: part for part in stored if part["key"].startswith(f"{place}/")}
        if mine:
            data = _folder(
                ends.store,
                f"{batch.folder}/{place}",
                bytes=sum(part["bytes"] for part in mine.values()),
                files=len(mine),
                checksums={key.removeprefix(f"{place}/"): part["sha256"] for key, part in mine.items()},
                facts={"recordingId": batch.recording_id, "participantId": str(one)},
            )
            writes.append(data)
    return Lineage([source], writes)


def settled(ends: Ends, settled: Settled) -> Lineage:
    """Tell of a recording that has its manifest."""
    facts = {"recordingId": settled.recording_id, "outcome": settled.outcome}
    folder = _folder(ends.store, settled.folder, bytes=settled.bytes, files=settled.parts, facts=facts)
    return Lineage([_audio(ends.client, settled.recording_id)], [folder])


def deleted(ends: Ends, recording_id: str, folder: str) -> Lineage:
    """Tell of audio that was deleted at Recall because it is proven to be in the archive."""
    return Lineage([_folder(ends.store, folder)], [_audio(ends.client, recording_id, is_dropped=True)])


def purged(ends: Ends, recording_id: str, folder: str, participant_ids: Iterable[int]) -> Lineage:
    """Tell of participants who were removed from the archive."""
    return Lineage(
        writes=[
            _folder(
                ends.store,
                f"{folder}/{participant_folder(one)}",
                facts={"recordingId": recording_id, "participantId": str(one)},
                is_dropped=True,
            )
            for one in participant_ids
        ]
    )


def _audio(client: RecallClient, recording_id: str, **more: Any) -> Data:
    return Data(f"recall://{client.host}", f"recording/{recording_id}/audio_separate", **more)


def _folder(store: Store, key: str, **more: Any) -> Data:
    uri = store.uri(key)
    if uri.startswith("file:"):
        return Data("file", unquote(urlsplit(uri).path), **more)
    bucket, _, name = uri.removeprefix("s3://").partition("/")
    return Data(f"s3://{bucket}", name, **more)


def to_openlineage(lineage: Lineage | None) -> OperatorLineage[Any, Any]:
    """Return it as Airflow's OpenLineage provider wants it.

    :param lineage: ``None`` for a task that did not come so far.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import input_statistics_input_dataset as read
    from openlineage.client.facet_v2 import output_statistics_output_dataset as written

    def statistics(make: Any, name: str, data: Data) -> dict[str, Any]:
        return {} if data.files is None else {name: make(size=data.bytes, fileCount=data.files)}

    make_read, make_written = read.InputStatisticsInputDatasetFacet, written.OutputStatisticsOutputDatasetFacet
    found = lineage or Lineage()
    return OperatorLineage(
        inputs=[
            InputDataset(
                one.namespace,
                one.name,
                facets=_facets(one),
                inputFacets=statistics(make_read, "inputStatistics", one),
            )
            for one in found.reads
        ],
        outputs=[
            OutputDataset(
                one.namespace,
                one.name,
                facets=_facets(one),
                outputFacets=statistics(make_written, "outputStatistics", one),
            )
            for one in found.writes
        ],
    )


def _facets(data: Data) -> dict[str, Any]:
    from openlineage.client.facet_v2 import DatasetFacet
    from openlineage.client.facet_v2 import dataset_version_dataset as version
    from openlineage.client.facet_v2 import lifecycle_state_change_dataset as lifecycle

    facets: dict[str, Any] = {}
    if data.version is not None:
        facets["version"] = version.DatasetVersionDatasetFacet(datasetVersion=f"sha256:{data.version}")
    if data.is_dropped:
        facets["lifecycleStateChange"] = lifecycle.LifecycleStateChangeDatasetFacet(
            lifecycleStateChange=lifecycle.LifecycleStateChange.DROP
        )
    if data.facts:
        files = [{"name": name, "sha256": digest} for name, digest in sorted(data.checksums.items())[:MOST_FILES]]
        more = {"files": files} if files else {}
        facets["recallArchive"] = DatasetFacet().with_additional_properties(**data.facts, **more)
    return facets
