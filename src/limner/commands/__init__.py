"""The commands of `limner`, one file each: its flags, and what it calls.

`add` describes a command to the parser, `run` does it. Heavy imports wait until a command runs.
"""
