"""A report on the edits of a data set.

- `report`: counts, edit ratios and kinds of edits;
- `page`: the report as an HTML page (edits.html, edits.css, edits.js).
"""
