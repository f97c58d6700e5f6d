"""What one recording is of: its sensors, the model and the settings of its decisions, its two clocks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mars_edge import __version__
from mars_edge.errors import MarsEdgeError, UsageError
from mars_edge.manifest import Manifest
from mars_edge.modality import Modality
from mars_runtime.pipeline import Settings
from mars_runtime.recording.plain import from_plain, to_plain
from mars_runtime.sensors.driver import Traits

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Session:
    """The head of a recording.

    Attributes:
        modalities: what each sensor feeds.
        traits: of each source when the recording began.
        utc_offset_s: UTC minus the monotonic clock, constant for the whole recording.
        model: name of the model that decided; None for sensors alone.
        model_id: `model_id` of its manifest.
        settings: of the decision loop; None for sensors alone.
        note: why it was made, for people.
    """

    modalities: Mapping[str, Modality]
    traits: Mapping[str, Traits]
    utc_offset_s: float
    model: str | None = None
    model_id: str | None = None
    settings: Settings | None = None
    note: str = ""
    version: str = field(default=__version__)

    def utc_ns(self, at_s: float) -> int:
        """A time on the monotonic clock as nanoseconds since the epoch."""
        return round((at_s + self.utc_offset_s) * 1e9)

    def to_json(self) -> str:
        """The document that `from_json` reads."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": self.version,
                "utc_offset_s": self.utc_offset_s,
                "modalities": {name: modality.to_dict() for name, modality in self.modalities.items()},
                "traits": to_plain(self.traits),
                "model": self.model,
                "model_id": self.model_id,
                "settings": to_plain(self.settings),
                "note": self.note,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Session:
        """The session of a recording.

        Raises:
            UsageError: another format, or content we did not write.
        """
        try:
            table: dict[str, Any] = json.loads(text)
            if table["format"] != FORMAT:
                raise UsageError(f"the recording is of format {table['format']!r}; this mars-edge reads {FORMAT}")
            return cls(
                version=table["version"],
                utc_offset_s=float(table["utc_offset_s"]),
                modalities={name: Modality.from_dict(entry) for name, entry in table["modalities"].items()},
                traits=from_plain(table["traits"]),
                model=table["model"],
                model_id=table["model_id"],
                settings=from_plain(table["settings"]),
                note=table["note"],
            )
        except MarsEdgeError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"the recording's head cannot be read ({error})") from error


def model_id(manifest: Manifest) -> str:
    """SHA-256 of the manifest, which holds the model's golden answers and where it came from."""
    return hashlib.sha256(manifest.to_json().encode()).hexdigest()
