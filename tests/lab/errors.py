"""The lab's one kind of error: a sentence a person can act on."""


class LabError(Exception):
    """Something the lab can't do, said in one line."""
