"""How scored texts are shown: on pages, in notebooks and on a terminal."""
