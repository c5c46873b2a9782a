"""The benchmark sets of the project, and reports of what they measured.

sets      which scenarios each set runs, and the promised figure for each result
report    results as a table, as JSON, as an HTML page, as pictures
plots     measurements as SVG
"""
