"""The engine: many requests on one model, step by step. See ARCHITECTURE.md, "The engine"."""
