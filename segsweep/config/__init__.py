"""What may be asked for: the schema, the components that a configuration may call, whom it is trusted from."""
