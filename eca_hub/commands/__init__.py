"""One module for each command: parse arguments, call the library, print the result and the next command to type.

Heavy packages are imported inside functions, so that `--help` and errors in options are printed at once.
"""
