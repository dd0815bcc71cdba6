"""The methods of the field, a file a family: each a row of stages with its defaults, its paper's box as
docstring.
"""
