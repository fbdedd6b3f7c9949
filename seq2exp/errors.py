"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """Bad input, said in one sentence that names the file, the field and the fix.

    The command line prints the sentence on stderr and exits with code 2; in Python it is a ValueError.
    """
