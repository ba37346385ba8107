"""A local web page on which people edit answers, and what is read from their work."""
