"""Win rates of a policy, and the judges that decide them."""
