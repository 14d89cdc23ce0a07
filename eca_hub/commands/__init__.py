"""The face of each command: arguments in, one call to the library, a result and the next thing to type out.

Modules here import heavy packages inside their functions, so that help and mistakes answer at once.
"""
