"""Public names as a user's own code has them: mypy and pyright check these files in strict mode, nothing runs them.

A line that both must refuse carries an ignore comment with its reason; an ignore that is not needed is an error.
"""
