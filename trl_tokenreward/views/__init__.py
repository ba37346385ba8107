"""Display of scored texts.

- `colours`: the colour scale of scores;
- `scored_text`, `scored_rows`: the data types of scored texts;
- `page`: scored texts as HTML pages and in notebooks (scores.html, scores.css, scores.js);
- `terminal`: scored texts on a terminal;
- `html`: the frame of every HTML page and its content security policy;
- `edit_colours.css`: the colours of deleted and inserted text.
"""
