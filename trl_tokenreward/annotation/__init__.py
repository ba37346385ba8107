"""A local web page on which people edit answers, and the results of their work.

- `annotate`: `annotate_dataset`, the entry point;
- `server`: HTTP routes of the page;
- `access`: password, sessions and checks of the request's origin;
- `store`: what the page reads and writes: rows, drafts and decisions;
- `results`: the decisions as a data set and as counts;
- `agreement`: agreement between annotators: Krippendorff's alpha, Cohen's kappa, F1;
- `static/`: HTML, CSS and JavaScript of the page.
"""
