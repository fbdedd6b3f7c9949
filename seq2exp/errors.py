"""What the user can mend: the one exception that says so, and lack of memory."""


class UserError(ValueError):
    """Bad input, said in one sentence that names the file, the field and the fix.

    The command line prints the sentence on stderr and exits with code 2; in Python it is a ValueError.
    """


# The last is all that a compiled op says when an allocation in it fails.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "API call failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a lack of memory, of the host or of a GPU."""
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    return said or isinstance(error, MemoryError)
