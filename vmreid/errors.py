"""The one exception that users are meant to see."""


class UserError(Exception):
    """Something the user can mend: one line with the value, the rule it breaks and the way out.

    The launcher prints it on standard error without a traceback and exits with status 2.
    """
