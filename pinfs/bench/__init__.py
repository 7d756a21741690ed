"""What `pinfs bench` measures: the same work on a mount, its backing directory and any other directory, round by round.

rows.py      what a row is, and the one measuring loop
data.py metadata.py pins.py seals.py breaks.py cluster.py processes.py    the rows
places.py    the directories to compare: what they are, where their backing is, the scratch directory in each
holder.py    a program of its own (standard library only): the other process that holds pins and leases
worker.py    a program of its own (standard library only): one of several processes that work at once
remote.py    the remote control of both
crowd.py     the crowd of pins on other files
run.py       interleaved rounds
verdict.py   the first directory against the best of the others
report.py    JSON and table
"""
