"""Speak the demo meeting again: ``python build.py`` in this folder, with espeak-ng, sox, oggenc and lame installed.

Development only. The simulator reads what this writes and never runs it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RATE = 16_000
MP3_PARTS = frozenset({"phone-a"})


def run(*command: object) -> bytes:
    """Run a tool and return what it prints."""
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE).stdout  # noqa: S603


def speak(name: str, turn: dict[str, Any], voice: dict[str, Any]) -> None:
    """Speak one turn into ``turns/<name>.ulaw``: 16 kHz, mono, 8-bit mu-law, silence trimmed at both ends."""
    with tempfile.TemporaryDirectory() as folder:
        spoken = Path(folder, "spoken.wav")
        run("espeak-ng", "-v", voice["voice"], "-p", voice["pitch"], "-s", voice["speed"], "-w", spoken, turn["text"])
        trim = ["silence", "1", "0.02", "0.3%"]
        effects = ["rate", RATE, *trim, "reverse", *trim, "reverse", "gain", "-n", "-4"]
        if "band" in voice:
            effects = ["sinc", voice["band"], *effects]
        run("sox", "-D", spoken, "-t", "ul", "-r", RATE, "-c", 1, HERE / "turns" / f"{name}.ulaw", *effects)


def encode(name: str, turns: list[str], meeting: dict[str, Any]) -> None:
    """Encode one part, with the silence between its turns, as ``parts/<name>.ogg`` or ``.mp3``."""
    start = meeting["turns"][turns[0]]["at"]
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder, "part.wav")
        inputs: list[object] = []
        for turn in turns:
            padded = Path(folder, f"{turn}.wav")
            source = ["-t", "ul", "-r", RATE, "-c", 1, HERE / "turns" / f"{turn}.ulaw"]
            run("sox", *source, "-b", 16, "-e", "signed", padded, "pad", meeting["turns"][turn]["at"] - start)
            inputs.append(padded)
        run("sox", *(["-m", "-v", 1, inputs[0], "-v", 1, inputs[1]] if len(inputs) == 2 else inputs), wav)
        if name in MP3_PARTS:
            run("lame", "--quiet", "-m", "m", "-b", 24, wav, HERE / "parts" / f"{name}.mp3")
        else:
            run("oggenc", "-Q", "-q", "-1", "--serial", 1, "-o", HERE / "parts" / f"{name}.ogg", wav)


if __name__ == "__main__":
    meeting = json.loads((HERE / "meeting.json").read_text())
    for name, turn in meeting["turns"].items():
        speak(name, turn, meeting["voices"][str(turn["speaker"])])
    for name, turns in meeting["parts"].items():
        encode(name, turns, meeting)
