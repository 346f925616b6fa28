"""Spoken digits as log-mel spectrograms, with speakers in the test split that training never heard.

``recordings:digits`` is the data, ``recordings:tuning`` its training speakers alone, one of them as the test split:
settings are chosen on it. Both read ``<digit>_<speaker>_<n>.wav``, 8 kHz mono, from ``recordings`` in the folder that
``KDPIPE_SPEECH`` names (default: ``spoken-digits``), as the Free Spoken Digit Dataset has them.
"""

import math
import os
import wave
from collections.abc import Collection, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

RATE = 8000
"""Samples per second."""
WINDOW, HOP = 256, 80
"""Samples in a window, and from one to the next: 32 and 10 milliseconds."""
FRAMES, BANDS = 48, 40
"""Shape of each item."""
LOWEST = -3.0
"""Smallest value, in standard deviations from the mean."""

TEST = ("theo", "yweweler")
"""Speakers of the test split: the last two by name."""
TUNING = ("nicolas",)
"""Speaker of the test split of ``tuning``."""

_CLASSES = tuple(str(digit) for digit in range(10))


def digits(split: str) -> "Recordings":
    """Return the recordings of ``train`` or ``test``."""
    return Recordings(sorted(_folder().glob("*_*_*.wav")), split, held_out=TEST)


def tuning(split: str) -> "Recordings":
    """Return the recordings of the training speakers but one, or of that one."""
    heard = [path for path in sorted(_folder().glob("*_*_*.wav")) if _speaker(path) not in TEST]
    return Recordings(heard, split, held_out=TUNING)


class Recordings(Sequence):
    """The recordings of one split: (float32 ``(FRAMES, BANDS)``, digit)."""

    classes = _CLASSES

    def __init__(self, paths: Sequence[Path], split: str, *, held_out: Collection[str]) -> None:
        """Choose from ``paths`` those of the speakers ``held_out``, for ``test``, or the others."""
        self._paths = [path for path in paths if (_speaker(path) in held_out) == (split == "test")]
        self.keys = [path.stem for path in self._paths]
        self.targets = [int(key.partition("_")[0]) for key in self.keys]

    @cached_property
    def digests(self) -> list[bytes]:
        """A digest of each recording and of all that is done with it."""
        settings = repr((RATE, WINDOW, HOP, FRAMES, BANDS, LOWEST)).encode()
        return [blake2b(settings + path.read_bytes()).digest() for path in self._paths]

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return the spectrogram of one recording and its digit."""
        return spectrogram(read(self._paths[index])), self.targets[index]


def read(path: Path) -> torch.Tensor:
    """Return the samples of a recording in -1..1, float32."""
    with wave.open(str(path), "rb") as file:
        found = (file.getframerate(), file.getnchannels(), file.getsampwidth())
        if found != (RATE, 1, 2):
            raise ValueError(f"{path.name}: rate, channels and bytes are {found}, expected {(RATE, 1, 2)}")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return torch.from_numpy(samples.astype(np.float32) / 2**15)


def spectrogram(samples: torch.Tensor) -> torch.Tensor:
    """Return log-mel energies with mean 0 and standard deviation 1, float32 ``(FRAMES, BANDS)``.

    A recording is scaled as a whole and stretched to ``FRAMES``, so that loudness and pace make little difference.
    """
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(samples, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)
    bands = torch.log(mel_filters() @ spectrum.abs().square() + 1e-6)
    scaled = ((bands - bands.mean()) / bands.std()).clamp(min=LOWEST)
    return torch.nn.functional.interpolate(scaled[None], size=FRAMES, mode="linear")[0].T.contiguous()


def mel_filters() -> torch.Tensor:
    """Return triangles whose corners are equally far apart in mel, ``(BANDS, frequencies)``.

    A frequency of f Hz is 2595 log10(1 + f / 700) mel.
    """
    highest = 2595 * math.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, highest, BANDS + 2) / 2595) - 1)
    frequencies = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (frequencies - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - frequencies) / (corners[2:] - corners[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def _folder() -> Path:
    return Path(os.environ.get("KDPIPE_SPEECH", "spoken-digits")) / "recordings"


def _speaker(path: Path) -> str:
    return path.stem.split("_")[1]
