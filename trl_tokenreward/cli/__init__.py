"""The command line `trl-tokenreward`.

- `main`: the parser and its exit status;
- `options`: options that several commands share;
- `import_`, `inspect`, `edit`, `annotate`, `annotations`, `score`: one module for each subcommand.
"""
