"""The reference plugins that pods use most, done in this process: the same results, state and files, without a program.

What is done here is only what is fully understood. A configuration with anything else in it, and every one that is
wrong, is given to the plugin's own program as before, so that an operator reads the same error in either case.
"""
