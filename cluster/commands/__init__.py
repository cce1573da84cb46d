"""The commands of `launch.py`.

A command is a module `NAME.py`, or, if its work takes several modules, the module `command.py` of a package `NAME/`.
It has `register(app)`, which adds it to the command line, and is light at import: the work, which needs Ray, torch or
matplotlib, is imported when the command runs. `launch.py` lists the commands in the order of the help page.

    options.py  the arguments and options that several commands share, and the panels of the help page
    exits.py    exit codes, refusals, and the messages of a command that does not end well
    docs.py     not a command: writes the generated documentation (`make docs`)
"""
