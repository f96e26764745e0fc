"""Turn YAML and overrides into a typed value, or one error that lists every mistake."""
