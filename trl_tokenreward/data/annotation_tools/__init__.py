"""What people marked and edited in annotation tools, and our scores as pre-annotations for them.

- `reading`: reads the files of the tools;
- `annotations`: what one annotator did, in any tool, and the rows that become of it;
- `offsets`: offsets that count UTF-16 units or grapheme clusters, as code points;
- `label_studio`, `argilla`, `doccano`: the formats of the tools; a new tool goes here;
- `predictions`: spans of low scores, which the tools show to annotators.
"""
