"""### Transcribe every archived recording.

An example to copy: for each archived recording, every participant's audio goes through a speech service, and what it
says, placed on the recording's own clock, is stored beside the audio as `derived/transcript.json`. One voice a file
means that nobody has to guess who spoke.

`recognise` stands in for the service, so that the example works without an account: it finds where somebody speaks, by
loudness, and knows no words. Put your service's call in its place.

It is paused when it is first seen; unpause it to try it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import dag, task

from include.provider.assets import RECORDING_ARCHIVED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

FRAME_SECONDS = 0.02
PAUSE_SECONDS = 0.6
LOUD = 400.0
"""Root mean square, of 32,768, from which on a frame is speech."""


def recognise(wav: BinaryIO) -> Iterator[tuple[float, float, str | None]]:
    """Yield where somebody speaks: begin and end in seconds, and what was said, which this stand-in never knows."""
    import array
    import wave

    with wave.open(wav, "rb") as audio:
        rate, channels = audio.getframerate(), audio.getnchannels()
        if audio.getsampwidth() != 2:
            raise ValueError("this stand-in reads samples of 16 bits")
        begin = end = None
        number = 0
        while data := audio.readframes(round(rate * FRAME_SECONDS)):
            samples = array.array("h", data)
            now = number * FRAME_SECONDS
            number += 1
            if sum(value * value for value in samples) > LOUD * LOUD * len(samples):
                begin, end = now if begin is None else begin, now + len(samples) / channels / rate
            elif begin is not None and end is not None and now - end > PAUSE_SECONDS:
                yield begin, end, None
                begin = end = None
        if begin is not None and end is not None:
            yield begin, end, None


@dag(
    schedule=[RECORDING_ARCHIVED],
    catchup=False,
    tags=["recall", "example"],
    doc_md=__doc__,
    is_paused_upon_creation=True,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
)
def example_transcribe() -> None:
    @task
    def find_recordings(**context: Any) -> list[str]:
        """Return the folders of the recordings that this run is about, to map over."""
        return [event.extra["folder"] for event in context["triggering_asset_events"][RECORDING_ARCHIVED]]

    @task
    def transcribe(folder: str) -> str:
        """Transcribe one recording, part by part; what is there already stays."""
        import json
        import tempfile

        from include.archive.manifest import load
        from include.provider.hook import get_store

        store, segments, left_out = get_store(), [], []
        manifest = load(store, folder)
        for part in manifest.parts if manifest else ():
            if part.media_type != "audio/wav":
                left_out.append(part.part_id)
                continue
            with tempfile.TemporaryFile() as audio:
                for chunk in store.read(f"{folder}/{part.key}"):
                    audio.write(chunk)
                audio.seek(0)
                for begin, end, text in recognise(audio):
                    at = part.start_relative_seconds
                    segments.append(
                        {
                            "participant_id": part.participant_id,
                            "start": round(at + begin, 2),
                            "end": round(at + end, 2),
                            "text": text,
                        }
                    )
        transcript = {
            "recogniser": "loudness, without words",
            "segments": sorted(segments, key=lambda one: (one["start"], one["participant_id"])),
            "left_out": left_out,
        }
        key = f"{folder}/derived/transcript.json"
        store.put_if_absent(key, json.dumps(transcript, indent=1).encode(), "application/json")
        return key

    transcribe.expand(folder=find_recordings())


example_transcribe()
