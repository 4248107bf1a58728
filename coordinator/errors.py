"""What a user can do wrong, said once and clearly.

UserError            exit status 2: what was given, what was expected, what to type next
├── StudyError       the study file
└── StoreError       the run directory: not writable, full, newer, or held by another coordinator
"""


class UserError(Exception):
    """A mistake of the user or of the machine's set-up; printed without a traceback, exit status 2."""


class StudyError(UserError):
    """A study file that cannot be run."""


class StoreError(UserError):
    """A run directory that cannot be used."""
