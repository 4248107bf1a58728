"""What the dashboard shows, as values: one module a page, each a pure function of what the store tells."""
