"""The subcommands of `trl-tokenreward`, one module each; [`trl_tokenreward.cli`] lists them."""
