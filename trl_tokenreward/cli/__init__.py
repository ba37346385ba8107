"""The command line `trl-tokenreward`.

- `main`: the parser and its exit status;
- `options`: options that several commands share;
- `import_`, `inspect`, `edit`, `annotate`, `annotations`, `round`, `score`, `export`: one module for each subcommand.
"""
