"""Latency of one artifact on one device: measured for every modality subset, stated with intervals, compared fairly.

`inputs` makes samples, `subject` decides on them as the decision loop does, `schedule` says in which order and how
often, `rows` turns times into what is reported, `probe` looks at processes of their own, `report` writes, `comparison`
compares.
"""
