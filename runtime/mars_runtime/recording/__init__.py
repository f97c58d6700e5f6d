"""Recordings: what the sensors gave and what was decided, as MCAP files that Foxglove and rerun open.

A recording of a run holds every delivery and clock reading a decision used, so that it can be made again bit for bit.
"""

from mars_runtime.recording.channel import open_channel as open_channel
